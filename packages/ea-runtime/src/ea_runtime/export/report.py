"""report.html and report.json of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ea_runtime.export.parity import write_json


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Both files."""
    write_json(folder / "report.json", report)
