"""Makes freed memory go back to the system, so that a long video needs no more of it than a short one."""

from __future__ import annotations

import ctypes
import sys

#: malloc.h of glibc
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_THRESHOLD = 256 * 1024


def return_freed_memory() -> bool:
    """Tells glibc to map each large block on its own and to keep one arena; True where that was possible.

    By default glibc raises its threshold with each large block that is freed and then serves the next ones
    from heaps that do not shrink: while a video is decoded chunk by chunk, the resident set creeps up
    by some 15% though no more is in use. Call it before the first tensors; costs are page faults.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library, for example musl
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)) and bool(mallopt(_M_ARENA_MAX, 1))
