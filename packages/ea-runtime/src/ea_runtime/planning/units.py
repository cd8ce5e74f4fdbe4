"""Bytes, seconds and arithmetic in words."""

from __future__ import annotations


def in_gb(size: float) -> str:
    """Bytes as "1.23 GB", "456 MB" or "7 kB"."""
    if size >= 1e6:
        return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
    return f"{size / 1e3:.0f} kB"


def in_seconds(seconds: float | None) -> str:
    """Seconds as "0.4 s", "75 s", "12 min" or "3.4 h"; "unknown" for None."""
    if seconds is None:
        return "unknown"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def in_flops(flops: float) -> str:
    """Arithmetic as "12.3 TFLOP"."""
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"
