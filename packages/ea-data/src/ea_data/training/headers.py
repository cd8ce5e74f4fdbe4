"""Remembers the headers of a set's files, so that the next run opens none of them."""

from __future__ import annotations

from pathlib import Path

from ea_data.media.reader import Probe
from ea_runtime.files.remembered import Remembered


class HeaderFile:
    """`cache/headers.json` of a set; see Remembered."""

    def __init__(self, root: Path) -> None:
        self._table = Remembered(root, "headers", version=1)

    def get(self, name: str, with_size: bool) -> Probe | None:
        """The known header of a file; with_size: only if its width and height are known."""
        value = self._table.get(name)
        try:
            found = Probe(*(int(number) for number in value)) if value is not None else None
        except (ValueError, TypeError):
            return None
        if found is None or (with_size and not (found.width and found.height)):
            return None
        return found

    def put(self, name: str, probe: Probe) -> None:
        self._table.put(name, list(probe))

    def save(self) -> None:
        self._table.save()
