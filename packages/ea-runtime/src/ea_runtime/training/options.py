"""The options of a run, from TOML: [run], [train], and the recipe's own tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ea_runtime.errors import UserError
from ea_runtime.settings import put_setting, read_setting, read_toml, validate


class Table(BaseModel):
    """A table of a config: no unknown keys, no changes, finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GuardOptions(Table):
    """[train.guard]: the limits of a spike. The defaults find 0.05 -> 0.2 -> 1.0 within ten steps."""

    enabled: bool = Field(default=True, description="false: only steps that are not finite are skipped")
    bins: int = Field(
        default=20, gt=0, le=1000, description="bins of timesteps that are compared with themselves"
    )
    factor: float = Field(
        default=1.5, gt=1, description="a lasting rise of the loss below this factor is no spike"
    )
    limit: float = Field(
        default=1.75, gt=0, description="sum of logarithms above `factor` at which the alarm is given"
    )
    sigmas: float = Field(
        default=5.0, gt=0, description="the same in standard deviations of a step; the larger one counts"
    )
    skips: int = Field(
        default=10, gt=0, description="steps in a row that are not finite, after which the run rolls back"
    )


class ValidationOptions(Table):
    """[train.validation]: the loss of samples that are held out, on the same noise and timesteps each time."""

    every: int = Field(gt=0, description="steps between validations; the last step has one too")
    samples: int = Field(32, gt=0, description="samples held out of training")
    draws: int = Field(4, gt=0, description="times that each is measured, each with another timestep")
    bins: int = Field(5, gt=0, le=100, description="bins of timesteps that have a figure of their own")


Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainOptions(Table):
    """Length, rates and intervals of a run; the same for every recipe."""

    steps: int = Field(gt=0, description="optimiser steps in all")
    task: Literal["auto", "generate", "inpaint"] = Field(
        "auto",
        description="inpaint: the denoiser also learns to continue, join and fill in known frames (recipes dit, lora); "
        "auto: as the model that the run starts from takes known frames or not",
    )
    batch_size: int = Field(gt=0, description="samples per step")
    accumulate: int = Field(1, gt=0, description="micro batches per step; batch_size is split into that many")
    optimizer: Literal["adamw", "adam", "adamw8bit"] = Field(
        "adamw",
        description="for all that Muon does not train; adam couples weight decay; adamw8bit needs bitsandbytes",
    )
    lr: float = Field(gt=0, description="Adam's peak learning rate")
    muon_lr: float = Field(0.0, ge=0, description="peak rate of the groups that a recipe gives to Muon")
    warmup: int = Field(100, ge=0, description="steps of linear warm-up")
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    final_lr: float = Field(0.0, ge=0, le=1, description="rate at the last step, as a part of the peak")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    ema: float = Field(
        0.999, ge=0, lt=1, description="decay of the averaged weights, reached by (1+n)/(10+n)"
    )
    seed: int = Field(0, ge=0, lt=1 << 32)
    dtype: Literal["fp32", "bf16", "fp16", "auto"] = Field(
        "fp32",
        description="type to compute in; weights and optimiser stay fp32; fp16 scales the loss; auto is bf16 if "
        "the device has bf16 arithmetic, else fp32, and does not change when a run resumes",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    device: str = "auto"
    threads: int = Field(0, ge=0, description="CPU threads per process; 0: torch's default")
    processes: int = Field(
        1, gt=0, description="processes on this machine that share each batch; torchrun's count overrides it"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="how they share: ddp copies the weights, fsdp shards weights and optimiser"
    )
    workers: int = Field(0, ge=0, description="processes per process that read data ahead; 0: none")
    bad_share: float = Field(
        0.01, ge=0, le=1, description="share of the samples that may be unusable; more ends the run"
    )
    guard: GuardOptions = GuardOptions()
    validation: ValidationOptions | None = None
    save_every: int = Field(500, gt=0)
    keep: int = Field(2, gt=0, description="checkpoints to keep")
    sample_every: int = Field(0, ge=0, description="steps between sample sheets; 0: none")
    log_every: int = Field(1, gt=0, description="steps between lines shown; log.jsonl has every step")
    page_every: int = Field(50, ge=0, description="steps between writes of run.html, the run's page; 0: none")
    tensorboard: bool = False
    trackers: tuple[Literal["wandb", "trackio"], ...] = Field(
        (), description="services that get the figures too; each needs its package"
    )


class RunTable(Table):
    """The recipe and the run's folder."""

    recipe: str = Field(min_length=1)
    out: str = Field(min_length=1)


class RunConfig(BaseModel):
    """A whole config file. `recipe_options`: the tables that the recipe validates."""

    run: RunTable
    train: TrainOptions
    recipe_options: dict[str, Any]


def read_config(path: Path, settings: list[str] | None = None) -> RunConfig:
    """Reads and validates a TOML file; `settings` are `table.key=value` overrides.

    Raises UserError, one line, for a file that is missing or no TOML, and, naming the key, for anything unknown,
    missing or out of range. The recipe's own tables are validated later, by `validate`.
    """
    tables = read_toml(path, "config")
    for setting in settings or []:
        _apply(tables, setting)
    for needed in ("run", "train"):
        if needed not in tables:
            raise UserError(f"`config` {path.name} must have a table [{needed}]")
    run = validate(RunTable, tables.pop("run"), f"{path.name} [run]")
    train = validate(TrainOptions, tables.pop("train"), f"{path.name} [train]")
    return RunConfig(run=run, train=train, recipe_options=tables)


def _apply(tables: dict[str, Any], setting: str) -> None:
    """Puts one `table.key=value` into `tables`."""
    keys, value = read_setting(setting)
    is_top = len(keys) == 1 and not isinstance(tables.get(keys[0]), dict)  # `stage` is no table's
    known = {*TrainOptions.model_fields, *RunTable.model_fields, "run", "train"}
    if len(keys) < 2 and (not is_top or keys[0] in known):
        raise UserError(f"`--set` must read table.key=value, for example train.steps=100, got {setting!r}")
    put_setting(tables, keys, value, setting)
