"""Benchmark results as a table in Markdown and as a plot in SVG.

A result is a JSON file: `machine` (what it was measured on), and `rows` (case, baseline_s, ours_s, ratio, error) or
`figures` (name: value). `gpu` names the cases that only a GPU measures, and the command for them; NAME_gpu.json has
those that were measured, and under `missing` the reasons for others.
"""

from __future__ import annotations

import html
import json
import logging
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError

logger = logging.getLogger("ea")

BEGIN, END = "<!-- bench: from here -->", "<!-- bench: to here -->"
_MACHINE = ("processor", "cores", "threads", "gpu", "python", "torch")


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The results in a folder by name. Raises UserError if there are none or one is damaged."""
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {str(folder)!r}; run `uv run pytest benchmarks` in a clone, or give --results"
        )
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{str(path)!r} is no benchmark result: {str(error)[:80]}; measure it again"
            ) from error
        if isinstance(record, dict) and not {"machine", "rows", "figures"} & record.keys():
            logger.warning("%s is another kind of record and is left out", path.name)
            continue
        if (
            not isinstance(record, dict)
            or not isinstance(record.get("machine"), dict)
            or not _is_whole(record)
        ):
            raise UserError(f"{str(path)!r} is no benchmark result: it lacks its parts; measure it again")
        found[path.stem] = record
    if not found:
        raise UserError(f"folder {str(folder)!r} holds no results; run `uv run pytest benchmarks` in a clone")
    return found


def _is_whole(record: dict[str, Any]) -> bool:
    rows, figures, gpu = record.get("rows"), record.get("figures"), record.get("gpu")
    numbers = ("baseline_s", "ours_s", "ratio", "error")
    return (
        (rows is not None or isinstance(figures, dict))
        and all(
            isinstance(row, dict)
            and "case" in row
            and all(isinstance(row.get(key), int | float) for key in numbers)
            for row in rows or ()
        )
        and (gpu is None or (isinstance(gpu, dict) and {"command", "cases"} <= gpu.keys()))
    )


def table(results: dict[str, dict[str, Any]]) -> str:
    """The comparisons, what a GPU would measure, and the other figures, in Markdown."""
    lines = ["| benchmark | case | plain eager | ours | ratio | difference |", "|---|---|---|---|---|---|"]
    for name, record in results.items():
        for row in record.get("rows") or ():
            lines.append(
                f"| {name} | {row['case']} | {_seconds(row['baseline_s'])} | {_seconds(row['ours_s'])} "
                f"| {row['ratio']:.2f}x | {row['error']:.1e} |"
            )
        if "gpu" in record:
            lines += _not_measured(name, record["gpu"], results.get(f"{name}_gpu", {}))
    lines += ["", "| measured | figures |", "|---|---|"]
    for name, record in results.items():
        if record.get("figures"):
            lines.append(f"| {name} | {_flat(record['figures'])} |")
    return "\n".join([*lines, "", "Measured on:", "", *_machines(results)])


def _not_measured(name: str, gpu: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """A line for each case that a GPU would measure and has not."""
    missing = found.get("missing") or {}
    measured = {row["case"] for row in found.get("rows") or ()} | set(found.get("figures") or {})
    return [
        f"| {name} | {case} | not measured{f' ({_plain(missing[case])})' if case in missing else ''}: "
        f"`{gpu['command']}` | | | |"
        for case in gpu["cases"]
        if case not in measured
    ]


def _plain(text: Any) -> str:
    return " ".join(str(text).replace("|", "/").split())


def _machines(results: dict[str, dict[str, Any]]) -> list[str]:
    groups: dict[str, list[str]] = {}
    for name, record in results.items():
        machine = record["machine"]
        if not machine:  # nothing was measured yet
            continue
        parts = [f"{key} {machine[key]}" for key in _MACHINE if machine.get(key) is not None]
        groups.setdefault(", ".join([*parts, str(machine.get("date", ""))]), []).append(name)
    return [f"- {machine}: {', '.join(names)}" for machine, names in groups.items()]


def _flat(figures: dict[str, Any]) -> str:
    told = []
    for name, value in figures.items():
        if isinstance(value, dict):
            told.append(f"{name}: ({', '.join(f'{key} {one}' for key, one in value.items())})")
        else:
            told.append(f"{name} {value}")
    return "; ".join(told).replace("|", "/")


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"


def draw(results: dict[str, dict[str, Any]]) -> str:
    """A bar for each comparison, as long as its ratio, and a line at 1: an SVG."""
    bars = [
        (f"{name}: {row['case']}", float(row["ratio"]))
        for name, record in results.items()
        for row in record.get("rows") or ()
    ]
    if not bars:
        raise UserError("the results hold no comparison to draw; run `uv run pytest benchmarks` in a clone")
    left = 20 + round(6.3 * max(len(label) for label, _ in bars))  # a letter is about 6.3 wide
    right, high = 320, 22
    longest = max(1.5, *(ratio for _, ratio in bars))
    one = left + right / longest
    size = f'width="{left + right + 60}" height="{high * len(bars) + 40}"'
    style = "font: 12px sans-serif"
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}; background: white">']
    for number, (label, ratio) in enumerate(bars):
        top, width = number * high + 8, right * ratio / longest
        colour = "#3b7dd8" if ratio >= 1 else "#c0504d"
        parts.append(f'<text x="{left - 8}" y="{top + 12}" text-anchor="end">{html.escape(label)}</text>')
        parts.append(f'<rect x="{left}" y="{top}" width="{width:.1f}" height="{high - 6}" fill="{colour}"/>')
        parts.append(f'<text x="{left + width + 5:.1f}" y="{top + 12}">{ratio:.2f}x</text>')
    bottom = high * len(bars) + 8
    parts.append(
        f'<line x1="{one:.1f}" x2="{one:.1f}" y1="0" y2="{bottom}" stroke="black" stroke-dasharray="3"/>'
    )
    parts.append(f'<text x="{one:.1f}" y="{bottom + 16}" text-anchor="middle">plain eager PyTorch</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def put_into(page: Path, text: str) -> None:
    """Replaces the text between the two marks of a page. Raises UserError if they are missing."""
    try:
        before = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{str(page)!r} cannot be read: {error.strerror or error}; give a page to change"
        ) from error
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(
            f"{str(page)!r} must hold the lines {BEGIN!r} and {END!r}; the table goes between them"
        )
    page.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")
