"""Computing in bf16 or fp16 while weights, gradients and optimiser stay fp32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ea_runtime.machine.casting import dtype_of
from ea_runtime.machine.device import has_bf16
from ea_runtime.training.update.sharded import is_sharded

#: `train.dtype` as torch calls it.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_dtype(asked: str, device: str, recorded: str | None, say: Callable[[str], None]) -> str:
    """`train.dtype` as the run computes: "auto" becomes the type that suits the device, or that of the run.

    recorded: the type of the run that resumes, on whatever machine; None: a new run.
    say: gets the result of auto, and a line if bf16 will be slow because the CPU has no bf16 arithmetic.
    """
    dtype, hint = asked, "set it to auto"
    if asked == "auto":
        dtype = recorded or ("bf16" if has_bf16(device) else "fp32")
        say(
            f"`train.dtype` auto: {dtype} on {device}" + ", as the run was made with" * (recorded is not None)
        )
        hint = "a new run with auto takes fp32 here"
    if dtype == "bf16" and torch.device(device).type == "cpu" and not has_bf16(device):
        say(
            "warning: `train.dtype` is bf16, but this CPU has no bf16 arithmetic: many times slower than fp32; "
            f"{hint}"
        )
    return dtype


def run_in(module: nn.Module, dtype: torch.dtype, *args: Any, **kwargs: Any) -> Any:
    """`module(*args, **kwargs)` on copies of its parameters and buffers in `dtype`.

    Gradients flow back to the fp32 parameters. Unlike autocast this casts each weight once and no activation
    at all, which on a CPU with bf16 arithmetic is about twice as fast for small transformers. Floating inputs
    must be in `dtype` already.
    """
    if dtype == torch.float32:
        return module(*args, **kwargs)
    if is_sharded(module):  # its weights are gathered and cast block by block
        with torch.autocast(next(module.parameters()).device.type, dtype):
            return module(*args, **kwargs)
    named = module.named_parameters()
    tensors = {name: parameter.to(dtype_of(module, name, dtype)) for name, parameter in named}
    for name, buffer in module.named_buffers():
        tensors[name] = buffer.to(dtype) if buffer.is_floating_point() else buffer
    return functional_call(module, tensors, args, kwargs)


def short_attention(device: str) -> AbstractContextManager[Any]:
    """Attention as plain matrix products on the CPU, for training on short sequences (some hundred tokens).

    There the fused kernel's backward pass takes longer than all the rest of a small network.
    """
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
