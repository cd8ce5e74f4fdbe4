"""Config files: each mistake is reported in one line that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from ea_runtime.errors import UserError
from ea_runtime.settings import validate
from ea_runtime.training.options import RunConfig, TrainOptions, read_config

GOOD = """
[run]
recipe = "toy"
out = "runs/toy"

[train]
steps = 100
batch_size = 8
lr = 1e-3

[data]
path = "set"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "toy.toml"
    path.write_text(GOOD)
    return path


def told(config: Path, *settings: str) -> str:
    with pytest.raises(UserError) as caught:
        read_config(config, list(settings))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_good_file(config: Path) -> None:
    run = read_config(config)
    assert isinstance(run, RunConfig)
    assert (run.run.recipe, run.run.out) == ("toy", "runs/toy")
    assert run.train == TrainOptions(steps=100, batch_size=8, lr=1e-3)
    assert run.recipe_options == {"data": {"path": "set"}}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["train.steps=7"], 7),
        (["train.steps = 7"], 7),
        (["train.steps=7", "train.steps=9"], 9),
    ],
)
def test_set_replaces_values(settings: list[str], expected: int, config: Path) -> None:
    assert read_config(config, settings).train.steps == expected


def test_set_reads_toml_and_takes_the_rest_as_text(config: Path) -> None:
    run = read_config(
        config,
        [
            "run.out=runs/a=b",
            "data.deep.er=[1, 2]",
            "data.path=2026-01-02",
            "data.flag=true",
            "data.empty=",
            'data.number="7"',
            "train.betas=[0.5, 0.9]",
            "train.dtype=bf16",
        ],
    )
    assert run.run.out == "runs/a=b"
    assert run.train.betas == (0.5, 0.9)
    assert run.train.dtype == "bf16"
    assert run.recipe_options["data"] == {
        "path": "2026-01-02",
        "deep": {"er": [1, 2]},
        "flag": True,
        "empty": "",
        "number": "7",
    }


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.steps", "`--set` must read table.key=value, for example train.steps=100, got 'train.steps'"),
        ("steps=3", "`--set` must read table.key=value, for example train.steps=100, got 'steps=3'"),
        ("run.out.deep=3", "`--set run.out.deep=3`: 'out' is a value, not a table"),
        ("train.stps=3", "toy.toml [train]: unknown key `stps`; did you mean 'steps'?"),
        ("train.zzz=3", "toy.toml [train]: unknown key `zzz`; there are: steps, task, batch_size,"),
        ("run.name=3", "toy.toml [run]: unknown key `name`; there are: recipe, out"),
        ("train.steps=0", "toy.toml [train]: `steps`: Input should be greater than 0, got 0"),
        ("train.steps=many", "toy.toml [train]: `steps`: Input should be a valid integer"),
        ("train.lr=nan", "toy.toml [train]: `lr`: Input should be"),
        ("train.lr=inf", "toy.toml [train]: `lr`: Input should be a finite number, got inf"),
        ("train.ema=1", "toy.toml [train]: `ema`: Input should be less than 1, got 1"),
        ("train.betas=[0.9, 1.0]", "toy.toml [train]: `betas.1`: Input should be less than 1, got 1.0"),
        ("train.betas=[0.9]", "toy.toml [train]: key `betas.1` is missing"),
        ("train.guard.factr=2", "toy.toml [train]: unknown key `guard.factr`; did you mean 'factor'?"),
        (
            "train.optimizer=sgd",
            "toy.toml [train]: `optimizer`: Input should be 'adamw', 'adam' or 'adamw8bit'",
        ),
        (
            "train.dtype=fp8",
            "toy.toml [train]: `dtype`: Input should be 'fp32', 'bf16', 'fp16' or 'auto', got",
        ),
        ("train.seed=-1", "toy.toml [train]: `seed`: Input should be greater than or equal to 0, got -1"),
        ("run.out=", "toy.toml [run]: `out`: String should have at least 1 character, got ''"),
    ],
)
def test_wrong_settings(setting: str, expected: str, config: Path) -> None:
    assert told(config, setting).startswith(expected)


def test_set_reaches_what_is_in_no_table(config: Path) -> None:
    """`stage`, which recipes have at the top level; a table, or a key of one, is not such a key."""
    config.write_text('stage = "align"\n' + GOOD)
    assert read_config(config, ["stage=motion"]).recipe_options["stage"] == "motion"
    for setting in ("data=3", "train=3", "lr=1", ".x=1", "=1"):
        assert told(config, setting).startswith("`--set` must read table.key=value")


def test_what_is_shown_of_a_value_is_cut(config: Path) -> None:
    assert len(told(config, f"train.dtype={'x' * 10_000}")) < 250


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[run]\nrecipe = ", "`config` toy.toml is not valid TOML: Invalid value (at "),
        ("a = " + "[" * 5000, "`config` toy.toml is not valid TOML: "),
        ("", "`config` toy.toml must have a table [run]"),
        ('[run]\nrecipe="a"\nout="b"', "`config` toy.toml must have a table [train]"),
        ("run = 3\n[train]", "toy.toml [run]: `table`: must be a table of keys"),
        ('[run]\nout="b"\n[train]', "toy.toml [run]: key `recipe` is missing"),
        (
            '[run]\nout="b"\nrecipe="a"\n[train]\nsteps=3\nlr=1',
            "toy.toml [train]: key `batch_size` is missing",
        ),
    ],
)
def test_wrong_files(text: str, expected: str, config: Path) -> None:
    config.write_text(text)
    assert told(config).startswith(expected)


def test_files_that_cannot_be_read(config: Path, tmp_path: Path) -> None:
    assert "which is not there" in told(tmp_path / "absent.toml")
    assert "cannot be read: Is a directory" in told(tmp_path)
    config.write_bytes(b"\xff\xfe\x00")
    assert told(config).startswith("`config` toy.toml is not valid TOML: line 1 is not UTF-8")


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    num_frames: int = Field(9, gt=0)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data: Inner = Inner()
    either: Inner | None = None
    free: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"dta": {}}, "c.toml: unknown key `dta`; did you mean 'data'?"),
        ({"data": {"num_frame": 3}}, "c.toml: unknown key `data.num_frame`; did you mean 'num_frames'?"),
        ({"data": {"x": 3}}, "c.toml: unknown key `data.x`; there are: num_frames"),
        ({"either": {"x": 3}}, "c.toml: unknown key `either.x`"),
        ({"data": {"num_frames": 0}}, "c.toml: `data.num_frames`: Input should be greater than 0, got 0"),
        ({"data": 3}, "c.toml: `data`: must be a table of keys"),
    ],
)
def test_tables_of_a_recipe(table: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(Outer, table, "c.toml")
    assert str(caught.value).startswith(expected)
    assert validate(Outer, {"free": {"any": "thing"}}, "c.toml").free == {"any": "thing"}
