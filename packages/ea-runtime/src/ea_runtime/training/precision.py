"""Computing in bf16 or fp16 while weights, gradients and optimiser stay fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ea_runtime.training.sharded import is_sharded

#: `train.dtype` as torch calls it.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def run_in(module: nn.Module, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    """`module(*args, **kwargs)` on copies of its parameters and buffers in `dtype`.

    Gradients flow back to the fp32 parameters. Unlike autocast this casts each weight once and no activation
    at all, which on a CPU with bf16 arithmetic is about twice as fast for small transformers. Floating inputs
    must be in `dtype` already.
    """
    if dtype == torch.float32:
        return module(*args, **kwargs)
    if is_sharded(module):  # its weights are gathered block by block as they are called; each is cast there
        with torch.autocast(next(module.parameters()).device.type, dtype):
            return module(*args, **kwargs)
    tensors = {name: parameter.to(dtype) for name, parameter in module.named_parameters()}
    for name, buffer in module.named_buffers():
        tensors[name] = buffer.to(dtype) if buffer.is_floating_point() else buffer
    return functional_call(module, tensors, args, kwargs)


def short_attention(device: str) -> AbstractContextManager[Any]:
    """Attention as plain matrix products on the CPU, for training on short sequences (some hundred tokens).

    There the fused kernel's backward pass takes longer than the rest of a small network together.
    """
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
