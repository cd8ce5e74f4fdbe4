"""The device and the number format to run on."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError, nearest

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("ea")

DTYPES = ("float32", "bfloat16", "float16")
_SHORT = {"fp32": "float32", "f32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or the best one here: cuda, then mps, then cpu.

    Raises UserError for a name torch does not know and for a device that this machine lacks.
    """
    import torch

    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"`device` must be cpu, cuda, cuda:N or mps, got {device!r}") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            here = f"cuda:0 to cuda:{count - 1}" if count else "no CUDA device that this torch build can use"
            raise UserError(
                f"`device` is {str(chosen)!r}, but this machine has {here}; use cpu or leave it out"
            )
    elif chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("`device` is 'mps', but this machine has no Apple GPU; use cpu or leave it out")
    elif chosen.type not in ("cpu", "cuda", "mps", "meta"):
        raise UserError(f"`device` must be cpu, cuda, cuda:N or mps, got {str(chosen)!r}")
    return chosen


def choose_dtype(device: torch.device, dtype: str | torch.dtype | None = None) -> torch.dtype:
    """The format asked for, or what suits the device: cuda bfloat16, else float32.

    A CUDA card without bfloat16 gets float16, as EasyAnimate V2 advises. Apple GPUs get float32: V2's
    networks overflow float16 in places. On a CPU without bfloat16 arithmetic that is some 30 times slower than float32.

    Raises UserError for a name that is no format.
    """
    import torch

    if dtype is None or dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    chosen = getattr(torch, check_dtype_name(dtype)) if isinstance(dtype, str) else dtype
    if chosen not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise UserError(f"`dtype` must be {', '.join(DTYPES)}, got {dtype}")
    lacks = {torch.bfloat16: not has_bf16(str(device)), torch.float16: not has_fp16(str(device))}
    if device.type == "cpu" and lacks.get(chosen, False):
        logger.warning(
            "%s is emulated on this CPU, many times slower than float32; leave the dtype out",
            dtype_name(chosen),
        )
    return chosen


def has_bf16(device: str) -> bool:
    """True if the device multiplies in bf16 instead of emulating it: CUDA cards, CPUs with AVX-512 BF16 or AMX.

    An AVX2 CPU reached 1 GFLOP/s in bf16, 63 in fp32.
    """
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and _cpu_has(_NO_BF16, "avx512_bf16", "amx_bf16")


def has_fp16(device: str) -> bool:
    """True if the device multiplies in fp16: CUDA cards, CPUs with AVX-512 FP16 or AMX FP16."""
    import torch

    kind = torch.device(device).type
    return kind == "cuda" or (kind == "cpu" and _cpu_has(_NO_FP16, "avx512_fp16", "amx_fp16"))


#: Values of ONEDNN_MAX_CPU_ISA without bf16 arithmetic, and without fp16's.
_NO_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
_NO_FP16 = (*_NO_BF16, "AVX2_VNNI_2", "AVX512_CORE_BF16", "AVX10_1_512", "AVX512_CORE_AMX", "AVX10_1_512_AMX")


def _cpu_has(excluded: tuple[str, ...], *instructions: str) -> bool:
    import torch

    limits = (os.environ.get(name, "").upper() for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"))
    if not torch.backends.mkldnn.is_available() or any(limit in excluded for limit in limits):
        return False
    query = getattr(torch.cpu, "get_capabilities", None)
    if query is None:  # torch 2.9; a CPU with AMX has this too
        known = getattr(torch.cpu, f"_is_{instructions[0]}_supported", lambda: False)
        return bool(known())
    found = query()
    return any(found.get(name) for name in instructions)


def check_dtype_name(name: str) -> str:
    """The full name of a format, from that or a short one ("bf16"). Imports no torch. Raises UserError."""
    full = _SHORT.get(name.lower(), name.lower())
    if full not in DTYPES:
        raise UserError(f"`dtype` must be {', '.join(DTYPES)}, got {name!r}{nearest(name, DTYPES)}")
    return full


def dtype_name(dtype: torch.dtype) -> str:
    """The short name: "float32", not "torch.float32"."""
    return str(dtype).removeprefix("torch.")


def describe(device: torch.device) -> str:
    """The device in words: "cpu (2 threads)", "cuda (NVIDIA H200)"."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"cpu ({threads} thread{'s' if threads > 1 else ''})"
    return str(device)


class Timed:
    """Adds the seconds spent inside to timings[phase]; waits for the GPU before it stops the clock."""

    def __init__(self, phase: str, timings: dict[str, float], device: torch.device) -> None:
        self.phase, self.timings, self.device = phase, timings, device

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.device.type == "cuda" and error is None:
            import torch

            torch.cuda.synchronize(self.device)
        self.timings[self.phase] = self.timings.get(self.phase, 0.0) + time.perf_counter() - self.start
