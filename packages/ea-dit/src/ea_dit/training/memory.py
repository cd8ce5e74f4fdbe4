"""What training a network takes, part by part, without computing anything: shapes on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ea_dit.network.model import Transformer3DModel

TEXT_TOKENS = 120  # of V2's prompts


def memory_by_part(
    model: Transformer3DModel,
    chosen: Mapping[str, bool],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    checkpointing: bool,
) -> dict[str, int]:
    """Bytes by part: weights, gradients, optimiser (AdamW's two moments), averages, the copy that is computed with,
    and the activations that one sample of `shape` (t, h, w; latents) keeps for the backward pass.

    Weights, gradients, moments and averages are float32. Buffers count as weights. Attention scores count as they are
    kept on a CPU; a fused kernel keeps none of them.
    """
    weights = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    trained = sum(p.numel() for name, p in model.named_parameters() if name in chosen)
    copy = 0 if dtype == torch.float32 else weights * dtype.itemsize
    return {
        "weights": weights * 4,
        "gradients": trained * 4,
        "optimizer": trained * 8,
        "average": trained * 4,
        "computing copy": copy,
        "activations of one sample": activation_bytes(model, chosen, shape, dtype, checkpointing),
    }


def activation_bytes(
    model: Transformer3DModel,
    chosen: Mapping[str, bool],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    checkpointing: bool,
) -> int:
    """What autograd keeps of one sample, weights not counted; each storage once. With checkpointing an estimate."""
    with torch.device("meta"):
        twin = cast("Transformer3DModel", Transformer3DModel.from_config(model.config))
        nn.Module.to(twin, dtype)  # the mixin's own warns of lists of modules that this class has not
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(name in chosen)
        twin.set_motion_modules(model.blocks[0].use_motion)
        twin.train()
        latents = torch.empty(1, model.cfg.in_channels, *shape, dtype=dtype)
        text = torch.empty(1, TEXT_TOKENS, model.cfg.text_width, dtype=dtype)
        sizes = {"resolution": torch.empty(1, 2), "aspect_ratio": torch.empty(1, 1)}
    known = {p.untyped_storage()._cdata for p in (*twin.parameters(), *twin.buffers())}
    kept: dict[int, Tensor] = {}  # tensors stay alive, so that no storage's number is given twice

    def count(tensor: Tensor) -> Tensor:
        number = tensor.untyped_storage()._cdata
        if number not in known:
            kept.setdefault(number, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t), sdpa_kernel(SDPBackend.MATH):
        twin(latents, torch.zeros(1, device="meta"), text, added_cond_kwargs=sizes)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    if not checkpointing:
        return total
    cfg = model.cfg  # with checkpointing: what enters each block, and one block at a time in full
    tokens = shape[0] * (shape[1] // cfg.patch_size) * (shape[2] // cfg.patch_size)
    return cfg.num_layers * tokens * cfg.width * dtype.itemsize + total // cfg.num_layers
