from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ea_runtime.serve.worker import preview
from ea_runtime.serve.worker.preview import apply_map, draw, drawn_clip, fit_map, pooled


@pytest.fixture(scope="module")
def pipe() -> Any:
    pytest.importorskip("ea_vae")
    pytest.importorskip("ea_dit")
    from ea_runtime import VideoPipeline

    return VideoPipeline.from_pretrained("tiny", device="cpu", dtype="float32")


def quality(pipe: Any, matrix: np.ndarray, seed: int, prompt: str) -> tuple[float, float]:
    """Share of variance, and dB, of a preview against the decoded video at latent size."""
    made = pipe(prompt, seed=seed, num_inference_steps=8)
    latents = made.latents[0].numpy() / pipe.geometry.scale
    clip = np.moveaxis(made.frames[0].astype(np.float32) / 127.5 - 1, -1, 0)  # (3, T, H, W)
    chunks = [pooled(clip[:, start : start + 9], 3, 8, 4) for start in range(0, clip.shape[1], 9)]
    wanted = np.concatenate(chunks, axis=1)
    error = float(np.square(apply_map(latents, matrix) - wanted).mean())
    return 1 - error / float(wanted.var()), 10 * np.log10(4 / error)


def test_the_map_shows_what_the_decoder_will(pipe: Any) -> None:
    matrix = fit_map(pipe)
    found = [
        quality(pipe, matrix, seed, prompt)
        for seed, prompt in ((3, "a red circle moves right"), (4, "a blue square moves up"))
    ]
    assert min(share for share, _ in found) > 0.7
    assert min(decibels for _, decibels in found) > 19
    swapped = matrix[::-1]  # the twin: red for blue
    assert quality(pipe, swapped, 3, "a red circle moves right")[0] < 0.5


def test_the_map_is_kept_by_the_vaes_hash(pipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("EA_CACHE", str(tmp_path))
    first = preview.fitted_map(pipe, "tiny")
    monkeypatch.setattr(preview, "fit_map", lambda pipe: pytest.fail("it is known"))
    assert np.array_equal(preview.fitted_map(pipe, "tiny"), first)
    (tmp_path / "previews.json").write_text("{")
    monkeypatch.setattr(preview, "fit_map", lambda pipe: first + 1)
    assert np.array_equal(preview.fitted_map(pipe, "tiny"), first + 1)


def test_pictures_move_and_are_small() -> None:
    matrix = np.zeros((3, 37), np.float32)
    matrix[0, 16] = 1  # channel 0 of the latent itself is red
    latents = torch.zeros(4, 48, 8, 12)
    latents[0, :, :, 6:] = 1
    latents[0, :, 0, 0] = torch.linspace(-1, 1, 48)  # so that no two frames are equal
    data = draw(latents, matrix, 1.0)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.size, picture.n_frames) == ("WEBP", (132, 88), preview.MAX_FRAMES)
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels[44, 120, 0] > 240
    assert abs(int(pixels[44, 12, 0]) - 128) < 12
    assert len(data) < 20_000
    with Image.open(io.BytesIO(draw(latents[:, :1], matrix, 1.0))) as picture:
        assert getattr(picture, "n_frames", 1) == 1


def test_each_latent_stands_for_its_frames() -> None:
    clip = np.zeros((3, 9, 16, 16), np.float32)
    clip[:, 0], clip[:, 1:5], clip[:, 5:] = 1, 2, 3
    assert pooled(clip, 3, 8, 4)[0, :, 0, 0].tolist() == [1, 2, 3]
    assert pooled(clip[:, :1], 1, 8, 4)[0, :, 0, 0].tolist() == [1]
    assert pooled(clip[:, 1:], 2, 8, 4)[0, :, 0, 0].tolist() == [2, 3]
    assert pooled(clip, 3, 8, 4).shape == (3, 3, 2, 2)


def test_drawn_clips_are_the_same_each_time() -> None:
    for seed in range(3):
        clip = drawn_clip(seed, 9, 64)
        assert clip.shape == (3, 9, 64, 64)
        assert clip.dtype == np.float32
        assert np.abs(clip).max() <= 1
        assert np.array_equal(clip, drawn_clip(seed, 9, 64))
        assert clip.std() > 0.1


def test_previews_come_by_time_and_take_little(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bytes] = []
    now = 0.0
    monkeypatch.setattr(preview.time, "monotonic", lambda: now)
    monkeypatch.setattr(preview, "fitted_map", lambda pipe, model: np.zeros((3, 37), np.float32))

    def costly(*args: Any) -> bytes:
        nonlocal now
        now += 0.1
        return b"picture"

    monkeypatch.setattr(preview, "draw", costly)
    on_preview = preview.Previewer(pipe, "tiny").watch(shown.append)
    for step in range(1000):
        now += 0.1
        on_preview(step, torch.zeros(4, 1, 8, 8))
    assert 10 <= len(shown) <= 1.05 * 0.02 * now / 0.1, "0.1 s each, at most 2% of the time"


def test_a_preview_that_fails_is_the_last(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preview, "EVERY", 0.0)
    calls: list[int] = []

    def broken(*args: Any) -> bytes:
        calls.append(1)
        raise RuntimeError("no pictures today")

    monkeypatch.setattr(preview, "draw", broken)
    on_preview = preview.Previewer(pipe, "tiny").watch(lambda picture: None)
    for step in range(3):
        time.sleep(0.01)
        on_preview(step, torch.zeros(4, 1, 8, 8))
    assert len(calls) == 1
    assert "no pictures today" in caplog.text
