"""report.html: one file that needs nothing beside it, and no script to be read."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from ea_data.report.charts import funnel, histogram
from ea_data.report.figures import Figures, FilterFigures

#: A clip's row -> JPEG bytes of its frames with what was found drawn in, or a line that says why there are none.
Painter = Callable[[dict[str, Any]], "bytes | str"]


def page(
    name: str,
    figures: Figures,
    painter: Painter,
    config: str,
    versions: dict[str, str],
    passed_over: str = "",
) -> str:
    """The whole page. name: the set's. config: its config.toml as run. versions: program -> version. passed_over: what
    was found beside the files, in words."""
    sections = [
        _head(name, figures, passed_over),
        f'<h2 id="funnel">What is left after each step</h2>{funnel(figures.funnel())}',
        *(_filter_section(part, painter) for part in figures.filters),
        _errors(figures),
        _config(config, figures, versions),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}: what stayed and what fell</title><style>{_style()}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _head(name: str, figures: Figures, passed_over: str) -> str:
    count, seconds = figures.by_status, figures.seconds_by_status
    cards = [
        ("files", f"{figures.num_sources:,}"),
        ("rows", f"{figures.num_rows:,}"),
        ("kept", f"{count.get('ok', 0):,}"),
        ("dropped", f"{count.get('dropped', 0):,}"),
        ("errors", f"{count.get('error', 0) + count.get('transient', 0):,}"),
        ("hours kept", f"{seconds.get('ok', 0.0) / 3600:.2f}"),
        ("captions", f"{figures.num_captions:,}"),
    ]
    shown = "".join(f'<div class="card"><span class="soft">{k}</span><b>{v}</b></div>' for k, v in cards)
    other = f'<p class="soft">Passed over: {escape(passed_over)}.</p>' if passed_over else ""
    links = "".join(f'<a href="#{_anchor(part.name)}">{escape(part.name)}</a>' for part in figures.filters)
    return (
        f'<h1>{escape(name)}</h1><p class="soft">Why each clip stayed or fell.</p><div class="cards">{shown}</div>'
        f"{other}"
        f'<nav><a href="#funnel">funnel</a>{links}<a href="#errors">errors</a><a href="#config">config</a></nav>'
    )


def _filter_section(part: FilterFigures, painter: Painter) -> str:
    seen = part.num_kept + part.num_dropped
    rule = f"{part.score} {part.threshold}".strip()
    parts = [
        f'<h2 id="{_anchor(part.name)}">{escape(part.name)}</h2>',
        f"<p>{escape(rule)} &nbsp; <span class='kept'>{part.num_kept:,} kept</span>, "
        f"<span class='dropped'>{part.num_dropped:,} dropped</span> of {seen:,} seen</p>",
        histogram(part),
    ]
    for title, rows in (
        ("Nearest to the limit", part.nearest.rows()),
        ("Dropped here", part.dropped.rows()),
        ("Passed", part.kept.rows()),
    ):
        if rows:
            parts.append(f"<h3>{title}</h3>{_sheet(rows, part, painter)}")
    return "".join(parts)


def _sheet(rows: Sequence[dict[str, Any]], part: FilterFigures, painter: Painter) -> str:
    figures = []
    for row in rows:
        picture = painter(row)
        if isinstance(picture, bytes):
            data = base64.b64encode(picture).decode("ascii")
            shown = f'<img alt="frames of {escape(row["source"], quote=True)}" src="data:image/jpeg;base64,{data}">'
        else:
            shown = f'<div class="none">{escape(picture)}</div>'
        decision = next(d for d in row["decisions"] if d["filter"] == part.name)
        kept = decision["verdict"] == "kept"
        value = decision.get("value")
        # a reason for dropping tells the value itself
        says = str(decision.get("reason") or "") if not kept else ""
        if not says:
            says = f"{decision.get('score') or part.name} {value:.4g}" if value is not None else part.name
        words = f'<span class="{"kept" if kept else "dropped"}">{"passed" if kept else "dropped"}</span>'
        figures.append(
            f"<figure>{shown}<figcaption>{words} <b>{escape(says)}</b><br>"
            f'<span class="soft file" title="{escape(row["source"], quote=True)}">{escape(row["source"])}</span> '
            f'<span class="soft">{_span(row)}</span></figcaption></figure>'
        )
    return f'<div class="grid">{"".join(figures)}</div>'


def _span(row: dict[str, Any]) -> str:
    if row.get("end") is None:
        return ""
    return f"{row.get('start') or 0.0:.2f}–{row['end']:.2f} s"


def _errors(figures: Figures) -> str:
    head = '<h2 id="errors">Errors</h2>'
    if not figures.errors:
        return f'{head}<p class="soft">None.</p>'
    rows = "".join(
        f'<tr><td class="number">{group.count:,}</td><td>{escape(group.stage)}</td><td>{escape(group.reason)}</td>'
        f"<td>{'<br>'.join(escape(s) for s in group.sources)}{_more(group.count - len(group.sources))}</td></tr>"
        for group in figures.errors
    )
    return (
        f'{head}<table><tr><th class="number">rows</th><th>stage</th><th>what happened</th><th>files</th></tr>'
        f"{rows}</table>"
    )


def _config(config: str, figures: Figures, versions: dict[str, str]) -> str:
    lines = [*versions.items(), *((f"score {k}", ", ".join(v)) for k, v in figures.versions.items())]
    table = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in lines)
    return (
        f'<h2 id="config">Config and versions</h2><pre>{escape(config)}</pre>'
        f"<table><tr><th>part</th><th>version</th></tr>{table}</table>"
    )


def _anchor(name: str) -> str:
    return "filter-" + "".join(c if c.isalnum() else "-" for c in name)


def _more(count: int) -> str:
    """What stands behind a list that leaves `count` entries out."""
    return " ..." if count > 0 else ""


def _style() -> str:
    return (files("ea_data.report") / "page.css").read_text(encoding="utf-8")
