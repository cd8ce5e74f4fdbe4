"""Plugins and their records as the host keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ea_runtime.records import Record


@dataclass(frozen=True, slots=True)
class Entry:
    """A record and where it came from."""

    record: Record
    kind: str
    plugin: str
    package: str
    version: str


@dataclass(slots=True)
class PluginInfo:
    """One plugin as `ea plugins` shows it.

    state: "ok", "blocked", or "broken: <one line>". seconds: wall time that loading it took.
    """

    name: str
    package: str
    version: str
    state: str = "ok"
    entries: list[Entry] = field(default_factory=list)
    seconds: float = 0.0
