"""The funnel of the page: a bar for what is left after each step."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from ea_data.report.figures import FunnelStep
from ea_data.report.templating import render

#: Steps that are no filters, in words.
_NAMES = {
    "found": "raw files",
    "source": "no second copies",
    "split": "with a scene long enough",
    "clips": "clips",
}


def funnel(steps: Sequence[FunnelStep]) -> Markup:
    """A bar for each step, as long as its hours; of pictures, which have none, as its count."""
    has_hours = steps[0].hours > 0
    most = {
        unit: max([1, *(step.count for step in steps if step.unit == unit)]) for unit in ("files", "clips")
    }
    bars = []
    for before, step in zip([steps[0], *steps], steps, strict=False):
        share = step.hours / steps[0].hours if has_hours else step.count / most[step.unit]
        bars.append(
            {
                "name": _NAMES.get(step.name, step.name),
                "share": 100 * min(1.0, share),
                "label": f"{step.count:,} {step.unit if step.count != 1 else step.unit[:-1]}, {_time(step.hours)}",
                "loss": _loss(before, step),
            }
        )
    return render("funnel.html", bars=bars)


def _loss(before: FunnelStep, step: FunnelStep) -> str:
    """The loss of a step: "−12, −0.5 h"; empty if nothing, and where files become clips."""
    if before.unit != step.unit:
        return ""
    words = [f"\u2212{before.count - step.count:,}"] if before.count != step.count else []
    if before.hours - step.hours > 1e-6:
        words.append(f"\u2212{_time(before.hours - step.hours)}")
    return ", ".join(words)


def _time(hours: float) -> str:
    """Hours of large sets, minutes and seconds of small ones."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
