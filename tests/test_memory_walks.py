"""Memory by configs alone against what torch allocates for the networks themselves, on small ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ea_dit import Transformer3DModel
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.models.memory.denoiser import DenoiserShape, LoraRanks, Pass, StepInput, walk_step
from ea_runtime.models.memory.meter import Meter
from ea_runtime.models.memory.vae import decoded_pieces, walk_decode, walk_encode
from ea_vae import AutoencoderKLMagvit
from ea_vae.network.chunking import decode_pieces

DENOISER: dict[str, Any] = {
    "num_layers": 7,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "cross_attention_dim": 128,
    "caption_channels": 32,
    "sample_size": 8,
}
_MOTION = {"num_attention_heads": 4}
KINDS: dict[str, dict[str, Any]] = {
    "V2": DENOISER,
    "grid": DENOISER
    | {"motion_module_type": "VanillaGrid", "motion_module_kwargs": _MOTION | {"block_size": 4}},
    "V3": DENOISER
    | {
        "in_channels": 12,
        "basic_block_type": "global_motionmodule",
        "motion_module_kwargs_even": _MOTION,
        "motion_module_kwargs_odd": _MOTION | {"attention_block_types": ["Temporal_Self", "Global_Self"]},
    },
}
VAE: dict[str, Any] = {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "norm_num_groups": 8}
SLICE = VAE | {"slice_compression_vae": True, "mini_batch_encoder": 8, "mini_batch_decoder": 2}


def allocated(run: Callable[[], Any]) -> int:
    """The most bytes that torch had allocated during `run`, over what was there before."""
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    total = peak = 0
    profiler: Any = seen.profiler
    for event in sorted(profiler.kineto_results.events(), key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


def step_of(config: dict[str, Any], step: StepInput) -> tuple[int, int]:
    """Bytes of a network pass: allocated, and walked."""
    torch.manual_seed(0)
    network = Transformer3DModel(**config).eval()
    rows = step.videos * step.branches
    mask = torch.zeros(rows, 120)
    for row, length in enumerate(step.text_tokens[::-1] if step.branches == 2 else step.text_tokens[:1]):
        mask[row * step.videos : (row + 1) * step.videos, :length] = 1
    x = torch.randn(step.videos, 4, step.frames, step.rows, step.columns)
    known = {"inpaint_latents": torch.cat([x, x], dim=1)} if config.get("in_channels") == 12 else {}
    with torch.inference_mode():
        prepared = network.prepare(torch.randn(rows, 120, 32), mask, [1.0])
    found = allocated(lambda: network(x, 1.0, prepared=prepared, **known))
    meter = Meter()
    walk_step(meter, dict(network.config), step)
    return found, meter.peak - kept(config, step)


def kept(config: dict[str, Any], step: StepInput) -> int:
    """Bytes of latents and of the prepared prompt, which are there before the pass."""
    shape = DenoiserShape.of(config)
    own = Meter()
    Pass(own, shape, step, LoraRanks()).prepare()
    latents = step.videos * 4 * step.frames * step.rows * step.columns
    return own.now + 4 * latents * (8 if config.get("in_channels") == 12 else 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "step", [StepInput(1, 2, 3, 16, 16), StepInput(2, 1, 2, 16, 8, (40, 1)), StepInput(1, 2, 1, 16, 16)]
)
def test_a_denoising_pass(kind: str, step: StepInput) -> None:
    found, walked = step_of(KINDS[kind], step)
    assert walked == pytest.approx(found, rel=0.03)


def test_a_walk_that_forgets_the_skips_is_caught() -> None:
    step = StepInput(1, 2, 3, 16, 16)
    found, walked = step_of(DENOISER, step)
    broken = Meter()
    walk_step(broken, DENOISER | {"enable_uvit": False}, step)
    assert broken.peak - kept(DENOISER, step) < 0.93 * found
    assert walked > 0.97 * found


@pytest.mark.parametrize(
    ("config", "frames", "sides"), [(VAE, 3, 0), (VAE, 1, 0), (SLICE, 2, 2), (SLICE, 1, 0)]
)
def test_a_decoded_piece(config: dict[str, Any], frames: int, sides: int) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLMagvit(**config).eval()
    mode = "causal" if config is VAE else "single" if frames == 1 else "slice"
    z = torch.randn(1, 4, frames + 2 * sides, 16, 16)
    found = allocated(lambda: vae.decode_piece(z, mode, sides, sides))
    meter = Meter(has_scratch=True)
    walk_decode(meter, dict(vae.config), frames, 16, 16, before=sides, after=sides)
    assert meter.peak == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize(("config", "frames"), [(VAE, 9), (SLICE, 8)])
def test_an_encoded_piece(config: dict[str, Any], frames: int) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLMagvit(**config).eval()
    x = torch.randn(1, 3, frames, 64, 64)
    found = allocated(lambda: vae.encode_piece(x, "causal" if config is VAE else "slice"))
    meter = Meter(has_scratch=True)
    walk_encode(meter, dict(vae.config), frames, 64, 64)
    assert meter.peak - 4 * x.numel() == pytest.approx(found, rel=0.04)


@pytest.mark.parametrize("is_slice", [False, True], ids=["magvit", "slice"])
def test_pieces_of_a_video_are_those_that_the_vae_decodes(is_slice: bool) -> None:
    config: dict[str, Any] = {"mini_batch_decoder": 2, "mini_batch_encoder": 8} if is_slice else {}
    settings = AutoencoderKLMagvit(**VAE, slice_compression_vae=is_slice, **config).settings
    for latents in (1, 2, 3, 4, 5, 9, 12):
        if is_slice or latents % 3 == 0 or latents == 1:
            pieces = decode_pieces(latents, settings)
            wanted = Counter((one.stop - one.start, one.num_before, one.num_after) for one in pieces)
            assert decoded_pieces(latents, settings.mini_batch_decoder, is_slice) == wanted


def test_the_plan_of_a_pipeline() -> None:
    pipe = VideoPipeline(AutoencoderKLMagvit(**VAE), Transformer3DModel(**DENOISER))
    plan = pipe.plan("a circle", num_inference_steps=3, num_frames=36, height=128, width=128)
    assert plan.fits
    assert (plan.steps, plan.dtype, plan.way.is_tiled) == (3, "float32", False)
    small = pipe.plan("a circle", memory="500MB", num_frames=36, height=128, width=128)
    assert not small.fits
    longer = pipe.plan("a circle", num_frames=72, height=128, width=128)
    assert longer.phase("denoising").flops > 1.9 * plan.phase("denoising").flops / 3
    with pytest.raises(ValueError, match="`plan` takes the arguments of a call, got 'frames'"):
        pipe.plan("a circle", frames=9)
