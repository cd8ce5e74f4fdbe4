"""Training with a kernel that is broken in bf16: it is found, named and computed in fp32, or `auto` drops bf16.

The convolution is broken on purpose, so every machine tests it, whatever its own kernels do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ea_runtime import VideoPipeline
from ea_runtime.cli.main import run
from ea_runtime.errors import UserError
from ea_runtime.machine.formats import PartFormats
from ea_runtime.plugins.host import set_host
from ea_runtime.testing.formats import PARTS, broken_convolution
from ea_runtime.training.update import precision

CONFIG = Path(__file__).parents[1] / "configs" / "tiny" / "vae-pictures.toml"
Train = Callable[..., list[str]]


def is_layer(x: Tensor, weight: Tensor) -> bool:
    """True for the shapes of one layer."""
    return tuple(weight.shape[:2]) == (64, 64) and x.shape[-1] == 8


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of eight drawn pictures."""
    folder = tmp_path_factory.mktemp("data") / "drawn"
    words = ["--num-clips=1", "--num-pictures=8", "--height=32", "--width=32"]
    assert run(["data", "draw", str(folder), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def sound_row() -> list[dict[str, float]]:
    """The third line of a sound run's log, once a test has made that run."""
    return []


@pytest.fixture
def train(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Train]:
    """train(*settings, code=0): three steps of a small VAE on eight drawn pictures; returns the output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "has_bf16", lambda device: True)
    threads, state = torch.get_num_threads(), torch.get_rng_state()

    def call(*settings: str, code: int = 0) -> list[str]:
        chosen = [
            f"data.path={drawn}",
            "train.steps=3",
            "train.batch_size=2",
            "train.threads=1",
            "train.warmup=1",
            *settings,
        ]
        words = ["train", "vae", str(CONFIG), *(f"--set={one}" for one in chosen)]
        capsys.readouterr()
        assert run(words) == code
        return capsys.readouterr().err.splitlines()

    yield call
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    set_host(None)


def third_row(folder: str) -> dict[str, float]:
    return json.loads(Path(folder, "log.jsonl").read_text().splitlines()[2])


def skipped(folder: str) -> list[bool]:
    return [json.loads(row)["skipped"] for row in Path(folder, "log.jsonl").read_text().splitlines()]


def test_a_generation_is_watched(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One picture in bf16 with a decoder whose convolutions are broken at one shape, and with sound ones."""
    monkeypatch.setenv("EA_CACHE", str(tmp_path))
    request = {"num_frames": 1, "num_inference_steps": 2, "seed": 1}
    pipe = VideoPipeline.from_pretrained("tiny", device="cpu", dtype="bfloat16")
    sound = pipe("a red circle", **request).frames
    assert not [one for one in caplog.messages if "is wrong here" in one]
    with broken_convolution("output", at=lambda x, weight: x.shape[-1] == 32):
        (tmp_path / "canaries.json").unlink()
        again = VideoPipeline.from_pretrained("tiny", device="cpu", dtype="bfloat16")
        mended = [again("a red circle", **request).frames for _ in range(2)]
        monkeypatch.setattr(PartFormats, "watch", lambda self, network, *key: nullcontext())
        with pytest.raises(UserError, match="NaN"):
            again("a red circle", **request)
    assert all(np.abs(frames.astype(int) - sound.astype(int)).max() <= 6 for frames in mended)
    told = [one for one in caplog.messages if "is wrong here" in one]
    # `tiny` sees the encoded mask and masked video, also where nothing is known
    assert len(told) == 2
    assert "output of Encoder.down_blocks" in told[0]
    assert "output of Decoder.up_blocks" in told[1]


@pytest.mark.parametrize("dtype", ["auto", "bf16"])
@pytest.mark.parametrize("part", PARTS)
def test_one_broken_layer_is_computed_in_fp32(
    part: str, dtype: str, train: Train, sound_row: list[dict[str, float]]
) -> None:
    with broken_convolution(part, at=is_layer):
        said = train(f"train.dtype={dtype}", "run.out=runs/broken")
    wrong = [line for line in said if "is wrong here" in line]
    assert len(wrong) == 1 + (dtype == "auto")  # "auto" looks ahead
    assert all(f"{part} of " in line for line in wrong)
    assert (
        f"{part} of Encoder.down_blocks.2.convs.0.conv2 and 5 more of its shape; computed in fp32"
        in wrong[-1]
    )
    assert skipped("runs/broken") == [False] * 3
    # the run equals a sound machine's, up to rounding
    if not sound_row:
        train("train.dtype=bf16", "run.out=runs/sound")
        sound_row.append(third_row("runs/sound"))
    broken, (sound,) = third_row("runs/broken"), sound_row
    assert broken["loss"] == pytest.approx(sound["loss"], rel=1e-2)
    assert broken["grad_norm"] == pytest.approx(sound["grad_norm"], rel=5e-2)


def test_auto_gives_up_a_format_that_is_wrong_for_most(train: Train) -> None:
    with broken_convolution("input gradient", "weight gradient"):
        said = train("train.dtype=auto", "run.out=runs/auto")
    lines = [line for line in said if line.startswith("`train.dtype`")]
    assert lines[0] == "`train.dtype` auto: bf16 on cpu"
    assert lines[1].startswith("`train.dtype` auto: fp32 after all, bf16 is wrong here for ")
    assert 'dtype = "fp32"' in Path("runs/auto/config.toml").read_text()
    assert skipped("runs/auto") == [False] * 3


def test_unwatched_the_run_ends_with_the_reason(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: without the watch every gradient is NaN. The line names the module, its gradient and the format."""
    from ea_runtime.machine.formats import Formats

    monkeypatch.setattr(
        Formats, "watch", lambda self, key=None: torch.no_grad() if key else torch.enable_grad()
    )
    with broken_convolution("weight gradient", at=is_layer):
        said = train("train.dtype=bf16", "train.steps=30", "run.out=runs/nan", code=2)
    assert skipped("runs/nan") == [True] * 10
    first, last = (line for line in said if "is not finite" in line)
    assert first.startswith("step 1 is skipped: the weight gradient of `vae.")
    assert last.startswith(
        "error: 10 steps in a row were skipped, the last one is 10: the weight gradient of `vae."
    )
    assert "in bf16; set `train.dtype` to fp32" in last
    assert not any("spiked" in line for line in said)
