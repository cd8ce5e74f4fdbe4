"""Decoding that starts at a later frame: bit-exact with that part of the whole video, without computing the rest."""

from __future__ import annotations

import os

import pytest
import torch

from ea_vae.network import streaming

FULL = os.environ.get("EA_FULL") == "1"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decoded(vae, z, smooth: bool, start: int = 0, **more) -> torch.Tensor:
    return torch.cat(list(vae.iter_decode(z, smooth, seeded(7), start=start, **more)), dim=2)


@pytest.mark.parametrize("tiled", [False, True], ids=["whole", "tiled"])
@pytest.mark.parametrize("smooth", [False, True], ids=["plain", "smooth"])
@pytest.mark.parametrize(
    ("name", "num_latents"), [("magvit", 9), ("magvit", 11), ("sliced", 6), ("sliced", 9), ("sliced", 2)]
)
def test_every_start_is_bit_exact(request, noise, name, num_latents, smooth, tiled):
    vae = request.getfixturevalue(name)
    z = noise(1, 4, num_latents, 2, 4)
    if tiled:
        vae.enable_tiling(tile_sample_min_size=16)
    whole = decoded(vae, z, smooth)
    # tiles are decoded alike whatever the start is: places in chunks of 8, 9 and 16 frames that follow no chunk
    for start in range(0, whole.shape[2], 5 if tiled and not FULL else 1):
        later = decoded(vae, z, smooth, start)
        assert torch.equal(later, whole[:, :, start:]), f"frame {start}"


@pytest.mark.parametrize("name", ["magvit", "sliced"])
def test_each_video_of_a_batch_keeps_its_noise(request, noise, name):
    vae = request.getfixturevalue(name)
    z = noise(2, 4, 9, 2, 2)

    def frames(start: int) -> torch.Tensor:
        return torch.cat(list(vae.iter_decode(z, generator=[seeded(1), seeded(2)], start=start)), dim=2)

    whole = frames(0)
    for start in (5, 13, 20):
        assert torch.equal(frames(start), whole[:, :, start:])


def test_the_number_of_frames_settles_the_parity(sliced, noise):
    z = noise(1, 4, 6, 2, 2)
    for num_frames in (21, 24):
        whole = decoded(sliced, z, True, num_frames=num_frames)
        assert whole.shape[2] == num_frames
        for start in range(num_frames):
            assert torch.equal(decoded(sliced, z, True, start, num_frames=num_frames), whole[:, :, start:])


@pytest.mark.parametrize("name", ["magvit", "sliced"])
@pytest.mark.parametrize("smooth", [False, True])
def test_what_is_done_is_not_computed_again(request, noise, name, smooth):
    vae = request.getfixturevalue(name)
    passes = []
    vae.decoder.register_forward_hook(lambda *_: passes.append(1))
    z = noise(1, 4, 30, 2, 2)
    total = decoded(vae, z, smooth).shape[2]
    whole = len(passes)
    for part in (0.25, 0.5, 0.75):
        passes.clear()
        decoded(vae, z, smooth, int(part * total))
        assert len(passes) <= (1 - part) * whole + 4


def test_noise_in_another_place_is_caught(magvit, noise, monkeypatch):
    """The twin: without the noise of the chunks before, the result differs."""
    z = noise(1, 4, 9, 2, 2)
    whole = decoded(magvit, z, True)
    assert torch.equal(decoded(magvit, z, True, 14), whole[:, :, 14:])
    right = streaming._noise
    monkeypatch.setattr(
        streaming, "_noise", lambda generator, pieces, config, first: right(generator, pieces, config)
    )
    assert not torch.equal(decoded(magvit, z, True, 14), whole[:, :, 14:])


def test_a_start_outside_is_refused_at_once(magvit, noise):
    z = noise(1, 4, 3, 2, 2)
    for start in (-1, 9):
        with pytest.raises(ValueError, match=f"`start` must be from 0 to 8 for 9 frames, got {start}"):
            magvit.iter_decode(z, start=start)
