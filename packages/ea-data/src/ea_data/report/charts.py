"""Plots as inline SVG, without scripts, fonts or other files."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from ea_data.report.figures import FilterFigures
from ea_data.report.templating import render

WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 30
BINS = 40


def histogram(figures: FilterFigures) -> Markup:
    """Stacked bars of the kept and the dropped clips' scores, with a line at each limit; empty without scores.

    Values beyond the 0.5 and 99.5 per cent quantiles (widened to show the limits) are in the outermost bars.
    """
    values = {
        "kept": np.frombuffer(figures.kept_values, dtype=np.float32),
        "dropped": np.frombuffer(figures.dropped_values, dtype=np.float32),
    }
    every = np.concatenate(list(values.values()))
    every = every[np.isfinite(every)]
    if not len(every):
        return Markup()
    low, high = _range(every, figures.limits)
    edges = np.linspace(low, high, BINS + 1)
    counts = {name: np.histogram(np.clip(part, low, high), edges)[0] for name, part in values.items()}
    most = max(1, int((counts["kept"] + counts["dropped"]).max()))
    floor, across = HEIGHT - BOTTOM, WIDTH - LEFT - RIGHT

    def place(value: float) -> float:
        return LEFT + across * (value - low) / (high - low)

    bars = []
    for i in range(BINS):
        y = float(floor)
        for name, count in ((name, int(found[i])) for name, found in counts.items() if found[i]):
            tall = max(1.0, (floor - TOP) * count / most)
            y -= tall
            title = f"{edges[i]:.4g} to {edges[i + 1]:.4g}: {count:,} {name}"
            x, width = LEFT + across * i / BINS, across / BINS - 0.6
            bars.append({"kind": name, "x": x, "y": y, "width": width, "height": tall, "title": title})
    return render(
        "histogram.svg",
        title=f"{figures.score or figures.name} of the clips",
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        top=TOP,
        floor=floor,
        most=most,
        bars=bars,
        limits=[(place(limit), f"{limit:g}") for limit in figures.limits],
        ticks=[(place(tick), f"{tick:g}") for tick in _ticks(low, high)],
    )


def _range(values: np.ndarray, limits: Sequence[float]) -> tuple[float, float]:
    """From and to of the axis: the middle 99 per cent and the limits, with some room."""
    low, high = (float(v) for v in np.quantile(values, [0.005, 0.995]))
    low, high = min([low, *limits]), max([high, *limits])
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    room = 0.03 * (high - low)
    return (low - room if low < 0 or low - room > 0 else 0.0), high + room


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]
