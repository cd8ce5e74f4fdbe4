"""Weights stored as 8-bit floats (e4m3) and computed in the network's own format: diffusers' layerwise casting.

Linears and convolutions alone are stored so: a quarter of float32, half of bfloat16. Norms, embeddings, the first and
last layers and what the network itself names (`_skip_layerwise_casting_patterns`) stay as they are. Each weight is cast
when its module runs and cast back afterwards, so that one module at a time is wide. Approximate: 3 bits of mantissa.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError
from ea_runtime.machine.computing import compute_dtype, hook_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: patterns over module paths that stay wide in every network
KEPT = (
    "pos_embed",
    "patch_embed",
    "position_embed",
    "norm",
    "^proj_in$",
    "^proj_out$",
    "shared",
    "embed_tokens",
    "relative_attention_bias",
)
#: the largest number of e4m3; what is above becomes NaN
LARGEST = 448.0


def store_in_fp8(
    network: Any, part: str = "network", *, dtype: torch.dtype | None = None, keep: tuple[str, ...] = ()
) -> int:
    """Store the weights of a network's linears and convolutions as float8_e4m3fn; it computes as before.

    Args:
        network: a torch module (a VAE, a denoiser, a T5, CLIP), or what holds one as `.model`.
        part: its name in errors.
        dtype: the format that it computes in; None: its present one.
        keep: further patterns (regular expressions) over module paths that stay as they are.

    Returns the bytes that were saved. Calling it again changes nothing. Raises UserError, with the network unchanged,
    for one without such weights and for weights beyond what the format holds.
    """
    import torch
    from diffusers.hooks import apply_layerwise_casting
    from torch import nn

    module = network if isinstance(network, nn.Module) else getattr(network, "model", None)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"fp8 needs a torch network, and the {part} is a {type(network).__name__}; leave it out"
        )
    if is_in_fp8(module):
        return 0
    patterns = (*KEPT, *kept_by(module), *keep)
    found = _cast_by(module, patterns)
    if not found:
        raise UserError(f"fp8 stores linears and convolutions, and the {part} has none; leave it out")
    for name, one in found:
        if not bool(one.weight.detach().abs().amax() <= LARGEST):
            raise UserError(
                f"the {part} cannot be stored in fp8: {name} has weights above {LARGEST:g} or NaN"
            )
    before = _bytes(module)
    apply_layerwise_casting(
        module, torch.float8_e4m3fn, dtype or compute_dtype(module), skip_modules_pattern=patterns
    )
    return before - _bytes(module)


def narrow(network: nn.Module, path: str, layer: nn.Linear, weight: Tensor) -> None:
    """Give a layer that is being loaded its weight as float8_e4m3fn; `compute_in` lets it compute.

    Raises UserError for a weight beyond what the format holds, and on a device that has no such numbers.
    """
    import torch
    from torch import nn

    if weight.device.type == "mps":
        raise UserError("`quantize` fp8-unscaled works on cpu and cuda, got device 'mps'; use int8")
    if not bool(weight.detach().abs().amax() <= LARGEST):
        raise UserError(
            f"`quantize` fp8-unscaled cannot store {path}: it has weights above {LARGEST:g} or NaN; use int8"
        )
    layer.weight = nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False)


def compute_in(network: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Let the layers that `narrow` made compute in a number format; None: the network's."""
    import torch
    from diffusers.hooks import apply_layerwise_casting

    wide = dtype or compute_dtype(network)
    for layer in network.modules():
        if is_narrow(layer):
            apply_layerwise_casting(layer, torch.float8_e4m3fn, wide, skip_modules_pattern=())


def is_narrow(module: nn.Module) -> bool:
    """True for a module whose weight is float8_e4m3fn now."""
    import torch

    weight = module._parameters.get("weight")
    return weight is not None and weight.dtype == torch.float8_e4m3fn


def is_in_fp8(module: nn.Module) -> bool:
    """True if a network's weights are stored by `store_in_fp8` already."""
    return any(hook_of(one, "layerwise_casting") is not None for one in module.modules())


def kept_by(module: nn.Module) -> tuple[str, ...]:
    """Patterns of what a network itself wants to keep wide."""
    own = tuple(getattr(module, "_skip_layerwise_casting_patterns", None) or ())
    wide = tuple(getattr(module, "_keep_in_fp32_modules", None) or ())
    # transformers' T5 casts what comes in to the format in which `wo` is stored
    is_foreign = type(module).__module__.startswith("transformers.")
    if is_foreign or str(compute_dtype(module)) == "torch.float16":
        return (*own, *(rf"(^|\.){name}$" for name in wide))
    return own


def _cast_by(module: nn.Module, patterns: tuple[str, ...]) -> list[tuple[str, Any]]:
    """The modules that are stored narrow, by name: those that diffusers' function takes with the same patterns."""
    import re

    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    return [
        (name, one)
        for name, one in module.named_modules()
        if isinstance(one, kinds) and not any(re.search(pattern, name) for pattern in patterns)
    ]


def _bytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())
