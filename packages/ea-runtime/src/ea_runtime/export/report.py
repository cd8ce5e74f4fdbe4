"""report.html and report.json of a bundle: the preflight checks, and how the graphs compare with PyTorch.

The page is self-contained: no script, no address, no font from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ea_runtime.export.parity import write_json
from ea_runtime.files.templates import page_templates


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes both files."""
    write_json(folder / "report.json", report)
    (folder / "report.html").write_text(page(report), encoding="utf-8")


def page(report: Mapping[str, Any]) -> str:
    """The report as one HTML page: `templates/report.html`, where every value is escaped and none may be missing."""
    templates = page_templates("ea_runtime.export", bytes=_bytes, percent=_percent)
    return templates.get_template("report.html").render(report)


def _percent(relative: float) -> str:
    """Width of an error's bar, logarithmic from 1e-8 to 1."""
    if not math.isfinite(relative):
        return "100"
    return f"{100 * min(max((math.log10(max(relative, 1e-8)) + 8) / 8, 0.0), 1.0):.0f}"


def _bytes(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
