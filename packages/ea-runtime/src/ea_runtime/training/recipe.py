"""The interface of a training recipe."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ea_runtime.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from pydantic import BaseModel
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Context:
    """The run, as the loop describes it to a recipe.

    seed: the run's seed. device: where the networks live. out: the run's folder.
    say: shows one line to the user.
    dtype: "fp32", "bf16" or "fp16", the type to compute in; weights stay fp32 (see training/update/precision.py).
    gradient_checkpointing: recompute activations in the backward pass.
    dry_run: the recipe is made only to be described, with `device` "meta" and torch's default device meta: it must
    load no weights, encode nothing and write nothing.
    task: "auto", "generate" or "inpaint", as `train.task` says; see `check_task`.
    """

    seed: int
    device: str
    out: Path
    say: Callable[[str], None]
    dtype: str = "fp32"
    gradient_checkpointing: bool = False
    dry_run: bool = False
    task: str = "auto"


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a run over which the buckets stay: one for most runs, several for a schedule of sizes.

    start: first step, counted from 0; the first phase starts at 0.
    buckets: one key per sample, for all samples; the samples of a batch share their key. None leaves one out.
    batch_size: samples per step in this phase; 0: `train.batch_size`.
    """

    start: int
    buckets: Sequence[Hashable]
    batch_size: int = 0


@dataclass(slots=True)
class Batch:
    """Samples as `fetch` returns them: tensors on the CPU, and the files that could not be used.

    indices: the samples in it, in order (those of `bad` are not). tensors: the input of `loss`.
    bad: (sample, path, reason) of each file that did not decode. It is counted, never silently replaced.
    """

    indices: list[int]
    tensors: dict[str, Any] = field(default_factory=dict)
    bad: list[tuple[int, str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(slots=True)
class Loss:
    """The result of `Recipe.loss`.

    total: scalar, the mean over the batch; differentiable. figures: numbers for the log (means over the batch), of
    the same names at every call. samples: each sample's loss (B,), detached, and timesteps: theirs (B,), 0..999, for
    the guard against spikes; None if a recipe has no timesteps.
    """

    total: Tensor
    figures: dict[str, float] = field(default_factory=dict)
    samples: Tensor | None = None
    timesteps: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    """Drawn samples: what `Recipe.sample_sheet` returns for videos that metrics may judge.

    sheet: uint8 (H, W, 3), for `samples/`. videos: uint8 (N, T, H, W, 3), T is 1 for pictures; prompts: one for each.
    """

    sheet: np.ndarray
    videos: np.ndarray
    prompts: Sequence[str]


class Recipe(Protocol):
    """Made as `Recipe(options, context)`; the loop owns order, workers, optimiser, EMA, guard, checkpoints and log.

    Everything random inside `fetch` must come from its seed and inside `loss` from the generator that is passed.
    Both are functions of (run's seed, step, rollbacks) and the turn: the same in every process and for every part of
    a batch that is accumulated. So what differs between samples is drawn for each sample (with
    `ea_runtime.training.data.draws`, and `SeedSequence([seed, index])` in `fetch`), and what is drawn from the
    generator itself is a decision for the whole batch. A run then draws the same whatever its workers, processes and
    accumulation, and also after a resume. Only torch's global generator (which dropout uses) is seeded separately for
    each process and part.
    Everything else that changes from step to step must be in the modules (as parameters or persistent buffers).
    """

    options_model: type[BaseModel]

    def __init__(self, options: Any, context: Context) -> None: ...

    def modules(self) -> dict[str, nn.Module]:
        """The modules that are trained and saved, by name. Frozen helpers are not among them."""
        ...

    def averaged(self) -> Sequence[str]:
        """Names of the modules whose averages (EMA) are kept and saved; a discriminator is not among them."""
        ...

    def turns(self) -> Sequence[str]:
        """The parts that a step optimises in turn: ("model",), or ("vae", "discriminator").

        Each turn has its own parameter groups, backward pass, clipping and update, on the same batch. During a turn
        the parameters of the others need no gradient. A parameter belongs to one turn.
        """
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups: {"params": [...], "kind": "adamw" | "muon", "lr_scale": 1.0, "turn": "model", "name": "motion"}."""
        ...

    def phases(self) -> Sequence[Phase]:
        """The buckets of every sample, phase by phase."""
        ...

    def fetch(self, indices: list[int], seed: int, step: int) -> Batch:
        """Reads and cuts samples: a function of its arguments alone, called in the run's process or in a worker.

        It touches no device and no trained module, and starts no thread. Workers are forked from the run: they have
        what the recipe held then, and keep what they read. step: counted from 0; gives the phase.
        """
        ...

    def loss(self, batch: Batch, generator: torch.Generator, step: int, turn: str) -> Loss:
        """The loss of a batch (never an empty one) for one turn. step: counted from 0.

        A turn whose total needs no gradient sits the step out: no update, no weight decay.
        """
        ...

    def sample_sheet(self, step: int) -> Any | None:
        """A picture for `samples/`, uint8 (H, W, 3), made with the averaged weights, or `Samples`: with its videos.

        None: nothing to show.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Additions to the plan of `--dry-run`: name -> value (stage, trainable parameters, ...)."""
        ...

    def finish(self) -> None:
        """Called after the last step with the averaged weights in place (for example to whiten latents)."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the modules as they are now as a loadable model folder (config.json and safetensors)."""
        ...


class RecipeDefaults:
    """Defaults of most recipes: one task and turn, everything averaged, no sheet, no set, nothing to do at the end."""

    #: values of `train.task` that the recipe knows
    tasks: Sequence[str] = ("auto", "generate")

    def modules(self) -> dict[str, nn.Module]:
        raise NotImplementedError

    def averaged(self) -> Sequence[str]:
        return tuple(self.modules())

    def turns(self) -> Sequence[str]:
        return ("model",)

    def sample_sheet(self, step: int) -> Any | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {}

    def training_set(self) -> tuple[Any, Path] | None:
        """The set (training/data/dataset.py: TrainingSet) and its root folder, so that a resume notices a change."""
        return None

    def finish(self) -> None:
        """Does nothing."""


def check_task(recipe_class: Any, name: str, task: str) -> None:
    """Raises UserError, one line, if a recipe does not know a task."""
    known = getattr(recipe_class, "tasks", RecipeDefaults.tasks)
    if task not in known:
        raise UserError(f"`train.task` must be {' or '.join(known)} with recipe {name!r}, got {task!r}")
