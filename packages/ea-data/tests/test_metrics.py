"""The metrics that ea-data brings to `ea eval`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ea_data.draw.adherence import adherence
from ea_data.score.warping import Warping, WarpingOptions
from ea_runtime.errors import UserError
from ea_runtime.evaluation.chosen import Chosen, choose
from ea_runtime.evaluation.clip import Clip


def circle(prompt: str | None, num_frames: int = 9, side: int = 64) -> Clip:
    """A small red circle that moves to the right on black."""
    y, x = np.mgrid[0:side, 0:side]
    frames = np.zeros((num_frames, side, side, 3), np.uint8)
    for number in range(num_frames):
        frames[number][np.hypot(x - 16 - 4 * number, y - 32) < 9] = (220, 30, 30)
    return Clip("a.mp4", frames, record={} if prompt is None else {"settings": {"prompt": prompt}})


def test_adherence_is_the_share_of_what_a_prompt_names() -> None:
    assert adherence(circle("a small red circle moves to the right on a black background")) == 1
    assert adherence(circle("a small blue circle moves up on a black background")) == pytest.approx(3 / 5)
    assert adherence(circle("a red fox in the snow")) is None
    assert adherence(circle(None)) is None
    with pytest.raises(UserError, match=r"adherence: .*16 pixels"):
        adherence(
            Clip("a", np.zeros((2, 8, 8, 3), np.uint8), record={"settings": {"prompt": "a red circle"}})
        )


def _texture(num_frames: int) -> np.ndarray:
    """A smooth texture that moves by a pixel and a half a frame."""
    y, x = np.mgrid[0:64, 0:64].astype(float)
    levels = [
        128 + 40 * np.sin((x - 1.5 * n) / 4) + 30 * np.sin((x - 1.5 * n) / 9 + y / 5)
        for n in range(num_frames)
    ]
    return np.repeat(np.stack(levels)[..., None], 3, -1).round().astype(np.uint8)


def test_motion_warps_away_and_boiling_does_not() -> None:
    frames = _texture(6)
    warping = Warping(WarpingOptions())
    moving = warping(Clip("a", frames))
    unmoved = np.abs(np.diff(frames.astype(float), axis=0)).mean()
    assert moving is not None
    assert moving < unmoved / 4
    errors = [moving]
    for strength in (3, 6, 12):
        noise = np.random.default_rng(0).normal(0, strength, frames.shape)
        boiling = np.clip(frames + noise, 0, 255).astype(np.uint8)
        errors.append(warping(Clip("a", boiling)) or 0)
    assert errors == sorted(errors)
    assert errors[1] > 2 * moving
    assert warping(Clip("a", frames[:1])) is None
    assert warping(Clip("a", frames)) == moving


def test_frames_larger_than_the_flow_takes_are_scaled() -> None:
    assert Warping(WarpingOptions(max_side=32))(Clip("a", _texture(3))) is not None


def test_they_are_measured_by_default_and_the_aesthetic_score_if_its_files_are_named(tmp_path: Path) -> None:
    assert {"warping", "adherence"} <= {one.name for one in choose(is_compared=False)}
    with pytest.raises(UserError, match=r"^aesthetic: `clip` is not set; .*; aesthetic: `head` is not set"):
        choose(["aesthetic"], is_compared=False)


def test_the_aesthetic_score_of_a_clip(tmp_path: Path) -> None:
    """The scorer's, of frames spread as it asks for them."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from ea_data.protocols import Frames
    from ea_data.score.aesthetic import ClipAestheticOptions, ClipAestheticScorer

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=8,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    save_file({"weight": torch.randn(1, 8), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    files = {"clip": str(tmp_path / "clip"), "head": str(tmp_path / "head.safetensors"), "frames": 2}
    clip = circle(None, num_frames=8)
    value = Chosen("aesthetic", files).build()(clip)
    scorer = ClipAestheticScorer(ClipAestheticOptions(**files))
    assert value == scorer(Frames(clip.frames[[2, 6]], np.zeros(2)), {}).value
    assert value != scorer(Frames(clip.frames[[0, 1]], np.zeros(2)), {}).value
