"""Trains a LoRA further: fresh adapters take the matrices of a file, in any layout that `read_lora` knows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ea_lora.adapters import Adapters
from ea_lora.card import base_note
from ea_lora.io import read_lora
from ea_lora.keys import Part
from ea_lora.layer import MAX_PATH
from ea_lora.matching import match_lora
from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote


def start_from(path: str, adapters: Iterable[Adapters], model: str) -> list[str]:
    """Puts the matrices of a LoRA file into untrained adapters, which then change the network as the file does.

    Layers that the file lacks start from zero. Adapters on the meta device are only compared with the file. model: the
    base, a folder or name. Returns lines for the user.

    Raises UserError, one line that names `init.lora`: what `read_lora` and `match_lora` refuse, a layer of another
    rank, or one that these adapters have no place for.
    """
    by_part: dict[Part, Adapters] = {one.part: one for one in adapters}
    try:
        with torch.device("cpu"):  # a dry run makes tensors without contents
            file = read_lora(path)
        matching = match_lora(file, {part: _stand_in(one) for part, one in by_part.items()}, tuple(by_part))
    except UserError as error:
        raise UserError(f"`init.lora`: {error}") from error
    lost = (*matching.ignored, *matching.left_out)
    if lost:
        raise UserError(
            f"`init.lora` {quote(path, MAX_PATH)} has {len(lost)} layers that this run does not adapt (first "
            f"{quote(lost[0].name)}); set `network.include`, `exclude`, `motion` and `text` as for the file's own run"
        )
    for match in matching.matches:
        one = by_part[match.layer.part]
        name = one.names[match.path]
        down, up = (one.get_parameter(f"{name}.{role}.weight") for role in ("down", "up"))
        if match.layer.rank != down.shape[0]:
            raise UserError(
                f"`network.rank` must be {match.layer.rank}, as in `init.lora` {quote(path, MAX_PATH)} "
                f"({quote(match.layer.name)}), got {down.shape[0]}"
            )
        if down.is_meta:
            continue
        # the change is alpha / rank times up x down: another alpha here must not make another change
        factor = match.layer.scale * down.shape[0] / one.alphas[name]
        given_down, given_up = match.layer.matrices()
        with torch.no_grad():
            down.copy_(given_down.reshape(down.shape))
            up.copy_(
                given_up.reshape(up.shape) if factor == 1 else given_up.reshape(up.shape).double() * factor
            )
    fresh = sum(len(one) for one in by_part.values()) - len(matching.matches)
    line = f"start: {len(matching.matches)} layers of {quote(path, MAX_PATH)}"
    notes = (*file.notes, base_note(file.metadata, model))
    return [line + (f", {fresh} more from zero" if fresh else ""), *(note for note in notes if note)]


def _stand_in(adapters: Adapters) -> nn.Module:
    """A network without weights that has the modules which the adapters are on, for `match_lora`."""
    root = nn.Module()
    for name, path in adapters.paths.items():
        down, up = (adapters.get_parameter(f"{name}.{role}.weight") for role in ("down", "up"))
        *folders, last = path.split(".")
        parent: Any = root
        for folder in folders:
            if not hasattr(parent, folder):
                parent.add_module(folder, nn.Module())
            parent = getattr(parent, folder)
        parent.add_module(last, nn.Linear(down.shape[1], up.shape[0], bias=False, device="meta"))
    return root
