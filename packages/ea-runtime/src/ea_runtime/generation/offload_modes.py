"""The kinds of offloading, and the devices that each is for. Imports no torch."""

from __future__ import annotations

from typing import Any

from ea_runtime.errors import UserError, nearest

MODES = ("none", "model", "group", "sequential")
#: the plan takes the cheapest that fits
AUTO = "auto"


def check_mode(mode: Any, device: str, known: tuple[str, ...] = (AUTO, *MODES)) -> str:
    """`offload` for a kind of device ("cpu", "cuda", "mps"). Raises UserError for what saves nothing there."""
    if mode not in known:
        raise UserError(
            f"`offload` must be one of {', '.join(known)}, got {mode!r}{nearest(str(mode), known)}"
        )
    if mode in ("none", AUTO):
        return mode
    if device not in ("cpu", "cuda"):
        raise UserError(f"`offload` {mode!r} works on cpu and cuda, got device {device!r}; leave it out")
    if device == "cpu" and mode != "group":
        raise UserError(
            f"`offload` {mode!r} moves weights between a GPU and the machine's memory, and this run is on the CPU; "
            "'group' works there: weights wait in the model's files"
        )
    return mode
