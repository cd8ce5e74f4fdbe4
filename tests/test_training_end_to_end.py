"""The making of the bundled model, with a few steps each: drawn set, text, VAE, denoiser, model folder, video.

The commands are the card's and the configs those of configs/tiny, with less work.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ea_runtime import VideoPipeline
from ea_runtime.cli.main import run
from ea_runtime.plugins.host import set_host
from ea_runtime.training.update.precision import has_bf16

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs" / "tiny"
#: "auto" depends on the processor, so a test names its format.
SHORT = [
    "train.dtype=fp32",
    "train.processes=1",
    "train.threads=1",
    "train.batch_size=4",
    "train.save_every=9",  # at the end alone: a save hashes and encodes as much as steps do
    "train.warmup=1",
]
OFTEN = "train.save_every=2"
Ea = Callable[..., list[str]]


@pytest.fixture
def ea(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Ea]:
    """ea(*words, code=0): the program in an empty folder; checks the exit code and returns the output."""
    monkeypatch.chdir(tmp_path)
    threads, state = torch.get_num_threads(), torch.get_rng_state()

    def call(*words: str, code: int = 0) -> list[str]:
        assert run(list(words)) == code
        return capsys.readouterr().err.splitlines()

    yield call
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    set_host(None)


def bundle(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    spec = importlib.util.spec_from_file_location("bundle_tiny", ROOT / "tools" / "bundle_tiny.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["bundle_tiny.py", *words])
    module.main()


def train(ea: Ea, config: str, steps: int, *settings: str, code: int = 0) -> list[str]:
    recipe = config.partition("-")[0]
    chosen = [
        f"--set={setting}" for setting in (*SHORT, f"train.steps={steps}", *settings) if setting[0] != "-"
    ]
    flags = [setting for setting in settings if setting[0] == "-"]
    return ea("train", recipe, str(CONFIGS / f"{config}.toml"), *chosen, *flags, code=code)


def assert_nothing_skipped() -> None:
    logs = {path: path.read_text().splitlines() for path in Path("runs").glob("*/log.jsonl")}
    assert logs
    assert [path for path, rows in logs.items() if any(json.loads(row)["skipped"] for row in rows)] == []


@pytest.mark.slow
def test_every_stage_in_bf16(ea: Ea, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_bf16("cpu"):
        pytest.skip("this processor has no bf16 arithmetic")
    ea("data", "draw", "data/drawn", "--num-clips", "6", "--num-pictures", "6")
    train(ea, "text", 2, "data.num_samples=200")
    for name, size in (("vae-pictures", 4), ("vae-clips", 2), ("vae-clips-more", 2)):
        train(ea, name, 2, "train.dtype=bf16", f"train.batch_size={size}")
    parts = ("--vae", "runs/vae-clips-more/final", "--text", "runs/text/final")
    bundle(monkeypatch, *parts, "--out", "runs/parts")
    for name in ("dit-align", "dit-motion", "dit-finetune", "dit-finetune-more"):
        train(ea, name, 2, "train.dtype=bf16")
    assert_nothing_skipped()


@pytest.mark.slow
def test_from_nothing_to_a_video(ea: Ea, monkeypatch: pytest.MonkeyPatch) -> None:
    ea("data", "draw", "data/drawn", "--num-clips", "6", "--num-pictures", "6")
    train(ea, "text", 4, "data.num_samples=300")
    train(ea, "vae-pictures", 3)
    assert "latents whitened" in train(ea, "vae-clips", 2, "train.batch_size=2")[-2]
    train(ea, "vae-clips-more", 2, "train.batch_size=2")
    parts = ("--vae", "runs/vae-clips-more/final", "--text", "runs/text/final")
    bundle(monkeypatch, *parts, "--out", "runs/parts")
    train(ea, "dit-align", 3)
    assert {p.suffix for p in Path("data/drawn/cache").rglob("*") if p.is_file()} <= {".safetensors", ".json"}
    train(ea, "dit-motion", 2, "run.out=runs/by workers", "train.workers=2")

    train(ea, "dit-motion", 5, OFTEN, "run.out=runs/whole")
    stopped = stop_after(2)
    assert "step 3 of 5 is saved; --resume continues from there" in train(
        ea, "dit-motion", 5, OFTEN, code=130
    )
    stopped.undo()
    refused = train(ea, "dit-motion", 5, OFTEN, code=2)
    assert "holds a run at step 3; " in refused[-1]
    assert "--resume" in refused[-1]
    train(ea, "dit-motion", 5, OFTEN, "--resume")
    train(ea, "dit-finetune", 3)
    train(ea, "dit-finetune-more", 2)
    assert_nothing_skipped()
    states = [load_file(f"runs/{name}/checkpoint-5/state.safetensors") for name in ("whole", "dit-motion")]
    assert all(states[0][key].equal(states[1][key]) for key in states[0])
    clock = {"seconds": 0.0, "wait": 0.0, "memory": 0.0}
    logs = [Path(f"runs/{name}/log.jsonl").read_text().splitlines() for name in ("whole", "dit-motion")]
    assert [json.loads(a) | clock for a in logs[0]] == [json.loads(b) | clock for b in logs[1]]

    bundle(monkeypatch, *parts, "--transformer", "runs/dit-finetune-more/final", "--out", "model")
    assert sum(path.stat().st_size for path in Path("model").rglob("*") if path.is_file()) <= 20_000_000
    for path in Path("model").rglob("*.json"):
        assert str(Path.cwd()) not in path.read_text(encoding="utf-8")
    pipe = VideoPipeline.from_pretrained("model", device="cpu")
    frames = pipe("a red circle moves right", num_inference_steps=2, seed=1).frames
    assert frames.shape == (1, 18, 64, 64, 3)


def stop_after(step: int) -> pytest.MonkeyPatch:
    """Makes the loop stop in that step, as SIGTERM does."""
    from ea_runtime.training.data.workers import Fetcher
    from ea_runtime.training.run.loop import Trainer

    context = pytest.MonkeyPatch()
    one_step = Trainer._one_step

    def asked(self: Trainer, fetcher: Fetcher) -> object:
        if self.step == step:
            self._ask_to_stop(15, None)
        return one_step(self, fetcher)

    context.setattr(Trainer, "_one_step", asked)
    return context
