"""One generation over several processes: `torchrun --nproc-per-node 2 --no-python ea generate ...`.

The denoiser's frames and the VAE's chunks are shared out; every process takes the same steps, and the first one writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ea_runtime.errors import UserError

if TYPE_CHECKING:
    from ea_runtime.generation.pipeline import VideoPipeline


def world_size() -> int:
    """The number of processes that a launcher has started; 1 without one."""
    try:
        return int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError as error:
        raise UserError(f"WORLD_SIZE must be a number, got {os.environ['WORLD_SIZE']!r}") from error


def rank() -> int:
    """This process's number among them, from 0."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


@contextmanager
def joined(device: str | None) -> Iterator[str | None]:
    """Joins the processes that a launcher has started, if it has; yields this process's device."""
    if world_size() == 1:
        yield device
        return
    from ea_runtime.machine.device import choose_device
    from ea_runtime.machine.processes import local_device, process_group

    chosen = str(choose_device(device))
    with process_group(world_size(), [], chosen):
        yield local_device(chosen)


def share_out(pipe: VideoPipeline) -> None:
    """Shares the work of a pipeline's parts among the joined processes. Raises UserError if a part cannot."""
    if world_size() == 1:
        return
    for name, part in (("denoiser", pipe.denoiser), ("VAE", pipe.vae)):
        if not hasattr(part, "spread"):
            raise UserError(
                f"{world_size()} processes were started, but the {name} {type(part).__name__} cannot share its work; "
                "start one"
            )
        part.spread()
