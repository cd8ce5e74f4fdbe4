"""timings.json of a set: the CPU seconds of each stage, summed over the runs that ended.

It is the only file of a set that differs between runs of the same work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ea_data.records.store import write_text

TIMINGS = "timings.json"


def read_timings(folder: Path) -> dict[str, float]:
    """Stage -> CPU seconds; nothing if there is no such file, or it is damaged."""
    try:
        table = json.loads((folder / TIMINGS).read_text(encoding="utf-8"))["cpu_seconds"]
        return {str(name): float(seconds) for name, seconds in table.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def add_timings(folder: Path, costs: Mapping[str, float]) -> None:
    """Adds a run's CPU seconds."""
    if not costs:
        return
    known = read_timings(folder)
    names = [*known, *(name for name in costs if name not in known)]
    table = {name: round(known.get(name, 0.0) + costs.get(name, 0.0), 3) for name in names}
    write_text(folder / TIMINGS, json.dumps({"cpu_seconds": table}, indent=1) + "\n")
