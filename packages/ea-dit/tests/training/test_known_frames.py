"""Masks of known frames as V3 draws them, and the channels that they become."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ea_dit import Transformer3DModel
from ea_dit.training.known_frames import KnownChannels, Mask, MaskDraw
from ea_dit.training.start import widened
from ea_runtime.training.recipe import Batch

KINDS = ("all", "start", "ends", "box", "part")
V3 = MaskDraw(dict.fromkeys(KINDS, 1.0), (1, 2, 3, 4))


def kind_of(mask: Mask, num_frames: int) -> str:
    whole = (mask.first, mask.stop) == (0, num_frames)
    if mask.box is not None:
        return "box" if whole else "part"
    return "all" if whole else "start" if mask.stop == num_frames else "ends"


def test_masks_are_drawn_as_the_reference_draws_them() -> None:
    """Five kinds, equally often; 1 to 4 known frames at the ends; boxes of a quarter to three quarters of a side."""
    masks = [V3(5, index, 18, 64, 96) for index in range(4000)]
    counts = Counter(kind_of(mask, 18) for mask in masks)
    assert counts["all"] + counts["start"] + counts["ends"] + counts["box"] + counts["part"] == 4000
    # a "part" may by chance be the whole length
    assert all(abs(counts[kind] - 800) < 110 for kind in KINDS)
    starts = Counter(mask.first for mask in masks if kind_of(mask, 18) == "start")
    assert set(starts) == {1, 2, 3, 4}
    assert all(mask.first == 18 - mask.stop for mask in masks if kind_of(mask, 18) == "ends")
    boxes = np.array([mask.box for mask in masks if mask.box is not None])
    assert boxes.min() >= 0
    assert (boxes[:, 2] <= 64).all()
    assert (boxes[:, 3] <= 96).all()
    heights, widths = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert heights.min() > 0
    assert heights.max() < 48
    assert widths.min() > 0
    assert widths.max() < 72
    parts = [mask for mask in masks if kind_of(mask, 18) == "part"]
    assert all(mask.first < 9 <= mask.stop for mask in parts)


def test_a_mask_is_a_function_of_seed_and_sample_and_keeps_what_is_given() -> None:
    assert V3(1, 2, 18, 64, 64) == V3(1, 2, 18, 64, 64)
    assert len({V3(1, index, 18, 64, 64) for index in range(40)}) > 10
    assert all(kind_of(V3(1, index, 18, 64, 64, "start"), 18) == "start" for index in range(40))
    assert all(kind_of(V3(1, index, 18, 64, 64, "ends"), 18) == "ends" for index in range(40))
    pictures = Counter(kind_of(V3(1, index, 1, 64, 64), 1) for index in range(400))
    assert set(pictures) == {"all", "box"}
    assert abs(pictures["all"] - 200) < 60


class Plain:
    """Encodes chunks of 9 frames to means of pixels, each chunk by itself: 3 latent frames, 8x8 pixels a latent."""

    def __init__(self) -> None:
        self.encoded = 0

    def moments(self, frames: Tensor) -> Tensor:
        b, t = frames.shape[:2]
        assert t in (1, 9, 18)
        self.encoded += b
        pixels = frames.movedim(-1, 1).float() / 127.5 - 1
        time = 1 if t == 1 else 3
        pooled = torch.nn.functional.avg_pool3d(pixels, (time, 8, 8))
        mean = torch.cat([pooled, pooled[:, :1]], dim=1)
        return torch.cat([mean, mean - 3], dim=1)


MASKS = [
    Mask(0, 18),
    Mask(1, 18),
    Mask(9, 18),
    Mask(4, 14),
    Mask(0, 18, (8, 0, 24, 16)),
    Mask(5, 12, (0, 8, 16, 24)),
    Mask(9, 9),
]


def test_channels_equal_encoding_the_mask_and_the_masked_clip() -> None:
    frames = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (len(MASKS), 18, 32, 24, 3), np.uint8)
    )
    coder: Any = Plain()
    known = KnownChannels(coder, 2.0, 9)
    needed = [known.needs_frames(mask, 18) for mask in MASKS]
    assert needed == [False, True, False, True, True, True, False]
    moments = coder.moments(frames)
    given = frames.clone()
    given[[not need for need in needed]] = 77  # not looked at
    batch = Batch(list(range(len(MASKS))), {"frames": given, "masks": MASKS})
    coder.encoded = 0
    found = known(batch, moments, 18, 32, 24)
    assert found.shape == (len(MASKS), 8, 6, 4, 3)
    made = torch.stack([mask.pixels(18, 32, 24) for mask in MASKS])[..., None]
    of_mask = Plain().moments((made * 255).to(torch.uint8).expand(-1, -1, -1, -1, 3))[:, :4]
    shown = Plain().moments(frames.masked_fill(made, 0))[:, :4]
    assert torch.allclose(found, 2 * torch.cat([of_mask, shown], dim=1), atol=1e-6)
    before = coder.encoded
    known(batch, moments, 18, 32, 24)
    # masks without a box are encoded once: 7 masked chunks, and the 4 chunks of boxes
    assert coder.encoded - before == 11


def test_a_widened_model_gives_what_it_gave_before(make_model, make_inputs) -> None:
    model: Transformer3DModel = make_model()
    wide = widened(model).eval()
    inputs = make_inputs()
    known = torch.randn(2, 8, *inputs["hidden_states"].shape[2:])
    assert wide.cfg.has_known_frames
    assert not wide.cfg.has_picture
    with torch.no_grad():
        before, after = model(**inputs).sample, wide(**inputs, inpaint_latents=known).sample
        assert torch.allclose(before, after, atol=1e-6)
        wide.pos_embed.proj.weight += 0.1
        assert not torch.allclose(wide(**inputs, inpaint_latents=known).sample, after, atol=1e-3)
