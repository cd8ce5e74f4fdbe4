"""Memory: this process's peak, out-of-memory errors, and giving memory back."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_rss() -> int:
    """The peak of the resident set in bytes, this process's own.

    On Linux from /proc: there getrusage also counts what the parent held when it started this process (the counter
    survives exec), so a child of a large program would report that program's size. psutil knows Windows' peak only.
    """
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    if found := _STATUS.exists() and re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE):
        return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def current_rss() -> int:
    """The resident set in bytes, now."""
    import psutil

    return psutil.Process().memory_info().rss


def is_out_of_memory(error: BaseException) -> bool:
    """True if torch ran out of memory, on any device."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "not enough memory" in text)


def free_memory() -> None:
    """Frees what nothing refers to any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
