"""Rows run one at a time, where memory runs out, are those of the whole batch: float32."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from ea_runtime.generation.denoise import NoisePredictor
from ea_runtime.generation.known_frames import KnownFrames

VIDEOS = 3


class Denoiser(nn.Module):
    """Noise that shows which latents, text and known frames a row had. most: rows that fit into memory."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.counts: list[int] = []

    def forward(
        self, x: Tensor, encoder_hidden_states: Tensor, inpaint_latents: Tensor, **_: Any
    ) -> SimpleNamespace:
        self.counts.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        text = encoder_hidden_states.sum((1, 2)).reshape(-1, 1, 1, 1, 1)
        return SimpleNamespace(sample=x * text + inpaint_latents)


def predicted(most: int, has_guidance: bool) -> tuple[Tensor, list[int]]:
    draw = torch.Generator().manual_seed(0)
    rows = VIDEOS * (1 + has_guidance)
    x = torch.randn(VIDEOS, 2, 1, 2, 2, generator=draw)
    text = torch.randn(rows, 4, 5, generator=draw)
    inputs = torch.randn(VIDEOS, 2, 1, 2, 2, generator=draw)
    known = SimpleNamespace(inputs=inputs, clip=None, is_clip_on=lambda *_: False)
    denoiser = Denoiser(most)
    predict = NoisePredictor(
        denoiser, (text, torch.ones(rows, 4)), {}, 3.0, 2, [9.0], known=cast("KnownFrames", known)
    )
    return predict(x, torch.tensor(9.0)), denoiser.counts


@pytest.mark.parametrize("has_guidance", [False, True])
def test_each_row_keeps_its_video_text_and_known_frames(has_guidance: bool) -> None:
    whole, counts = predicted(100, has_guidance)
    rows = VIDEOS * (1 + has_guidance)
    assert counts == [rows]
    single, counts = predicted(1, has_guidance)
    assert counts == [rows, *[1] * rows]
    torch.testing.assert_close(single, whole)
