"""A report in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {"better": "green", "worse": "red"}


def table(report: dict[str, Any]) -> Table:
    """One row for each metric: of one folder its mean, interval and worst video; of two the difference."""
    from rich.table import Table
    from rich.text import Text

    folder, against = report["folder"], report["against"]
    names = ["mean", "unit", "95% of the mean", "worst"]
    if against is not None:
        names = [_short(folder["name"]), _short(against["name"]), "difference", "95%", "verdict"]
    shown = Table(title=_title(report), title_justify="left", title_style="bold", box=None, pad_edge=False)
    shown.add_column("metric", no_wrap=True)
    shown.add_column("better")
    for name in names:
        is_number = name not in ("unit", "worst", "verdict")
        shown.add_column(Text(name), justify="right" if is_number else "left", no_wrap=is_number)
    for name, metric in report["metrics"].items():
        cells = _cells(metric) if against is None else _compared_cells(metric)
        shown.add_row(name, metric["better"], *(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))
    return shown


def number(value: float | None, sign: bool = False) -> str:
    """A number in three digits, whole ones in all; "-" for None."""
    if value is None:
        return "-"
    plus = "+" if sign and value else ""
    return f"{value:{plus},.0f}" if abs(value) >= 1000 else f"{value:{plus}.3g}"


def between(stats: dict[str, Any] | None, sign: bool = False) -> str:
    """The ends of an interval; "-" without one."""
    if stats is None or stats["low"] is None:
        return "-"
    return f"{number(stats['low'], sign)} to {number(stats['high'], sign)}"


def with_unit(value: float | None, unit: str) -> str:
    """A number and its unit."""
    return f"{number(value)} {unit}".rstrip() if value is not None else "-"


def _cells(metric: dict[str, Any]) -> list[str]:
    ours = metric["ours"]
    if ours is None:
        return ["-", "", "-", "-"]
    worst = ours["worst"]
    shown = f"{number(worst['value'])} {worst['video']}" if worst else "-"
    return [number(ours["mean"]), metric["unit"], between(ours), shown]


def _compared_cells(metric: dict[str, Any]) -> list[str]:
    ours, theirs, difference = metric["ours"], metric["theirs"], metric["difference"]
    mean = number(ours and ours["mean"])
    if metric["of"] != "video":
        return [mean, "", "", between(ours), f"of {metric['of']}s"]
    if difference is None:
        return [mean, number(theirs and theirs["mean"]), "-", "-", "-"]
    return [
        mean,
        number(theirs["mean"]),
        number(difference["mean"], sign=True),
        between(difference, sign=True),
        difference["verdict"],
    ]


def _title(report: dict[str, Any]) -> str:
    folder, against = report["folder"], report["against"]
    if against is None:
        return f"{folder['name']}: {_count(folder)}"
    how = "pairs by name" if report["is_paired"] else "two sets"
    return f"{folder['name']} ({_count(folder)}) against {against['name']} ({_count(against)}), {how}"


def _count(folder: dict[str, Any]) -> str:
    count = folder["videos"] - folder["unreadable"]
    return "1 video" if count == 1 else f"{count:,} videos"


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
