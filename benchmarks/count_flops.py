"""FLOPs of one denoising pass of V2's and V3's published networks, counted on the meta device: nothing is computed.

    uv run --frozen python benchmarks/count_flops.py

One multiplication with its addition is 2 FLOPs. One video, without guidance; a step with guidance is two passes.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

#: height and width in pixels, frames
SIZES = ((768, 768, 144), (512, 512, 144))
#: frames per latent frame: V2's MagViT VAE, V3's slice VAE
RATIOS = {"V2": 3, "V3": 4}
_MOTION: dict[str, Any] = {"num_attention_heads": 16}
#: what V3's published config has in place of the defaults, which are V2's
V3: dict[str, Any] = {
    "in_channels": 12,
    "basic_block_type": "global_motionmodule",
    "motion_module_kwargs_even": _MOTION,
    "motion_module_kwargs_odd": _MOTION | {"attention_block_types": ["Temporal_Self", "Global_Self"]},
}
#: operations of layers; what an attention module runs besides them are its products of queries, keys and values
_LAYERS = ("mm", "addmm", "convolution")


def count(version: str, height: int, width: int, num_frames: int, num_tokens: int = 120) -> Counter[str]:
    """FLOPs of a pass over a video of `num_frames` frames of `height` x `width` pixels and a text of `num_tokens`.

    Keys: "all", and for the products of attention "within frames", "through time" and "over all tokens"; those with the
    text are few.
    """
    from ea_dit import Transformer3DModel

    size = (num_frames // RATIOS[version], height // 8, width // 8)
    with torch.device("meta"), torch.no_grad():
        model = Transformer3DModel(**(V3 if version == "V3" else {})).eval()
        known = {"inpaint_latents": torch.empty(1, 8, *size)} if version == "V3" else {}
        with FlopCounterMode(display=False, depth=100) as counter:
            model(torch.empty(1, 4, *size), torch.empty(1), torch.empty(1, num_tokens, 4096), **known)
    found: Counter[str] = Counter(all=counter.get_total_flops())
    for path, flops in counter.get_flop_counts().items():
        kind = _kind(model, path)
        if kind is not None:
            found[kind] += sum(n for one, n in flops.items() if str(one).split(".")[-1] not in _LAYERS)
    return found


def _kind(model: torch.nn.Module, path: str) -> str | None:
    """The kind of an attention module by its path below the class's name, None for all others."""
    _, _, name = path.partition(".")
    if name.endswith(".attn1"):
        return "within frames"
    if name.split(".")[-2:-1] != ["attention_blocks"]:
        return None
    return "over all tokens" if getattr(model.get_submodule(name), "is_global", False) else "through time"


def main() -> None:
    """Prints TFLOP, one line per size and network."""
    for height, width, num_frames in SIZES:
        for version in RATIOS:
            found = count(version, height, width, num_frames)
            numbers = ", ".join(f"{kind} {flops / 1e12:.1f}" for kind, flops in found.items())
            sys.stdout.write(f"{width}x{height}x{num_frames} {version}: {numbers} TFLOP\n")


if __name__ == "__main__":
    main()
