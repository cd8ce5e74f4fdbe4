"""Line charts as SVG paths, for a page without scripts: long curves become means with a band from least to most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

WIDTH, HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 8, 22
#: points of a curve; more are put together
_POINTS = 300
#: a chart of positive values has a logarithmic scale from this ratio of its largest to its least on
_LOG_RATIO = 8.0


@dataclass(frozen=True, slots=True)
class Line:
    """A curve of a chart: steps and values (N,). dim: drawn in the background, without a band."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    dim: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as a template draws it, in WIDTH x HEIGHT. marks: x and text of vertical lines. dots: x, y, text."""

    title: str
    curves: list[dict[str, str]] = field(default_factory=list)
    ticks_x: list[dict[str, float | str]] = field(default_factory=list)
    ticks_y: list[dict[str, float | str]] = field(default_factory=list)
    marks: list[dict[str, float | str]] = field(default_factory=list)
    dots: list[dict[str, float | str]] = field(default_factory=list)


def draw_chart(
    title: str,
    lines: Sequence[Line],
    last_step: int,
    *,
    marks: Sequence[tuple[int, str]] = (),
    dots: Sequence[tuple[int, float, str]] = (),
    from_zero: bool = False,
) -> Chart | None:
    """A chart over steps 1..last_step; None if there is nothing to draw.

    marks: steps with a vertical line. dots: steps and values with a dot. from_zero: the scale begins at 0.
    """
    shown = [_shortened(one) for one in lines if len(one.steps)]
    if not shown:
        return None
    scaling = [one for one in shown if not one[0].dim] or shown
    ends = [np.quantile(line.values, (0.01, 0.99)) for line, *_ in scaling]
    seen = np.concatenate([*(means for _, means, *_ in scaling), *ends])  # an outlier does not set the scale
    low, high = float(seen.min()), float(seen.max())
    is_log = not from_zero and low > 0 and high / low >= _LOG_RATIO
    if from_zero:
        low = 0.0
    if high <= low:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    first = 1 if last_step > 1 else 0
    scale = math.log10 if is_log else float
    bottom, top = scale(low), scale(high)

    def x(step: float) -> float:
        share = (step - first) / max(last_step - first, 1)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(value: float) -> float:
        # what was given up may go far beyond
        value = min(max(value, low), high)
        return round(
            HEIGHT - _BOTTOM - (scale(value) - bottom) / (top - bottom) * (HEIGHT - _TOP - _BOTTOM), 1
        )

    curves: list[dict[str, str]] = []
    number = -1
    for line, values, steps, least, most in shown:
        number += not line.dim
        path = "M" + "L".join(f"{x(step)} {y(value)}" for step, value in zip(steps, values, strict=True))
        there = [f"{x(step)} {y(value)}" for step, value in zip(steps, most, strict=True)]
        back = [f"{x(step)} {y(value)}" for step, value in zip(steps[::-1], least[::-1], strict=True)]
        has_band = not line.dim and len(shown) == 1 + sum(one[0].dim for one in shown)
        band = "M" + "L".join([*there, *back]) + "Z" if has_band and len(steps) < len(line.steps) else ""
        kind = "dim" if line.dim else f"c{number % 8}"
        curves.append({"name": line.name, "path": path, "band": band, "kind": kind})
    return Chart(
        title,
        curves,
        [{"x": x(step), "text": _short(step)} for step in _even_ticks(first, last_step) if step == int(step)],
        [{"y": y(v), "text": _short(v)} for v in (_log_ticks if is_log else _even_ticks)(low, high)],
        [{"x": x(step), "text": text} for step, text in marks],
        [{"x": x(step), "y": y(value), "text": text} for step, value, text in dots],
    )


def _shortened(line: Line) -> tuple[Line, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The line, means of neighbouring values, their steps, and the least and the most of each."""
    steps, values = line.steps, line.values
    if len(steps) <= _POINTS:
        return line, values, steps, values, values
    starts = np.unique(np.linspace(0, len(steps), _POINTS, endpoint=False).astype(int))
    counts = np.diff([*starts, len(steps)])
    means = np.add.reduceat(values, starts) / counts
    places = np.add.reduceat(steps, starts) / counts
    return line, means, places, np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)


def _even_ticks(low: float, high: float) -> list[float]:
    """About four round numbers from low to high."""
    rough = (high - low) / 4
    size = 10 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    size *= next((factor for factor in (1, 2, 5, 10) if rough / size <= factor), 10)
    start = math.ceil(low / size - 1e-9)
    return [number * size for number in range(start, math.floor(high / size + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between low and high; of many decades the powers alone."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(decades) > 3 else (1, 2, 5)
    return [f * 10.0**power for power in decades for f in factors if low <= f * 10.0**power <= high]


def _short(value: float) -> str:
    """12k, 1.5M, 1,500, 0.004."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and unit != "k"):
            return f"{value / size:g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
