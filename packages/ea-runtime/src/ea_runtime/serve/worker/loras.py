"""LoRAs on one model: loaded once, and switched off rather than taken off while they are not asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ea_runtime.generation.adapters import AdapterChoice, describe_adapters, put_on

#: LoRAs that stay loaded on a model
MAX_LOADED = 8
_PEFT = "adapter_model.safetensors"


@dataclass(slots=True)
class _Loaded:
    path: str
    stamp: tuple[int, ...]
    handle: Any
    description: dict[str, Any]


class Loras:
    """The LoRAs of one pipeline, in the order in which they are on it.

    Their effects add up in that order, and sums of floats depend on it: those of a job are on in its own order.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._loaded: list[_Loaded] = []
        self.loads = 0

    def put(self, choices: Sequence[AdapterChoice]) -> list[dict[str, Any]]:
        """Put these on, in order, all others off; what a sidecar says of them.

        Raises what the adapter raises (UserError); then all are off.
        """
        stamps = [_stamp(choice.path) for choice in choices]
        self._drop_changed()
        for one in self._loaded:
            _set_weight(one, 0.0)
        kept = self._in_order(choices, stamps)
        rest = choices[len(kept) :]
        known = {one.path for one in self._loaded}
        if any(choice.path in known for choice in rest) or len(self._loaded) + len(rest) > MAX_LOADED:
            self.clear()  # another order, or too many
            kept, rest = [], choices
        try:
            for one, choice in zip(kept, choices, strict=False):
                _set_weight(one, choice.weight)
            for choice, stamp in zip(rest, stamps[len(kept) :], strict=True):
                kept.append(self._load(choice, stamp))
        except BaseException:
            self.clear()
            raise
        return [
            one.description | {"weight": choice.weight} for one, choice in zip(kept, choices, strict=True)
        ]

    def clear(self) -> None:
        """Takes all off."""
        while self._loaded:
            self._loaded.pop().handle.unload()

    def _load(self, choice: AdapterChoice, stamp: tuple[int, ...]) -> _Loaded:
        (handle,) = put_on(self._pipe, [choice])
        self.loads += 1
        one = _Loaded(choice.path, stamp, handle, {})
        self._loaded.append(one)
        (one.description,) = describe_adapters([replace(choice)], [handle])
        return one

    def _in_order(self, choices: Sequence[AdapterChoice], stamps: Sequence[tuple[int, ...]]) -> list[_Loaded]:
        """Loaded ones that match the first choices, in an order that both share."""
        found: list[_Loaded] = []
        place = 0
        for choice, stamp in zip(choices, stamps, strict=True):
            match = next(
                (
                    i
                    for i, one in enumerate(self._loaded[place:], place)
                    if (one.path, one.stamp) == (choice.path, stamp)
                ),
                None,
            )
            if match is None:
                break
            found.append(self._loaded[match])
            place = match + 1
        return found

    def _drop_changed(self) -> None:
        """Takes all off if a file is no longer what was loaded."""
        if any(_stamp(one.path) != one.stamp for one in self._loaded):
            self.clear()


def _set_weight(one: _Loaded, weight: float) -> None:
    if one.handle.weight != weight:
        one.handle.weight = weight


def _stamp(path: str) -> tuple[int, ...]:
    """Size, time and inode of a LoRA's file; () where it is gone."""
    try:
        stat = os.stat(os.path.join(path, _PEFT) if os.path.isdir(path) else path)
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
