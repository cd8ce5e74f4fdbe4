"""The discriminators: shapes, receptive fields, and learning to tell two kinds of clips apart."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from ea_vae.training import losses
from ea_vae.training.discriminator import ClipDiscriminator, Discriminator, FrameDiscriminator, blur_down


@pytest.mark.parametrize(("edge", "logits"), [(24, 1), (64, 6), (128, 14), (256, 30)])
def test_frame_logits(edge: int, logits: int) -> None:
    """Three strided layers, then two kernels of 4 without: edge / 8 - 2."""
    made = FrameDiscriminator(channels=4)
    assert made(torch.zeros(2, 3, edge, edge)).shape == (2, 1, logits, logits)
    assert made.min_size == 24


def test_a_logit_sees_70_pixels() -> None:
    made = FrameDiscriminator(channels=2).double()
    for module in made.modules():  # norms would mix positions
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    x = torch.randn(1, 3, 128, 128, dtype=torch.double, requires_grad=True)
    made(x)[0, 0, 7, 7].backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 1)).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [70, 70]


@pytest.mark.parametrize(("frames", "edge"), [(9, 32), (25, 16), (2, 8)])
def test_clip_logits(frames: int, edge: int) -> None:
    made = ClipDiscriminator(channels=(4, 8, 8))

    def halved(n: int, times: int = 3) -> int:
        for _ in range(times):
            n = -(-n // 2)
        return n

    shape = (2, 1, halved(frames), halved(edge), halved(edge))
    assert made(torch.zeros(2, 3, frames, edge, edge)).shape == shape


def test_published_widths() -> None:
    made = Discriminator()
    assert made.clips.conv_in.weight.shape == (64, 3, 3, 3, 3)
    assert made.frames.layers[0].weight.shape == (64, 3, 4, 4)
    assert [p.shape[0] for n, p in made.frames.named_parameters() if p.ndim == 4] == [64, 128, 256, 512, 1]
    assert float(made.clips.conv_in.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_clips_go_to_both_and_pictures_to_one(noise: Callable[..., torch.Tensor]) -> None:
    made = Discriminator(4, 1, (4, 8))
    clip = noise(2, 3, 5, 16, 16)
    frames, clips = made(clip)
    assert frames.shape[0] == 10
    assert clips.shape[0] == 2
    # frame by frame: the first clip, then the second
    assert torch.allclose(made(clip[:, :, 3:4])[0], frames.view(2, 5, *frames.shape[1:])[:, 3], atol=1e-6)
    assert len(made(clip[:, :, :1])) == 1
    with pytest.raises(
        ValueError, match=r"frames must be at least 6 pixels .*, got 16 x 4; take larger ones"
    ):
        made(torch.zeros(1, 3, 1, 16, 4))


def test_blur_down(noise: Callable[..., torch.Tensor]) -> None:
    assert torch.allclose(
        blur_down(torch.ones(1, 2, 6, 6, 6))[..., 1:, 1:, 1:], torch.ones(1, 2, 3, 3, 3)[..., 1:, 1:, 1:]
    )
    x = noise(1, 2, 5, 4, 4).double()
    taps = (0.25, 0.5, 0.25)
    places = itertools.product(range(3), repeat=3)
    value = sum(taps[i] * taps[j] * taps[k] * x[0, 1, 1 + i, 1 + j, 1 + k] for i, j, k in places)
    assert float(blur_down(x)[0, 1, 1, 1, 1]) == pytest.approx(float(value))


def test_it_learns_to_tell_sharp_from_blurred() -> None:
    torch.manual_seed(0)
    made = Discriminator(8, 2, (8, 16))
    optimiser = torch.optim.Adam(made.parameters(), 2e-3)
    found = []
    for _ in range(30):
        sharp = torch.randn(4, 3, 4, 16, 16)
        blurred = torch.nn.functional.avg_pool3d(sharp, 3, 1, 1)
        real, fake = made(sharp), made(blurred)
        loss = losses.hinge_loss(real, fake)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    assert found[0] == pytest.approx(2.0, abs=0.2)  # both undecided: half of 1 + 1 each
    assert found[-1] < 0.8
