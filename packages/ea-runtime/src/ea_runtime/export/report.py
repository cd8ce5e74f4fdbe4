"""report.html and report.json of a bundle: the preflight checks, and how the graphs compare with PyTorch.

The page is self-contained: no script, no address, no font from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ea_runtime.export.parity import write_json

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #8884; vertical-align: top }
table.errors { table-layout: fixed; width: 100% } .errors th + th { text-align: right }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.bar { background: #8883 } .bar i { display: block; height: .7rem; background: #3a7 }
.over i { background: #c43 } .over td { color: #c43 } .dim { color: #888 }
"""


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes both files."""
    write_json(folder / "report.json", report)
    (folder / "report.html").write_text(page(report), encoding="utf-8")


def page(report: Mapping[str, Any]) -> str:
    """The report as one HTML page."""
    head = (
        f"{report['model']}, {report['size']}, {_count(report['rows'], 'row')} a pass, {report['dtype']}, opset"
        f" {report['opset']}, target {report['target']}"
    )
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Parity report</title>',
        f"<style>{_STYLE}</style><h1>Parity report</h1><p>{escape(head)}</p>",
        f"<p>Relative error: the largest difference over the largest value of PyTorch's. Asked for:"
        f" {report['limit']:g}. The bars are logarithmic, from 1e-8 to 1.</p>",
        *_parity("Graphs", report["parity"], report["limit"]),
        *_parity("Canaries", report["canaries"], report["limit"]),
        *_builds(report["builds"]),
        *_preflight(report),
    ]
    return "\n".join(parts) + "</html>\n"


def _parity(title: str, graphs: Iterable[Mapping[str, Any]], limit: float) -> Iterable[str]:
    yield f"<h2>{title}</h2>"
    graphs = list(graphs)
    if not graphs:
        yield "<p class=dim>none</p>"
    for one in graphs:
        yield f"<h3>{escape(one['graph'])}</h3>"
        if one["state"] != "compared":
            yield f"<p class=dim>{escape(one['state'])}</p>"
            continue
        yield f"<p class=dim>compared at {escape(one['size'])}</p>"
        yield "<table class=errors><tr><th>tensor<th>max. error<th>relative<th>mean, relative<th></tr>"
        for row in [*one["outputs"], *one["blocks"]]:
            yield _error_row(row, limit)
        yield "</table>"


def _error_row(row: Mapping[str, Any], limit: float) -> str:
    values = [float(row[key]) for key in ("max_abs", "relative", "mean_relative")]
    cells = "".join(f"<td class=n>{value:.2e}" for value in values)
    share = 0.0 if values[1] <= 0 else min(max((math.log10(values[1]) + 8) / 8, 0.0), 1.0)
    if not math.isfinite(values[1]):
        share = 1.0
    over = ' class="over"' if not values[1] <= limit else ""
    return f"<tr{over}><td>{escape(row['name'])}{cells}<td class=bar><i style='width:{100 * share:.0f}%'></i></tr>"


def _builds(builds: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    if not builds:
        return
    yield "<h2>Engines</h2><table><tr><th>graph<th>engine<th>activation memory<th>weights<th>layers<th>seconds</tr>"
    for name, one in builds.items():
        yield (
            f"<tr><td>{escape(name)}<td class=n>{_bytes(one['engine_bytes'])}<td class=n>"
            f"{_bytes(one['activation_bytes'])}<td class=n>{_bytes(one['weights_bytes'])}<td class=n>{one['layers']:,}"
            f"<td class=n>{one['seconds']:.1f}</tr>"
        )
    yield "</table><p class=dim>Activation and weights memory as the builder's log gives them.</p>"
    for name, one in builds.items():
        for warning in one["warnings"]:
            yield f"<p class=dim>{escape(name)}: {escape(warning[:300])}</p>"


def _preflight(report: Mapping[str, Any]) -> Iterable[str]:
    found = report["preflight"]
    yield "<h2>Preflight</h2><table><tr><th>graph<th>largest tensor<th>shape<th>elements<th>of 2^31"
    yield "<th>attention scores if not fused<th>tensors without shape</tr>"
    for name, one in found["largest_tensors"].items():
        yield (
            f"<tr><td>{escape(name)}<td>{escape(one['tensor'])}<td>{escape(str(one['shape']))}<td class=n>"
            f"{one['elements']:,}<td class=n>{one['elements'] / found['limit_elements']:.1%}<td class=n>"
            f"{one['attention_scores']:,}<td class=n>{one['without_shape']}</tr>"
        )
    yield "</table><table><tr><th>part<th>weights used<th>biases among them<th>norms<th>not used at this size</tr>"
    for part, one in report["weights"].items():
        norms = ", ".join(f"{count} x {name}" for name, count in one["norms"].items())
        yield f"<tr><td>{escape(part)}<td class=n>{one['used']}<td class=n>{one['biases']}<td>{escape(norms)}"
        yield f"<td>{len(one['unused'])} {escape(', '.join(one['unused'][:2]))}</tr>"
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    yield f"</table><p>{_bytes(found['weights_bytes'])} of weights. {escape(versions)}</p>"
    for note in found["notes"]:
        yield f"<p>{escape(note)}</p>"
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in report["seconds"].items())
    yield f"<p class=dim>{escape(seconds)}</p>"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _bytes(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
