"""Settings of glibc's allocator that keep the memory of a long video as small as that of a short one, and as fast."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

#: malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT = 64 << 20
#: bytes from which a block is mapped on its own, and returned to the system when it is freed
MAPPED = 3 << 20

_trim: Callable[[int], int] | None = None


def tune_allocator() -> bool:
    """Makes glibc map blocks from 3 MB separately, and torch ask for huge pages; call it before importing torch.

    By default glibc raises its threshold with each large block that is freed and then serves the next ones from heaps
    that do not shrink: while a video is decoded chunk by chunk, the resident set creeps up by some 15% though no
    more is in use. A mapped block is returned whole, but each of its pages costs a fault when it is mapped again: so
    smaller blocks stay in one heap, which keeps up to 64 MB at its end and is emptied by `return_free_memory`, and
    those above 2 MB get pages of 2 MB if the system grants them (THP_MEM_ALLOC_ENABLE, which torch reads once; a value
    that is set stays).

    Returns True if glibc took the settings; elsewhere nothing changes. Figures: docs/performance.md.
    """
    global _trim
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):
        return False  # another C library, for example musl
    trim.argtypes = [ctypes.c_size_t]
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    settings = ((_M_MMAP_THRESHOLD, MAPPED), (_M_TRIM_THRESHOLD, _KEPT), (_M_ARENA_MAX, 1))
    taken = [bool(mallopt(name, value)) for name, value in settings]
    _trim = trim
    return all(taken)


def return_free_memory() -> None:
    """Returns the heap's free pages to the system, those between blocks in use as well; for the end of a chunk.

    Nothing happens in a program that did not call `tune_allocator`.
    """
    if _trim is not None:
        _trim(0)
