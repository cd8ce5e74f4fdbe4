"""Which device and number format to run on, and why."""

from __future__ import annotations

import logging
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
    networks overflow float16 in places. On a CPU bfloat16 is about 30 times slower than float32.

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
    if device.type == "cpu" and chosen in (torch.bfloat16, torch.float16):
        logger.warning(
            "%s on a CPU is many times slower than float32; leave the dtype out", dtype_name(chosen)
        )
    return chosen


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
