"""run.html, a page of a run that needs no other file: losses, speed, memory, samples and the time left.

It is written again every `train.page_every` steps, and reloads itself in the browser until the run ends.
"""

from __future__ import annotations

import base64
import io
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w

from ea_runtime.files.atomic import write_atomic
from ea_runtime.files.templates import page_templates
from ea_runtime.plugins.host import get_host
from ea_runtime.records import MetricRecord
from ea_runtime.training.run.charts import HEIGHT, WIDTH, Chart, Line, draw_chart
from ea_runtime.training.run.history import Curve, History
from ea_runtime.training.run.progress import duration

if TYPE_CHECKING:
    from jinja2 import Environment

NAME = "run.html"
#: seconds between two writes, however short the steps, and until the browser reads again
_LEAST_SECONDS = 3.0
_RELOAD_SECONDS = 10
#: sample sheets on the page, and pixels of their width
_SHEETS, _SHEET_WIDTH = 6, 960
#: steps in a mean
_RECENT = 50


class RunPage:
    """The page of the run in `folder`.

    config: the whole config as run. steps: of the whole run. every: steps between two writes.
    """

    def __init__(self, folder: Path, config: dict[str, Any], steps: int, every: int) -> None:
        self.folder, self.config, self.steps, self.every = folder, config, steps, every
        self.history = History()
        self.history.read(folder)
        self._written = 0.0
        self._sheets: dict[Path, str] = {}

    def line(self, line: dict[str, Any]) -> None:
        """Takes a line of log.jsonl, and writes the page if it is time."""
        self.history.take(line)
        if self.history.step % self.every == 0 and time.monotonic() - self._written >= _LEAST_SECONDS:
            self.write()

    def write(self, state: str = "running", note: str = "") -> None:
        """Writes the page. state: "running", "finished" or "stopped". note: why it stopped."""
        write_atomic(self.folder / NAME, self._page(state, note))
        self._written = time.monotonic()

    def _page(self, state: str, note: str) -> str:
        history, name = self.history, self.folder.resolve().name
        return (
            _environment()
            .get_template("run.html")
            .render(
                title=f"{name}: {self.config.get('run', {}).get('recipe', 'run')}",
                state=state,
                note=note,
                reload=_RELOAD_SECONDS if state == "running" else 0,
                share=100 * history.step / max(self.steps, 1),
                cards=self._cards(state),
                charts=[chart for chart in self._charts() if chart is not None],
                sheets=self._shown_sheets(),
                config=tomli_w.dumps(self.config),
                width=WIDTH,
                height=HEIGHT,
            )
        )

    def _cards(self, state: str) -> list[tuple[str, str]]:
        history = self.history
        seconds, speed = history.last("seconds", _RECENT), history.last("speed", _RECENT)
        loss, held_out, memory = (
            history.last("loss", _RECENT),
            history.last("val_loss"),
            history.last("memory"),
        )
        left = (self.steps - history.step) * seconds if seconds and state == "running" else None
        found = [
            ("step", f"{history.step:,} of {self.steps:,}"),
            ("time left", None if left is None else duration(left)),
            (f"loss, last {_RECENT} steps", None if loss is None else f"{loss:.4g}"),
            ("loss of held-out samples", None if held_out is None else f"{held_out:.4g}"),
            ("samples a second", None if speed is None else f"{speed:.3g}"),
            ("memory, peak", None if memory is None else f"{memory / 1000:.2f} GB"),
            ("samples", f"{history.samples:,}"),
            ("skipped steps", str(len(history.skipped)) if history.skipped else None),
            ("rollbacks", str(len(history.rollbacks)) if history.rollbacks else None),
        ]
        return [(label, text) for label, text in found if text is not None]

    def _charts(self) -> list[Chart | None]:
        history, last = self.history, self.history.step
        marks = [(step, f"back at step {step}: the loss had spiked") for step in history.rollbacks]
        skipped = ((step, history.before(step)) for step in history.skipped)
        dots = [(step, loss, f"step {step} was skipped") for step, loss in skipped if loss is not None]
        losses = [
            *(_line("given up after a spike", curve, dim=True) for curve in history.abandoned),
            *self._lines({"training": "loss", "held-out": "val_loss"}),
        ]
        return [
            draw_chart("Loss", losses, last, marks=marks, dots=dots),
            *(
                draw_chart(title, [one(f"from t = {int(t)}", curve) for t, curve in bins.items()], last)
                for title, bins, one in (
                    ("Loss by timestep", history.bins("loss"), _mean_line),
                    ("Loss of held-out samples by timestep", history.bins("val_loss"), _line),
                )
            ),
            *self._judged_charts(),
            draw_chart("Samples a second", self._lines({"samples a second": "speed"}), last, from_zero=True),
            draw_chart("Peak memory, MB", self._lines({"MB": "memory"}), last, from_zero=True),
            draw_chart("Learning rate", self._lines({"rate": "lr"}), last, from_zero=True),
            draw_chart("Gradient norm, before it is clipped", self._lines({"norm": "grad_norm"}), last),
        ]

    def _judged_charts(self) -> list[Chart | None]:
        """One chart of drawn samples for each unit of metrics."""
        records = get_host().records("metrics")
        units: dict[str, list[Line]] = {}
        for name, curve in self.history.judged().items():
            entry = records.get(name.partition(".")[0])
            unit = entry.record.unit if entry is not None and isinstance(entry.record, MetricRecord) else ""
            units.setdefault(unit, []).append(_line(name, curve))
        return [
            draw_chart(
                f"Drawn samples: {', '.join(line.name for line in lines)}" + (f" ({unit})" if unit else ""),
                lines,
                self.history.step,
                from_zero=True,
            )
            for unit, lines in sorted(units.items())
        ]

    def _lines(self, names: dict[str, str]) -> list[Line]:
        curves = self.history.curves
        return [_line(label, curves[name]) for label, name in names.items() if name in curves]

    def _shown_sheets(self) -> list[tuple[str, str]]:
        """Steps and pictures, as data addresses: some of all sample sheets, the newest last."""
        numbers = {int(path.stem[5:]): path for path in (self.folder / "samples").glob("step-*.png")}
        found = [numbers[step] for step in sorted(numbers) if step <= self.history.step]
        if len(found) > _SHEETS:
            found = [found[round(i * (len(found) - 1) / (_SHEETS - 1))] for i in range(_SHEETS)]
        self._sheets = {path: self._sheets.get(path) or _picture(path) for path in found}
        return [(path.stem[5:], data) for path, data in self._sheets.items()]


def _line(name: str, curve: Curve, dim: bool = False) -> Line:
    return Line(name, *curve.numbers(), dim=dim)


def _mean_line(name: str, curve: Curve) -> Line:
    """Running means: one step has few samples of a bin."""
    steps, values = curve.numbers()
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - _RECENT, 0)
    return Line(name, steps, (sums[ends] - sums[starts]) / (ends - starts))


def _picture(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as sheet:
        picture = sheet.convert("RGB")
    if picture.width > _SHEET_WIDTH:
        picture = picture.resize((_SHEET_WIDTH, max(1, round(picture.height * _SHEET_WIDTH / picture.width))))
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode("ascii")


@cache
def _environment() -> Environment:
    return page_templates("ea_runtime.training.run")
