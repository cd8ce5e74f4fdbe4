"""report.html: one file that needs nothing beside it, and no script to be read."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from ea_data.report.charts import funnel, histogram
from ea_data.report.figures import Figures, FilterFigures

#: A clip's row -> JPEG bytes of its frames with what was found drawn in, or a line that says why there are none.
Painter = Callable[[dict[str, Any]], "bytes | str"]

_STYLE = """
:root{--ink:#1c2024;--soft:#6b7280;--line:#e2e5e9;--page:#fff;--card:#f7f8fa;--kept:#2f7d5b;--dropped:#c9603f;--limit:#1d4ed8}
@media(prefers-color-scheme:dark){:root{--ink:#e7e9ec;--soft:#9aa3ae;--line:#30353c;--page:#15181c;--card:#1d2126;--kept:#5fb58c;
--dropped:#e08a6a;--limit:#8ab4ff}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1180px;padding:28px 24px 60px;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:26px;margin:0 0 2px}h2{font-size:19px;margin:38px 0 10px;border-top:1px solid var(--line);padding-top:22px}h3{font-size:15px;margin:16px 0 6px}
p.soft,.soft{color:var(--soft)}svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg text.soft{fill:var(--soft)}svg{max-width:100%;height:auto;display:block}
.kept{fill:var(--kept);color:var(--kept)}.dropped{fill:var(--dropped);color:var(--dropped)}line.limit{stroke:var(--limit);stroke-dasharray:4 3}
svg text.limit{fill:var(--limit)}line.axis{stroke:var(--line)}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:18px 0}.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 16px;min-width:120px}
.card b{display:block;font-size:22px}.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(270px,1fr));gap:12px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;overflow:hidden}figure img{width:100%;display:block}
figure .none{padding:22px 12px;color:var(--soft);font-size:13px}figcaption{padding:6px 10px 8px;font-size:12.5px;overflow-wrap:anywhere}
figcaption b{font-weight:600}table{border-collapse:collapse;width:100%;font-size:14px}
td,th{text-align:left;padding:5px 10px 5px 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
td.number,th.number{text-align:right;white-space:nowrap}pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 14px;overflow:auto;font-size:12.5px}
nav a{margin-right:14px;color:inherit}
"""


def page(name: str, figures: Figures, painter: Painter, config: str, versions: dict[str, str]) -> str:
    """The whole page. name: the set's. config: its config.toml as run. versions: program -> version."""
    sections = [
        _head(name, figures),
        f'<h2 id="funnel">What is left after each step</h2>{funnel(figures.funnel())}',
        *(_filter_section(part, painter) for part in figures.filters),
        _errors(figures),
        _config(config, figures, versions),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}: what stayed and what fell</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _head(name: str, figures: Figures) -> str:
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
    links = "".join(f'<a href="#{_anchor(part.name)}">{escape(part.name)}</a>' for part in figures.filters)
    return (
        f'<h1>{escape(name)}</h1><p class="soft">Why each clip stayed or fell.</p><div class="cards">{shown}</div>'
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
        says = f"{decision.get('score') or part.name} {value:.4g}" if value is not None else part.name
        words = f'<span class="{"kept" if kept else "dropped"}">{"passed" if kept else "dropped"}</span>'
        reason = f" {escape(str(decision.get('reason') or ''))}" if not kept else ""
        figures.append(
            f"<figure>{shown}<figcaption>{words} <b>{escape(says)}</b>{reason}<br>"
            f'<span class="soft">{escape(row["source"])} {_span(row)}</span></figcaption></figure>'
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
        f"<td>{'<br>'.join(escape(s) for s in group.sources)}{' ...' if group.count > len(group.sources) else ''}</td></tr>"
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
