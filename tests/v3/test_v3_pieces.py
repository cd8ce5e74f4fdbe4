"""Known frames are encoded piece by piece, equal pieces once: the same bits as all at once, for both VAEs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ea_runtime.generation.known_frames import encode_known_frames
from ea_runtime.generation.known_inputs import nothing_known
from ea_runtime.models.geometry import Geometry
from ea_vae import AutoencoderKLMagvit

V3_DENOISER = SimpleNamespace(in_channels=12, out_channels=8)


@pytest.fixture(params=["magvit", "slice"])
def vae(request: pytest.FixtureRequest, v3_source: Path) -> Any:
    """A VAE of either kind that counts what passes its encoder."""
    config = json.loads((v3_source / "vae" / "config.json").read_text())
    if request.param == "magvit":
        config |= {"slice_compression_vae": False, "mini_batch_encoder": 9, "mini_batch_decoder": 3}
    torch.manual_seed(0)
    vae: Any = AutoencoderKLMagvit.from_config(config)
    vae.eval()
    encode, vae.passes = vae.encode_piece, []

    def counted(x: Tensor, *more: Any) -> Tensor:
        vae.passes.append(x.shape[2])
        return encode(x, *more)

    vae.encode_piece = counted
    return vae


def at_once(vae: Any, geometry: Geometry, video: Tensor, mask: Tensor) -> list[Tensor]:
    """Latents of the video, the mask and the masked video, each encoded as a whole."""
    to_make = (mask > 0.5).float()
    parts = (video * 2 - 1, to_make.expand_as(video), torch.where(to_make.bool(), -1.0, video * 2 - 1))
    return [vae.encode_video(part.contiguous()) * geometry.scale for part in parts]


@torch.no_grad()
def test_the_same_bits_from_fewer_passes(vae: Any) -> None:
    geometry = Geometry.from_configs(vae.config, V3_DENOISER)
    count, chunk = (37, 8) if geometry.is_slice else (36, 9)
    empty = nothing_known(1, count, 16, 16)
    first = torch.rand(1, 3, 1, 16, 16).expand(1, 3, count, 16, 16).clone()
    mask = torch.ones(1, 1, count, 16, 16)
    mask[:, :, 0] = 0
    moving = torch.rand(1, 3, count, 16, 16)
    alone = int(geometry.is_slice)
    pieces = [1] * alone + [chunk] * 4 + [4] * alone
    assert [one.stop - one.start for one in geometry.pieces(count)] == pieces
    # black and the mask, of which the slice VAE has pieces of three lengths; the twin: what moves is encoded in full
    expected = (2 + 4 * alone, 5 + 4 * alone, len(pieces) + 4 + 2 * alone)
    inputs = ((empty.video, empty.mask), (first, mask), (moving, mask))
    for (video, given), passes in zip(inputs, expected, strict=True):
        vae.passes.clear()
        known = encode_known_frames(vae, geometry, V3_DENOISER, video, given, posterior="mode")
        done = len(vae.passes)
        vae.passes.clear()
        latents, *further = at_once(vae, geometry, video, given)
        assert torch.equal(known.latents, latents)
        assert known.inputs is not None
        assert torch.equal(known.inputs, torch.cat(further, dim=1))
        assert len(vae.passes) == 3 * len(pieces)
        assert done == passes


@torch.no_grad()
def test_an_exported_vae_without_parameters(vae: Any) -> None:
    geometry = Geometry.from_configs(vae.config, V3_DENOISER)
    count = 2 * geometry.chunk_frames
    video, mask = torch.rand(1, 3, count, 16, 16), torch.ones(1, 1, count, 16, 16)
    exported = SimpleNamespace(encode_video=vae.encode_video)
    one, other = (encode_known_frames(each, geometry, V3_DENOISER, video, mask) for each in (vae, exported))
    assert torch.equal(one.latents, other.latents)
