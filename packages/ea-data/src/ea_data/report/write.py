"""Writes report.html and summary.json of a set."""

from __future__ import annotations

import os
import platform
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ea_data.children.supervisor import Failure, Supervisor
from ea_data.media.frames import read_frames
from ea_data.media.look import Look
from ea_data.media.source import tell_skipped
from ea_data.media.timeline import place_of
from ea_data.options import installed_versions
from ea_data.protocols import FrameRequest
from ea_data.records.store import CONFIG, iter_rows, read_sources, write_text
from ea_data.records.timings import read_timings
from ea_data.report.figures import Figures, gather
from ea_data.report.page import page
from ea_data.report.paint import FRAMES, WIDTH, looked_at, num_samples, paint
from ea_data.report.summary import summary, to_json
from ea_runtime.errors import UserError

#: Seconds and bytes that decoding one example may take.
TIMEOUT, MEMORY_MB = 30.0, 4096
_PACKAGES = "ea-data ea-runtime av numpy scenedetect-headless opencv-python-headless rapidocr"


class _Painter:
    """Makes the JPEG of a row's frames, in a child. Raises ValueError if the source does not decode."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, row: dict[str, Any]) -> bytes:
        shown = FrameRequest("even", FRAMES, max_side=2 * WIDTH)
        requests = [shown]
        if num_looked := num_samples(row):
            # boxes belong to the exact frame in which they were found
            requests.append(FrameRequest("even", num_looked, max_side=2 * WIDTH))
        path = self.root / row["source"]
        span = (row["start"], row["end"], row["fps"] or 0.0)
        place = place_of(row) if row["num_frames"] else None  # None: of a file without clip, the whole
        found = read_frames(path, self.root, *span, requests, place=place, look=Look.of(row))
        pixels, seconds = found[shown].pixels.copy(), found[shown].seconds.copy()
        if num_looked:
            with_text = {one["second"] for one in looked_at(row) if one["boxes"]}
            exact = found[requests[-1]]
            for frame, second in zip(exact.pixels, exact.seconds, strict=True):
                if round(float(second), 3) in with_text:
                    place = int(np.abs(seconds - second).argmin())
                    pixels[place], seconds[place] = frame, second
        return paint(pixels, seconds.tolist(), row)


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Writes the page (`folder`/report.html if `output` is not given) and `folder`/summary.json.

    Raises UserError, one line, if `folder` is no set or the page cannot be written. For a clip whose source is gone
    or damaged, the page says so in its place.
    """
    config = folder / CONFIG
    if not config.is_file():
        raise UserError(f"`set` must be a folder that `ea data run` made, got {str(folder)!r}")
    figures = gather(iter_rows(folder))
    target = output or folder / "report.html"
    write_text(folder / "summary.json", to_json(summary(figures)))
    pictures = dict(_pictures(figures, _raw_root(config)))
    name, ran = folder.resolve().name, config.read_text(encoding="utf-8")
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    versions |= dict.fromkeys(_PACKAGES.split(), "not installed") | installed_versions(_PACKAGES.split())
    painter, timings = (lambda row: pictures[row["clip_id"]]), read_timings(folder)
    text = page(name, figures, painter, ran, versions, _skipped(folder), timings)
    write_text(target, text)
    return target


def _skipped(folder: Path) -> str:
    """The skipped files of the search for raw files, in words."""
    return tell_skipped(read_sources(folder)["skipped"])


def _raw_root(config: Path) -> Path:
    """The folder of raw files that the set was made from."""
    try:
        return Path(tomllib.loads(config.read_text(encoding="utf-8"))["run"]["raw"])
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__} {error}"
        raise UserError(f"{str(config)!r} is not the config of a set: {reason}") from error


def _pictures(figures: Figures, root: Path) -> Iterator[tuple[str, bytes | str]]:
    """The picture of every clip on the page, each once, or one line that says why there is none."""
    rows: dict[str, dict[str, Any]] = {}
    for part in figures.filters:
        for pick in (part.nearest, part.dropped, part.kept):
            rows |= {row["clip_id"]: row for row in pick.rows()}
    if not root.is_dir():
        yield from ((clip, f"the raw files are no longer at {root}") for clip in rows)
        return
    # only what painting needs is sent: rows may be large
    places = ("start", "end", "fps", "start_pts", "end_pts", "start_frame", "num_frames", "is_counted")
    looks = ("sample_aspect", "is_interlaced", "transfer", "rotation", "bars", "is_cropped")
    names = ("source", *places, *looks, "scores")
    tasks = [{name: row.get(name) for name in names} for row in rows.values()]
    workers = min(4, os.cpu_count() or 1)
    with Supervisor(_Painter(root), workers, TIMEOUT, MEMORY_MB) as pool:
        for clip, result in zip(rows, pool.map(tasks), strict=True):
            yield clip, result.reason if isinstance(result, Failure) else result
