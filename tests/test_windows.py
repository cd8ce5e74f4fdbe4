"""Windows of long videos through real networks of both kinds, with random weights."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from ea_dit import Transformer3DModel
from ea_runtime import VideoPipeline
from ea_runtime.generation.known_frames import encode_known_frames
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.window_inputs import WindowInputs
from ea_runtime.models.layout import GenerationDefaults
from ea_vae import AutoencoderKLMagvit

SLICE = {"slice_compression_vae": True, "mini_batch_encoder": 8, "mini_batch_decoder": 2}
SETTINGS: dict[str, Any] = {
    "height": 32,
    "width": 32,
    "num_inference_steps": 2,
    "guidance_scale": 1.0,
    "seed": 1,
}


def make_pipe(is_slice: bool, channels: int) -> VideoPipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small: dict[str, Any] = {
            "ch": 8,
            "ch_mult": [1, 1, 1, 1],
            "layers_per_block": 1,
            "norm_num_groups": 4,
        }
        vae = AutoencoderKLMagvit(**small, **(SLICE if is_slice else {}))
        motion = {"num_attention_heads": 4, "temporal_position_encoding_max_len": 24}
        sizes = {
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "cross_attention_dim": 32,
            "caption_channels": 16,
        }
        denoiser = Transformer3DModel(
            num_layers=3, in_channels=channels, out_channels=8, motion_module_kwargs=motion, **sizes
        )
        for parameter in denoiser.parameters():  # those that begin as zeros would hide what they are given
            if not parameter.abs().sum():
                torch.nn.init.normal_(parameter, std=0.2)
    own = GenerationDefaults(num_frames=16 if is_slice else 18)
    return VideoPipeline(vae, denoiser, defaults=own, dtype="float32", device="cpu")


@pytest.mark.parametrize("is_slice", [False, True], ids=["magvit", "slice"])
def test_carried_latents_equal_encoding_the_same_frames(is_slice: bool) -> None:
    """So a model of 12 channels gets from latents what it would get from the frames, mask and black included."""
    pipe = make_pipe(is_slice, 12)
    vae, geometry, config = pipe.vae, pipe.geometry, pipe.denoiser.config
    count = 33 if is_slice else 36  # of a slice VAE, frame 0 alone
    request = ModelRequest(num_frames=count, sampler="euler", smooth=True, **SETTINGS).checked(
        geometry, defaults=pipe.defaults
    )
    windows = request.windows(geometry)
    inputs = WindowInputs(
        request, windows, vae, geometry, config, 1, lambda one: (None, ()), lambda *_: iter(())
    )
    video = torch.rand(1, 3, count, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        made = vae.encode_video(video * 2 - 1) * geometry.scale
        for number in (0, 1):
            window = windows.all[number]
            known = inputs.of(number, range(1), [made[:, :, : window.start + window.before]][:number])
            part = video[:, :, window.first : window.last]
            mask = torch.ones_like(part[:, :1])
            mask[:, :, : window.frames_before] = 0
            wanted = encode_known_frames(vae, geometry, config, part, mask)
            assert known is not None
            assert known.inputs is not None
            assert wanted.inputs is not None
            assert torch.equal(known.inputs, wanted.inputs), number
            # the twin: frames that are not those of the carried latents
            other = encode_known_frames(vae, geometry, config, part.flip(2), mask)
            assert number == 0 or not torch.equal(known.inputs, other.inputs)


@pytest.mark.parametrize(("is_slice", "channels"), [(False, 4), (True, 12)])
def test_windows_continue_each_other(is_slice: bool, channels: int) -> None:
    pipe = make_pipe(is_slice, channels)
    text = {"prompt_embeds": torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(3))}
    count = 32 if is_slice else 36
    noise = torch.randn(
        1, 4, pipe.geometry.num_latents(count), 4, 4, generator=torch.Generator().manual_seed(4)
    )
    result = pipe(num_frames=count, latents=noise, **text, **SETTINGS)
    assert result.frames is not None
    assert result.frames.shape == (1, count, 32, 32, 3)
    again = pipe(num_frames=count, latents=noise, **text, **SETTINGS)
    assert torch.equal(again.latents, result.latents)
    # another beginning leads to another end, though the noise there is the same
    noise[:, :, 0] += 1
    other = pipe(num_frames=count, latents=noise, output="latents", **text, **SETTINGS)
    last = result.latents.shape[2] - 1
    assert not torch.equal(other.latents[:, :, last], result.latents[:, :, last])
    looped = pipe(num_frames=count, latents=noise, loop=True, **text, **SETTINGS)
    assert looped.frames is not None
    assert looped.frames.shape[1] == count


def test_what_windows_encode_in_their_turn_is_encoding_and_not_denoising() -> None:
    pipe = make_pipe(False, 12)
    slow, spent = pipe.vae.encode_video, []

    def encode_video(*args: Any) -> torch.Tensor:
        started = time.perf_counter()
        time.sleep(0.01)
        try:
            return slow(*args)
        finally:
            spent.append(time.perf_counter() - started)

    pipe.vae.encode_video = encode_video  # pyright: ignore[reportAttributeAccessIssue]
    started = time.perf_counter()
    found = pipe(prompt_embeds=torch.ones(1, 4, 16), num_frames=36, output="latents", **SETTINGS)
    whole = time.perf_counter() - started
    assert len(spent) >= 2
    assert sum(spent) <= found.timings["encoding"] <= whole - found.timings["denoising"]
