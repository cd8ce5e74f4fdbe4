"""`ea train`: what is wrong is told in one line with exit code 2, a stopped run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ea_runtime.cli.main import run
from ea_runtime.plugins.host import set_host

TOY = Path(__file__).parent.parent / "training" / "toy_recipe.py"
CONFIG = """
[run]
recipe = "toy"
out = "runs/toy"

[train]
steps = 6
batch_size = 4
lr = 1e-2
warmup = 2
save_every = 2
"""
Ea = Callable[..., tuple[int, str]]


@pytest.fixture
def ea(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Ea]:
    """ea(*words): the program in an empty folder with toy.toml; the exit code and what it wrote to stderr."""
    monkeypatch.chdir(tmp_path)
    Path("toy.toml").write_text(CONFIG)
    threads, state = torch.get_num_threads(), torch.get_rng_state()

    def call(*words: str) -> tuple[int, str]:
        code = run(["--plugin", str(TOY), *words])
        return code, capsys.readouterr().err

    yield call
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    set_host(None)


def test_a_run(ea: Ea) -> None:
    code, said = ea("train", "toy", "toy.toml", "--set", "train.threads=1")
    assert code == 0
    first, *_, finished, done = said.splitlines()
    assert first == "toy: 0.00 M trainable parameters, 16 samples, cpu"
    assert (finished, done) == ("finished", "done: runs/toy/final")
    config = tomllib.loads(Path("runs/toy/config.toml").read_text())
    assert config["run"] == {"recipe": "toy", "out": "runs/toy"}
    assert config["train"]["threads"] == 1
    assert config["data"]["images"] == 6
    assert len(Path("runs/toy/log.jsonl").read_text().splitlines()) == 6
    assert Path("runs/toy/final/model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nosuch", "toy.toml"], "no recipe is called 'nosuch'; there are: "),
        (["tyo", "toy.toml"], "no recipe is called 'tyo'; there are: "),
        (["toy", "absent.toml"], "`config` must be a TOML file, got 'absent.toml', which is not there"),
        (["toy", "."], "`config` '.' cannot be read: Is a directory"),
        (["toy", "toy.toml", "--set", "run.recipe=vae"], "`config` toy.toml is for recipe 'vae', got 'toy'"),
        (
            ["toy", "toy.toml", "--set", "train.lr=0"],
            "toy.toml [train]: `lr`: Input should be greater than 0",
        ),
        (["toy", "toy.toml", "--set", "data.imges=3"], "toy.toml: unknown key `data.imges`; did you mean"),
        (["toy", "toy.toml", "--set", "dta.images=3"], "toy.toml: unknown key `dta`; did you mean 'data'?"),
        (["toy", "toy.toml", "--set", "train.device=tpu"], "`device` must be cpu, cuda, cuda:N or mps, got"),
        (["toy", "toy.toml", "--set", "nothing"], "`--set` must read table.key=value, for example"),
        (["toy"], "Missing argument 'CONFIG': `ea train toy CONFIG.toml`"),
        (["cache"], "Missing argument 'CONFIG': `ea train cache CONFIG.toml`"),
        (["cahe", "toy.toml"], "no recipe is called 'cahe'; there are: "),
        (["cache", "toy.toml", "--set", "run.recipe=tyo"], "no recipe is called 'tyo'; there are: "),
        (["cache", "toy.toml", "--resume"], "`ea train cache` takes no --resume and no --dry-run"),
        (["toy", "toy.toml", "--dry-run", "--set", "train.lr=0"], "toy.toml [train]: `lr`: Input should"),
        (["toy", "toy.toml", "--resum"], "No such option"),
    ],
)
def test_wrong_words(words: list[str], expected: str, ea: Ea) -> None:
    code, said = ea("train", *words)
    assert code == 2
    assert said.lower().startswith(f"error: {expected.lower()}")
    assert said.count("\n") == 1
    assert not Path("runs").exists()


def test_stopped_told_and_gone_on(ea: Ea) -> None:
    code, said = ea("train", "toy", "toy.toml", "--set=toy.sigint=[2]")
    assert code == 130
    lines = said.splitlines()
    assert lines[-2:] == ["step 4 of 6 is saved; --resume continues from there", "error: stopped"]

    code, said = ea("train", "toy", "toy.toml", "--set=toy.sigint=[2]")
    assert code == 2  # and nothing else is said: it is told before the recipe reads or codes a set
    assert said.startswith("error: `out` 'runs/toy' holds a run at step 4; ")
    assert "--resume" in said
    code, said = ea("train", "toy", "toy.toml", "--set=train.lr=0.5", "--resume", "--set=toy.sigint=[2]")
    assert code == 2
    assert said == (
        "error: the run in 'runs/toy' was made with another config: train.lr (0.01 -> 0.5); "
        "set these back or choose another `out`\n"
    )
    code, said = ea("train", "toy", "toy.toml", "--resume", "--set=toy.sigint=[2]")
    assert code == 0
    assert len(Path("runs/toy/log.jsonl").read_text().splitlines()) == 6


def test_a_resume_that_finds_nothing(ea: Ea) -> None:
    words = ("train", "toy", "toy.toml", "--resume", "--set=run.out=runs/typo")
    for what in ("does not exist", "holds no checkpoint"):
        code, said = ea(*words)
        assert code == 2
        assert said.count("\n") == 1
        assert f"`out` 'runs/typo' {what}; leave --resume out" in said
        Path("runs/typo").mkdir(parents=True, exist_ok=True)
    assert not list(Path("runs/typo").iterdir())


def test_more_steps_for_a_finished_run(ea: Ea) -> None:
    """With a constant rate they are the steps of one longer run, and with another schedule a line says that not."""
    constant = "--set=train.schedule=constant"
    assert ea("train", "toy", "toy.toml", constant, "--set=run.out=whole", "--set=train.steps=9")[0] == 0
    assert ea("train", "toy", "toy.toml", constant, "--set=run.out=parts")[0] == 0
    code, said = ea(
        "train", "toy", "toy.toml", constant, "--set=run.out=parts", "--set=train.steps=9", "--resume"
    )
    assert code == 0
    assert "`train.steps` 6 -> 9: continues as a run of 9 steps would" in said
    for name in ("final/model.safetensors", "checkpoint-9/state.safetensors", "checkpoint-9/state.json"):
        assert Path("whole", name).read_bytes() == Path("parts", name).read_bytes()
    assert tomllib.loads(Path("parts/config.toml").read_text())["train"]["steps"] == 9
    # the config file still says 6
    code, said = ea("train", "toy", "toy.toml", constant, "--set=run.out=parts", "--resume")
    assert code == 2
    assert said.endswith(
        "error: `train.steps` must be 9 or more, as the run in 'parts' is at that step, got 6\n"
    )
    assert ea("train", "toy", "toy.toml", "--set=train.warmup=1")[0] == 0
    code, said = ea("train", "toy", "toy.toml", "--set=train.warmup=1", "--set=train.steps=9", "--resume")
    assert code == 0
    (line,) = [line for line in said.splitlines() if "`train.steps` 6 -> 9" in line]
    assert "cosine schedule over 9 steps continues from here" in line
    assert "one run of 9 steps would differ" in line


def test_auto_dtype_is_recorded_and_kept(ea: Ea, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run made in fp32 stays in it on a machine that has bf16; without --resume the machine decides."""
    from ea_runtime.training.update import precision

    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    words = ["train", "toy", "toy.toml", "--set=train.dtype=auto", "--set=toy.sigint=[2]"]
    code, said = ea(*words)
    assert code == 130
    assert said.splitlines()[0] == "`train.dtype` auto: fp32 on cpu"
    assert tomllib.loads(Path("runs/toy/config.toml").read_text())["train"]["dtype"] == "fp32"

    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    code, said = ea(*words[:3], "--set=train.dtype=bf16", "--set=toy.sigint=[2]", "--resume")
    assert code == 2
    assert "train.dtype ('fp32' -> 'bf16')" in said.splitlines()[-1]
    code, said = ea(*words, "--resume")
    assert code == 0
    assert said.splitlines()[0] == "`train.dtype` auto: fp32 on cpu, as the run was made with"
    assert tomllib.loads(Path("runs/toy/config.toml").read_text())["train"]["dtype"] == "fp32"

    assert ea(*words, "--set=run.out=other")[1].splitlines()[0] == "`train.dtype` auto: bf16 on cpu"
    assert tomllib.loads(Path("other/config.toml").read_text())["train"]["dtype"] == "bf16"


def test_slow_bf16_is_told_in_one_line(ea: Ea, monkeypatch: pytest.MonkeyPatch) -> None:
    from ea_runtime.training.update import precision

    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    code, said = ea("train", "toy", "toy.toml", "--set=train.dtype=bf16", "--set=train.steps=1")
    assert code == 0
    warnings = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert warnings == [
        "warning: `train.dtype` is bf16, but this CPU has no bf16 arithmetic: many times slower than fp32; "
        "set it to auto"
    ]
    assert ea("train", "toy", "toy.toml", "--dry-run", "--set=train.dtype=auto")[1].splitlines() == [
        "`train.dtype` auto: fp32 on cpu"
    ]


def test_a_run_that_goes_astray_ends_with_one_line(ea: Ea) -> None:
    steps = list(range(40))
    code, said = ea("train", "toy", "toy.toml", "--set=train.steps=40", f"--set=toy.nan={steps}")
    assert code == 2
    assert said.count("error: ") == 1
    assert said.splitlines()[-1] == (
        "error: 10 steps in a row were skipped, the last one is 10: the loss is not finite in fp32; "
        "lower `train.lr`, or look at the data of the last lines of log.jsonl"
    )
    assert "spiked" not in said


def test_the_recipes_are_listed(ea: Ea, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--plugin", str(TOY), "--no-plugins", "train"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines()[:2]] == [
        ["recipe", "trains", "package"],
        ["toy", "for", "tests"],
    ]
    assert "`ea train cache CONFIG.toml`" in out
    assert not Path("runs").exists()


def test_a_near_name_of_cache_is_told(ea: Ea) -> None:
    assert "did you mean 'cache'?" in ea("train", "cahe", "toy.toml")[1]


def test_a_dry_run_shows_the_plan_and_leaves_nothing(ea: Ea, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir())
    assert run(["--plugin", str(TOY), "train", "toy", "toy.toml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for word in ("Run", "Data", "Parameters", "Memory of a process", "runs/toy", "16", "activations"):
        assert word in out
    assert sorted(os.listdir()) == before


def test_cache_calls_the_recipe_or_says_that_there_is_nothing(
    ea: Ea, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = ea("train", "cache", "toy.toml")
    assert (code, said) == (0, "recipe 'toy' reads its data directly; there is nothing to encode ahead\n")
    assert not Path("runs").exists()
    calls: list[object] = []
    from ea_runtime.plugins.host import Host

    toy = Host(files=[TOY], entry_points=False).get("recipes", "toy").build()

    def cache(options: object, context: object) -> None:
        calls.append((type(options).__name__, context.device, context.seed))  # pyright: ignore[reportAttributeAccessIssue]

    record = Host.get

    def patched(host: Host, kind: str, name: str) -> object:
        found = record(host, kind, name)
        monkeypatch.setattr(found.build(), "cache", cache, raising=False)
        return found

    monkeypatch.setattr(Host, "get", patched)
    assert ea("train", "cache", "toy.toml", "--set=train.seed=4")[0] == 0
    assert calls == [("ToyOptions", "cpu", 4)]
    assert toy.__name__ == "ToyRecipe"


def test_global_options_reach_the_other_processes(ea: Ea, monkeypatch: pytest.MonkeyPatch) -> None:
    """--plugin, --no-plugins and --debug, wherever they stood, with the command's own words after them."""
    from contextlib import contextmanager

    from ea_runtime.machine import processes

    seen: list[list[str]] = []

    @contextmanager
    def group(count: int, words: list[str], device: str) -> Iterator[int]:
        seen.append(words)
        yield 0

    monkeypatch.setattr(processes, "process_group", group)
    assert ea("train", "toy", "toy.toml", "--set=train.steps=1")[0] == 0
    seen.clear()
    words = ["train", "--no-plugins", "toy", "toy.toml", "--set=train.steps=1", "--resume", "--debug"]
    assert ea(*words)[0] == 0
    own = ["train", "toy", "toy.toml", "--set=train.steps=1", "--resume"]
    assert seen == [[f"--plugin={TOY}", "--no-plugins", "--debug", *own]]
    assert ea("train", "toy", "toy.toml", "--set=run.out=other", "--set=train.steps=1")[0] == 0
    assert seen[1] == [
        f"--plugin={TOY}",
        "train",
        "toy",
        "toy.toml",
        "--set=run.out=other",
        "--set=train.steps=1",
    ]


def test_killed_and_gone_on_is_uncut(ea: Ea) -> None:
    """SIGKILL of the whole program: the same bits and the same log as a run that nobody stopped."""
    kill = "--set=toy.sigkill=[5]"
    words = [sys.executable, "-m", "ea_runtime.cli.main", "--plugin", str(TOY), "train", "toy", "toy.toml"]
    one = subprocess.run([*words, kill, "--set=run.out=one"], capture_output=True, timeout=120, check=False)
    assert one.returncode == -signal.SIGKILL
    assert sorted(os.listdir("one")) == ["checkpoint-2", "checkpoint-4", "config.toml", "log.jsonl"]
    config = (
        Path("one/config.toml").read_text().replace("    5,\n", "").replace("sigkill = [\n]", "sigkill = []")
    )
    Path("one/config.toml").write_text(config)
    assert ea("train", "toy", "toy.toml", "--set=run.out=one", "--resume")[0] == 0
    assert ea("train", "toy", "toy.toml", "--set=run.out=two")[0] == 0
    states = [load_file(f"{name}/checkpoint-6/state.safetensors") for name in ("one", "two")]
    assert all(states[0][key].equal(states[1][key]) for key in states[1])
    logs = [Path(name, "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    clock = {"seconds": 0.0, "wait": 0.0, "memory": 0.0}
    assert [json.loads(a) | clock for a in logs[0]] == [json.loads(b) | clock for b in logs[1]]
