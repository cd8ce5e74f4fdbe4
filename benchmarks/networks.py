"""Networks that several benchmarks measure: `tiny`, and the published widths with seeded weights."""

from __future__ import annotations

from typing import Any

import torch


def tiny(part: str) -> Any:
    from ea_runtime.models.loading import load_parts

    return getattr(load_parts("tiny", dtype=torch.float32, parts=(part,)), part)


def published_vae() -> Any:
    """EasyAnimate V2's VAE: 128, 256, 512, 512 channels, two blocks per level."""
    from ea_vae import AutoencoderKLMagvit

    torch.manual_seed(0)
    return AutoencoderKLMagvit(ch=128, ch_mult=(1, 2, 4, 4), layers_per_block=2).eval()


def published_dit(blocks: int) -> Any:
    """EasyAnimate V2's denoiser of width 1,152 with `blocks` of its 28 blocks and no parameter left at zero."""
    from ea_dit import Transformer3DModel

    torch.manual_seed(0)
    model = Transformer3DModel(num_layers=blocks, sample_size=64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.01)
    return model


def known_latents(pipe: Any, **settings: Any) -> torch.Tensor | None:
    """Channels that a pipeline gives a denoiser that takes known frames, for a video that has none (1, 8, t, h, w)."""
    seen: list[torch.Tensor | None] = []
    hook = pipe.denoiser.register_forward_pre_hook(
        lambda module, given, named: seen.append(named.get("inpaint_latents")), with_kwargs=True
    )
    pipe("", num_inference_steps=2, output="latents", **settings)
    hook.remove()
    return None if seen[0] is None else seen[0][:1]


def noise(*shape: int, **where: Any) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(**where)
