"""N + M steps equal N steps, a kill, and M steps, for every recipe: weights, averages, optimisers, losses, order.

One run of each recipe saves after every step. A kill after step k leaves checkpoints up to k, the config, and a log
that is ahead of them and torn. The run resumes from that, and must end with the first run's files, bit-exact.
EA_FULL=1 cuts at ten points with 0 and with 2 workers, and kills five saves of each recipe; without it, one point
without workers, another with two (of the later stages of a recipe, one of the two), and one killed save.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ea_runtime
from ea_runtime.cli.main import run
from ea_runtime.plugins.host import get_host, set_host
from ea_runtime.training.run import loop, state
from ea_runtime.training.update.average import WeightAverage

pytestmark = pytest.mark.slow

FULL = os.environ.get("EA_FULL") == "1"
STEPS = 12 if FULL else 7
#: (step after which the run is cut, workers)
CUTS = [(cut, w) for w in (0, 2) for cut in (1, 2, 3, 4, 5, 6, 7, 8, 10, 11)] if FULL else [(2, 0), (5, 2)]
#: stages whose recipe has both cuts in another one
ONE_CUT = {} if FULL else {"vae-slice": 0, "vae-slice-decoder": 1, "dit-motion": 1, "dit-finetune": 0}
SELDOM = STEPS // 2  # steps between two saves of the text encoder
PARTS = Path(ea_runtime.__file__).parent / "tiny"  # its VAE and text encoder encode the set
CLOCK = ("seconds", "wait", "memory")
Tables = dict[str, Any]

TRAIN: Tables = {"steps": STEPS, "batch_size": 3, "save_every": 1, "keep": 99, "seed": 3, "threads": 1}
TRAIN |= {"lr": 2e-3, "muon_lr": 5e-3, "warmup": 3, "ema": 0.9, "weight_decay": 0.01}
VAE_MODEL: Tables = {"ch": 4, "ch_mult": [1, 1, 1, 2], "layers_per_block": 1, "norm_num_groups": 1}
VAE_MODEL |= {
    "latent_channels": 4,
    "down_block_types": ["SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3],
    "up_block_types": ["SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3],
}
VAE_MODEL |= {"mid_block_attention_type": "3d", "mini_batch_encoder": 9, "mini_batch_decoder": 3}
CRITIC: Tables = {"channels": 8, "num_layers": 2, "clip_channels": [8, 8]}
VAE: Tables = {
    "data": {"path": "set", "size": 32, "num_frames": 9, "limit": 8},
    "loss": {"perceptual": 0.0, "adversarial": 0.5, "adversarial_start": 3},
    "discriminator": CRITIC,
    "train": {"accumulate": 2},
}
DIT_MODEL: Tables = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_layers": 4,
    "cross_attention_dim": 32,
    "caption_channels": 64,
    "sample_size": 8,
    "motion_module_kwargs": {"num_attention_heads": 4, "temporal_position_encoding_max_len": 16},
}
DIT: Tables = {"data": {"path": "set", "parts": str(PARTS), "num_frames": 18, "limit": 12}}

#: name -> the recipe and its tables. `start` (next to them): the run whose `final/` it starts from.
NETWORK: Tables = {"rank": 4, "alpha": 4.0, "dropout": 0.1, "text": True}
LORA_DATA: Tables = {"path": "set", "num_frames": 9, "limit": 9}
RUNS: dict[str, tuple[str, Tables]] = {
    # each save reads thousands of captions
    "text": ("text", {"data": {"num_samples": 60}, "train": {"save_every": SELDOM}}),
    "vae-magvit": ("vae", {**VAE, "stage": "magvit", "model": VAE_MODEL}),
    "vae-slice": ("vae", {**VAE, "stage": "slice", "start": "vae-magvit"}),
    "vae-slice-decoder": ("vae", {**VAE, "stage": "slice-decoder", "start": "vae-slice"}),
    "dit-align": ("dit", {**DIT, "stage": "align", "model": DIT_MODEL}),
    "dit-motion": ("dit", {**DIT, "stage": "motion", "start": "dit-align", "train": {"dtype": "bf16"}}),
    "dit-finetune": ("dit", {**DIT, "stage": "finetune", "start": "dit-motion", "train": {"accumulate": 2}}),
    "lora": ("lora", {"base": {"model": "tiny"}, "network": NETWORK, "data": LORA_DATA}),
}


class Place:
    """A folder with a drawn set and the recipes' first runs, made on request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.orders: dict[str, dict[int, list[int]]] = {}

    def first_run(self, name: str) -> Path:
        """runs/NAME: from start to end, one checkpoint per step."""
        out = self.folder / "runs" / name
        if not out.exists():
            start = RUNS[name][1].get("start")
            if start:
                self.first_run(start)
            self.train(name, out)
        return out

    def train(self, name: str, out: Path, *flags: str, code: int = 0) -> None:
        with recorded_order() as order:
            assert run(self.words(name, out, *flags)) == code
        self.orders[out.name] = order

    def words(self, name: str, out: Path, *flags: str) -> list[str]:
        recipe, tables = RUNS[name]
        tables = dict(tables)
        start = tables.pop("start", None)
        if start:
            tables["init"] = {"folder": str(self.folder / "runs" / start / "final")}
        tables["train"] = {**TRAIN, **tables.get("train", {})}
        tables["run"] = {"recipe": recipe, "out": str(out)}
        config = self.folder / f"{name}.toml"
        config.write_text(toml(tables))
        return ["train", recipe, str(config), *flags]

    def killed_after(self, name: str, step: int, out: Path) -> None:
        """Copies the files of a process killed between two saves, with its log ahead of them and torn."""
        first = self.first_run(name)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for number, checkpoint in loop.checkpoints(first):
            if number <= step:
                shutil.copytree(checkpoint, out / checkpoint.name)
        shutil.copy(first / "config.toml", out)
        lines = (first / "log.jsonl").read_text().splitlines()
        (out / "log.jsonl").write_text("\n".join(lines[: step + 1]) + '\n{"step": 99, "lo')
        (out / f".checkpoint-{step + 1}.partial-1").mkdir()


class recorded_order:
    """Step -> samples, as the loop asks for them."""

    def __enter__(self) -> dict[int, list[int]]:
        self.patch, order = pytest.MonkeyPatch(), {}
        jobs_of = loop.Trainer._jobs_of

        def recorded(trainer: loop.Trainer, step: int) -> Any:
            jobs = jobs_of(trainer, step)
            order[step] = [index for job in jobs for index in job.indices]
            return jobs

        self.patch.setattr(loop.Trainer, "_jobs_of", recorded)
        return order

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def toml(tables: Tables) -> str:
    """Tables as TOML, plain values first, as TOML requires."""
    import tomli_w

    plain = {key: value for key, value in tables.items() if not isinstance(value, dict)}
    return tomli_w.dumps(plain | {key: value for key, value in tables.items() if isinstance(value, dict)})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, before = tmp_path_factory.mktemp("resume"), Path.cwd()
    os.chdir(folder)
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    assert run(["data", "draw", "set", "--num-clips", "8", "--num-pictures", "8"]) == 0
    yield Place(folder)
    os.chdir(before)
    torch.set_num_threads(threads)
    torch.set_rng_state(random_state)
    set_host(None)


def what_is_left(out: Path, since: int) -> dict[str, Any]:
    """Every tensor and number of the checkpoints after `since` and of `final`, and the log without clock values."""
    found: dict[str, Any] = {}
    for folder in [*(path for step, path in loop.checkpoints(out) if step > since), out / "final"]:
        for path in sorted(folder.rglob("*.safetensors")):
            where = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            found |= {f"{where}/{key}": value for key, value in load_file(path).items()}
        if folder.name != "final":
            found[f"{folder.name}/state.json"] = json.loads((folder / "state.json").read_text())
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    found["log"] = [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]
    return found


def differing(place: Place, name: str, out: Path, since: int) -> list[str]:
    """Differences after `since` between a run and the first one, including other samples."""
    one, other = what_is_left(place.first_run(name), since), what_is_left(out, since)
    assert one.keys() == other.keys()
    assert len(one) > 10
    found = [
        key
        for key, value in one.items()
        if not (torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key])
    ]
    order, resumed = place.orders[name], place.orders[out.name]
    assert resumed
    if any(order[step] != indices for step, indices in resumed.items()):
        found.append("order")
    return found


@pytest.mark.parametrize("name", RUNS)
def test_a_cut_run_is_an_uncut_one(name: str, place: Place) -> None:
    if RUNS[name][0] not in get_host().records("recipes"):
        pytest.skip(f"no recipe {RUNS[name][0]!r} is installed")
    place.first_run(name)
    cuts = CUTS if name not in ONE_CUT else [CUTS[ONE_CUT[name]]]
    # before its first save the text encoder's run would only begin anew
    for cut, workers in cuts if name != "text" or FULL else cuts[1:]:
        out = place.folder / f"cut-{name}-{cut}-{workers}"
        place.killed_after(name, cut, out)
        place.train(name, out, "--resume", f"--set=train.workers={workers}")
        assert differing(place, name, out, cut) == [], f"cut after step {cut}, {workers} workers"
        shutil.rmtree(out)


KILLED = """
import os, signal, sys
count = 0
def hook(event, arguments):
    global count
    if event in ("open", "os.rename", "os.mkdir") and any(".checkpoint-6.partial" in str(a) for a in arguments):
        count += 1
        if count == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from ea_runtime.cli.main import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("name", RUNS if FULL else ["dit-motion"])
def test_killed_while_saving(name: str, place: Place) -> None:
    """SIGKILL at file operations of the save at step 6: the run resumes from the save before, bit-exact."""
    place.first_run(name)
    for operation in (1, 3, 5, 8, 11) if FULL else (5,):
        out = place.folder / f"killed-{name}-{operation}"
        words = [sys.executable, "-c", KILLED, str(operation), *place.words(name, out)]
        killed = subprocess.run(words, capture_output=True, timeout=600, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
        assert loop.checkpoints(out)[-1][0] == (0 if name == "text" else 5)
        assert operation == 1 or list(out.glob(".checkpoint-6.partial-*"))  # the first makes the folder
        place.train(name, out, "--resume")
        assert differing(place, name, out, 0) == [], f"killed at file operation {operation}"
        assert not list(out.glob(".checkpoint-*"))
        shutil.rmtree(out)


def forget_seed(patch: pytest.MonkeyPatch) -> None:
    """Makes draws depend on how often this process has drawn, like a generator whose state is not saved."""
    from ea_runtime.training.run import step

    calls = iter(range(10_000))
    patch.setattr(step, "seed_of", lambda *numbers: next(calls))


def forget_averages(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WeightAverage, "load_state_dict", lambda self, values: None)


def forget_moments(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(state, "_load_optimizer", lambda *arguments: None)


def forget_order(patch: pytest.MonkeyPatch) -> None:
    """Restarts the order of samples with each process."""
    draw = loop.PhaseOrder.draw
    started: list[int] = []

    def restarted(order: loop.PhaseOrder, step: int) -> Any:
        started.append(step)
        return draw(order, step - started[0])

    patch.setattr(loop.PhaseOrder, "draw", restarted)


@pytest.mark.parametrize("lost", [forget_seed, forget_averages, forget_moments, forget_order])
def test_a_resume_that_loses_something_is_noticed(
    lost: Callable[[pytest.MonkeyPatch], None], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deliberately broken twins: the comparison above catches each of them."""
    name, cut = "dit-motion", 5
    out = place.folder / f"twin-{lost.__name__}"
    place.first_run(name)
    place.killed_after(name, cut, out)
    lost(monkeypatch)
    place.train(name, out, "--resume")
    monkeypatch.undo()
    found = differing(place, name, out, cut)
    assert found
    assert ("order" in found) == (lost is forget_order)
    assert ("log" in found) == (lost is not forget_averages)
