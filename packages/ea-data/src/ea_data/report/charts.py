"""Plots as inline SVG: no script, no font, no file beside the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from ea_data.report.figures import FilterFigures, FunnelStep

WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 30
BINS = 40


def funnel(steps: Sequence[FunnelStep]) -> str:
    """Bars of what is left after each step, with clips and hours."""
    row, name_width, label_width = 26, 170, 210
    height = row * len(steps) + 8
    bars = WIDTH + 160 - name_width - label_width
    most = max(1, steps[0].num_clips)
    parts = []
    for i, step in enumerate(steps):
        y = 4 + i * row
        width = max(1.0, bars * step.num_clips / most)
        fell = steps[i - 1].num_clips - step.num_clips if i else 0
        label = f"{step.num_clips:,} clips, {step.hours:.2f} h" + (f" (−{fell:,})" if fell else "")
        parts.append(
            f'<text x="{name_width - 8}" y="{y + 16}" text-anchor="end">{escape(step.name)}</text>'
            f'<rect class="kept" x="{name_width}" y="{y + 3}" width="{width:.1f}" height="{row - 8}" rx="2"/>'
            f'<text class="soft" x="{name_width + width + 8:.1f}" y="{y + 16}">{escape(label)}</text>'
        )
    return _svg(WIDTH + 160, height, "".join(parts), "clips left after each step")


def histogram(figures: FilterFigures) -> str:
    """Stacked bars of the kept and the dropped clips' scores, with a line at each limit.

    Values beyond the 0.5 and 99.5 per cent quantiles (widened to show the limits) fall into the outermost bars.
    """
    kept = np.frombuffer(figures.kept_values, dtype=np.float32)
    dropped = np.frombuffer(figures.dropped_values, dtype=np.float32)
    every = np.concatenate([kept, dropped])
    every = every[np.isfinite(every)]
    if not len(every):
        return ""
    low, high = (float(v) for v in np.quantile(every, [0.005, 0.995]))
    low, high = min([low, *figures.limits]), max([high, *figures.limits])
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    room = 0.03 * (high - low)
    low, high = (low - room if low < 0 or low - room > 0 else 0.0), high + room
    edges = np.linspace(low, high, BINS + 1)
    counts = [np.histogram(np.clip(part, low, high), edges)[0] for part in (kept, dropped)]
    most = max(1, int((counts[0] + counts[1]).max()))
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts = []
    for i in range(BINS):
        x, width = LEFT + across * i / BINS, across / BINS - 0.6
        base = HEIGHT - BOTTOM
        for count, name in ((int(counts[0][i]), "kept"), (int(counts[1][i]), "dropped")):
            if count:
                tall = max(1.0, up * count / most)
                base -= tall
                parts.append(
                    f'<rect class="{name}" x="{x:.1f}" y="{base:.1f}" width="{width:.1f}" height="{tall:.1f}">'
                    f"<title>{edges[i]:.4g} to {edges[i + 1]:.4g}: {count:,} {name}</title></rect>"
                )
    for limit in figures.limits:
        x = LEFT + across * (limit - low) / (high - low)
        anchor, shift = ("end", -4) if x > WIDTH - 90 else ("start", 4)
        parts.append(
            f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="limit" x="{x + shift:.1f}" y="{TOP + 4}" text-anchor="{anchor}">{limit:g}</text>'
        )
    for tick in _ticks(low, high):
        x = LEFT + across * (tick - low) / (high - low)
        parts.append(
            f'<text class="soft" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="soft" x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{most:,}</text>'
        f'<text class="soft" x="{LEFT - 6}" y="{HEIGHT - BOTTOM}" text-anchor="end">0</text>'
    )
    return _svg(WIDTH, HEIGHT, "".join(parts), f"{figures.score or figures.name} of the clips")


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def _svg(width: float, height: float, inner: str, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{inner}</svg>'
    )
