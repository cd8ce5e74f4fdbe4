"""The processor: its name, and the instruction sets that torch and oneDNN use on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

#: Variables that lower the instruction set which oneDNN or torch uses.
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def processor_name() -> str:
    """The processor's name as the system gives it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def instruction_sets() -> list[str]:
    """The processor's instruction sets for matrix arithmetic: avx2, avx512_f, avx512_bf16, amx_bf16 and the like."""
    import torch

    query = getattr(torch.cpu, "get_capabilities", None)  # torch 2.10 and newer
    found = query() if query is not None else {}
    return sorted(name for name, value in found.items() if value is True)


def limits() -> list[str]:
    """The variables of LIMITS that are set, as NAME=value."""
    return [f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)]
