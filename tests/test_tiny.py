"""The bundled model keeps its card's promises: its size, and videos that show what prompts ask for."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from ea_data.draw.caption import sample_prompts
from ea_data.draw.check import check_prompts, measure
from ea_runtime import VideoPipeline

TINY = Path(str(resources.files("ea_runtime"))) / "tiny"


@pytest.fixture(scope="module")
def pipe() -> VideoPipeline:
    return VideoPipeline.from_pretrained("tiny", device="cpu")


def test_is_at_most_20_mb() -> None:
    size = sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file())
    assert size <= 20_000_000


def test_holds_no_pickles() -> None:
    suffixes = {path.suffix for path in TINY.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".md"}


def test_the_readme_prompt_shows_a_red_circle_that_moves_right(pipe: VideoPipeline) -> None:
    frames = pipe("a red circle moves right", seed=43).frames
    assert frames.shape == (1, 18, 64, 64, 3)
    assert frames.dtype == np.uint8
    seen = measure(frames[0])
    assert (seen.colour, seen.shape, seen.motion, seen.background) == ("red", "circle", "right", "black")


def test_a_picture_is_one_frame(pipe: VideoPipeline) -> None:
    frames = pipe("a large yellow square on a navy background", num_frames=1, seed=43).frames
    assert frames.shape == (1, 1, 64, 64, 3)
    seen = measure(frames[0])
    assert (seen.colour, seen.background) == ("yellow", "navy")


@pytest.mark.slow
def test_prompts_that_training_never_saw(pipe: VideoPipeline) -> None:
    """Twelve of them: enough to catch a broken model, too few for a figure (docs/tiny.md has 100)."""
    prompts = sample_prompts(12, 11, "heldout")
    frames = pipe(prompts, seed=43, num_inference_steps=20, smooth=False, batch_size=12).frames
    report = check_prompts(zip(prompts, frames, strict=True))
    for attribute, least in {"colour": 9, "background": 9, "motion": 6, "shape": 6}.items():
        right, asked = report.counts[attribute]
        assert asked == 12
        assert right >= least, f"{attribute}: {right} of {asked}"


def test_sheets_of_a_training_run_name_no_better_size(
    pipe: VideoPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    from ea_dit.training.options import SampleTable
    from ea_dit.training.samples import sample_videos
    from ea_runtime.training.recipe import Context

    table = SampleTable(sample_prompts=("a red circle",), steps=2, guidance=1)
    context = Context(seed=0, device="cpu", out=Path("."), say=lambda line: None)
    videos = sample_videos(pipe.denoiser, table, "tiny", (1, 64, 64), context)
    assert videos.shape == (1, 1, 64, 64, 3)
    assert "is far from" not in caplog.text
    pipe("a red circle", num_frames=1, height=128, width=128, num_inference_steps=1)  # four times its pixels
    assert "128x128 is far from 64x64" in caplog.text
