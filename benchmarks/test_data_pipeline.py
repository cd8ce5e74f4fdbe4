"""The data pipeline: time saved by decoding once, cost of a new threshold, flat memory, and processor seconds per clip
and stage.

EA_FULL=1 tries ledger and store with a million clips, and measures the stages at 1280x720 too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NUM_VIDEOS = 11
#: a longer run has a separate results file
FULL = "_full" if os.environ.get("EA_FULL") else ""
SIZES = (100, 1000, 10_000, *((1_000_000,) if os.environ.get("EA_FULL") else ()))
#: height and width of the videos whose stages are measured
FRAMES = ((270, 480), *(((720, 1280),) if os.environ.get("EA_FULL") else ()))

#: Synthetic clips: probes, spans and scores go into a ledger, then all clips are judged and written.
_CHILD = """
import json, sys, time
from collections import Counter
from fractions import Fraction
from pathlib import Path
import numpy as np
from ea_data.media.signature import COLOURS, GRID, RATE, Signature
from ea_data.records.ledger import Ledger
from ea_data.profile import Components, load, parse
from ea_data.records.record import clip_id
from ea_data.run.pipeline import Pipeline
from ea_data.protocols import VideoInfo
from ea_data.run.worker import entry_of_probe, versions_of
from ea_runtime.machine.memory import peak_rss

out, count = Path(sys.argv[1]), int(sys.argv[2])
A_FILE = 10
tables = load("offline", ["filter.motion.max=0.25"])
parts = Components(parse(tables, "offline"))
versions = versions_of(parts)
film = VideoInfo(Path("film.mp4"), 1280, 720, Fraction(24), 60.0, 1440, "h264")

def files():
    for number in range(-(-count // A_FILE)):
        yield {"source": f"{number // 1000:04d}/{number:08d}.mp4", "key": f"file {number}", "size": 1}

def clip(content, number):
    start = number * 144
    return {"clip_id": clip_id(content, start), "start": start / 24, "end": start / 24 + 6, "start_pts": start,
            "end_pts": start + 144, "time_base": "1/24", "start_frame": start, "is_counted": True,
            "num_frames": 144, "bits": 24_000_000, "is_whole": False}

def look_of(number):
    # 6 s of one picture that becomes another; one clip in twenty is a copy of the one before it, a level off
    is_copy = number % 20 == 19
    rng = np.random.default_rng(number - is_copy)
    colour = np.repeat(rng.integers(-60, 60, (1, COLOURS, COLOURS, 2)), 6, 0)
    # as pictures are: twice the detail has half the contrast
    first, last = (
        120 + sum(np.kron(rng.normal(0, 3 * side, (n, n)), np.ones((side, side)))
                  for n in (2, 3, 4, 6, 12) for side in (GRID // n,))
        for _ in range(2))
    luma = first + (last - first) * np.linspace(0, 1, 6 * RATE)[:, None, None]
    luma += rng.integers(0, 3, luma.shape) if is_copy else 1
    return Signature(luma.clip(0, 255).astype(np.uint8), colour.astype(np.int8)).pack()

def fill(ledger):
    for number, file in enumerate(files()):
        content = f"{number:064x}"
        ledger.put(file["key"], "probe", versions.probe, entry_of_probe(film, content))
        clips = [clip(content, index) for index in range(A_FILE)]
        ledger.put(content, "split", versions.split, {"clips": clips})
        for index, one in enumerate(clips):
            look = look_of(number * A_FILE + index)
            value = ((number * A_FILE + index) * 7919 % 1000) / 2000
            for part in parts.scores:
                detail = {"short_side": 720, "width": 1280, "height": 720, "seconds": 6.0}
                detail |= {"signature": look, "picture": 1.0} if part.name == "duplicates" else {}
                values = [value] * (24 if part.name == "dis" else 4)
                score = {"technical": 0.5, "compression": 1.0, "duplicates": 30.0, "dis": value}.get(part.name, 0.0)
                entry = {"value": score, "values": values, "detail": detail}
                ledger.put(one["clip_id"], f"score:{part.name}", versions.scores[part.name], entry)

class Synthetic(Pipeline):
    def _find(self):
        return files()

def peak():
    return peak_rss() / 2**20

def processor():
    return time.process_time()  # the machine may have other things to do

began, busy = time.monotonic(), processor()
with Ledger(out / "ledger") as ledger:
    fill(ledger)
    entries = len(ledger)
filled, filled_cpu, peak_filled = time.monotonic() - began, processor() - busy, peak()
disk = sum(path.stat().st_size for path in (out / "ledger").iterdir())
began, busy = time.monotonic(), processor()
outcome = Synthetic(Path("/"), out, tables, None, command="filter").run()
judged, judged_cpu = time.monotonic() - began, processor() - busy
print(json.dumps({
    "clips": sum(outcome.statuses.values()), "kept": outcome.statuses["ok"], "entries": entries,
    "copies": outcome.dropped["duplicate"], "fill_s": round(filled, 1), "fill_cpu_s": round(filled_cpu, 1),
    "judge_s": round(judged, 1), "judge_cpu_s": round(judged_cpu, 1), "rss_fill_mb": round(peak_filled),
    "rss_mb": round(peak()), "ledger_mb": round(disk / 1e6, 1),
    "records_mb": round((out / "records.parquet").stat().st_size / 1e6, 1)}))
"""


def synthetic(folder: Path, count: int) -> dict[str, Any]:
    words = [sys.executable, "-c", _CHILD, str(folder), str(count)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    shutil.rmtree(folder)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_clips(tmp_path: Path, report: Any):
    figures = {count: synthetic(tmp_path / str(count), count) for count in SIZES}
    report(f"data_ledger{FULL}", {str(count): told for count, told in figures.items()})
    for count, told in figures.items():
        assert told["clips"] >= count
        assert 0 < told["kept"] < told["clips"]
    # the database's caches fill up (32 and 16 MB), then nothing grows
    assert figures[1000]["rss_mb"] - figures[100]["rss_mb"] < 20
    assert figures[SIZES[-1]]["rss_mb"] - figures[100]["rss_mb"] < 150


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ea_data.draw.raw_write import write_raw

    folder = tmp_path_factory.mktemp("drawn") / "raw"
    write_raw(folder, NUM_VIDEOS, 0)
    return folder.resolve()


def parts_and_tables() -> tuple[Any, dict[str, Any]]:
    from ea_data.profile import Components, load, parse

    tables = load("offline")
    return Components(parse(tables, "offline")), tables


@pytest.mark.slow
def test_decoding_once_against_once_a_stage(raw: Path, report: Any):
    """The frames that the default profile's scorers ask for, read once for all and once per scorer."""
    from ea_data.media.frames import read_frames
    from ea_data.media.probe import probe

    parts, _ = parts_and_tables()
    requests = [part.component.needs for part in parts.scores if part.component.needs.mode != "none"]
    together = apart = 0.0
    for path in sorted(raw.glob("*.mp4")):
        info = probe(path, raw).info
        span = (path, raw, 0.0, min(info.seconds, 10.0), float(info.fps))
        began = time.perf_counter()
        read_frames(*span, requests)
        middle = time.perf_counter()
        for request in requests:
            read_frames(*span, [request])
        together += middle - began
        apart += time.perf_counter() - middle
    ratio = apart / together
    figures = {"once_s": round(together, 3), "a_stage_s": round(apart, 3), "ratio": round(ratio, 2)}
    report("data_decode_once", {"scorers": len(requests), **figures})
    assert ratio >= 2


@pytest.mark.slow
def test_a_new_threshold_against_a_full_run(raw: Path, tmp_path: Path, report: Any):
    from ea_data.profile import load
    from ea_data.run.engine import Limits, LocalEngine
    from ea_data.run.pipeline import Pipeline
    from ea_data.run.worker import Worker

    _, tables = parts_and_tables()
    engine = LocalEngine(Worker(tables, str(raw)), Limits(os.cpu_count() or 1))
    began = time.perf_counter()
    full = Pipeline(raw, tmp_path / "set", tables, engine).run()
    middle = time.perf_counter()
    engine.close()
    tighter = load("offline", ["filter.motion.max=0.05"])
    again = Pipeline(raw, tmp_path / "set", tighter, None, command="filter").run()
    seconds = time.perf_counter() - middle
    assert again.statuses["ok"] < full.statuses["ok"]
    ratio = (middle - began) / seconds
    figures = {"full_s": round(middle - began, 1), "rerun_s": round(seconds, 3), "ratio": round(ratio)}
    clips_a_second = round(full.clips / (middle - began), 2)
    report("data_rerun", {"clips": full.clips, "clips_a_second": clips_a_second, **figures})
    assert ratio >= 50


def stages(raw: Path, target: Path) -> dict[str, Any]:
    """Processor seconds of this process for each stage of the default profile, every score of every clip computed."""
    from collections import defaultdict
    from dataclasses import asdict

    from ea_data.media.cut import write_clip
    from ea_data.media.frames import read_frames
    from ea_data.media.probe import probe
    from ea_data.media.timeline import place_of
    from ea_data.protocols import Frames
    from ea_data.run.worker import clip_entry

    parts, _ = parts_and_tables()
    no_frames = Frames(np.zeros(0), np.zeros(0))
    spent: defaultdict[str, float] = defaultdict(float)
    source_seconds = clip_seconds = 0.0
    num_bytes = num_written = clips = 0

    def timed(stage: str, action: Any) -> Any:
        began = time.process_time()
        result = action()
        spent[stage] += time.process_time() - began
        return result

    paths = sorted(raw.glob("*.mp4"))
    # the first one twice: loading at the first call is not counted
    for number, path in enumerate([paths[0], *paths]):
        if number == 1:
            spent.clear()
            source_seconds = clip_seconds = 0.0
            num_bytes = num_written = clips = 0
        found = timed("probe", lambda path=path: probe(path, raw))
        info = found.info
        source_seconds += info.seconds
        num_bytes += path.stat().st_size
        for span in timed("split", lambda path=path, info=info: parts.split.component(path, info)):
            clips += 1
            clip_seconds += span.end - span.start
            name = f"{path.stem} {span.start}"
            record = {**asdict(info), **clip_entry(span, info, found.content, found.timeline, "")}
            record |= {"clip_id": name, "path": str(path), "is_whole": False}
            record |= {"fps": float(info.fps), "fps_exact": str(info.fps)}
            needs = [part.component.needs for part in parts.scores if part.component.needs.mode != "none"]
            where = (path, raw, span.start, span.end, float(info.fps), needs)
            place = place_of(record)
            frames = timed("decode", lambda where=where, place=place: read_frames(*where, place=place))
            for part in parts.scores:
                given = frames.get(part.component.needs, no_frames)
                timed(part.name, lambda part=part, given=given, record=record: part.component(given, record))
            written = timed("cut", lambda record=record: write_clip(record, raw, target / "clip.mp4"))
            num_written += written.num_bytes
    return {
        "source_s": round(source_seconds, 1),
        "source_mbit_s": round(num_bytes * 8e-6 / source_seconds, 2),
        "clips": clips,
        "clip_s": round(clip_seconds, 1),
        "cut_mbit_s": round(num_written * 8e-6 / clip_seconds, 2),
        # cut detection reads the whole file
        "a_source_second": {name: round(spent.pop(name) / source_seconds, 4) for name in ("probe", "split")},
        "a_clip_second": {name: round(spent.pop(name) / clip_seconds, 4) for name in ("decode", "cut")},
        "a_clip": {name: round(seconds / clips, 4) for name, seconds in spent.items()},
    }


def picture_stages(raw: Path, target: Path) -> dict[str, float]:
    """Processor seconds per picture and stage: the first frame of each video, as a JPEG."""
    from ea_data.media.cut import write_clip
    from ea_data.media.frames import read_frames
    from ea_data.media.probe import probe
    from ea_data.protocols import FrameRequest

    parts, _ = parts_and_tables()
    scorers = [part for part in parts.scores if not getattr(part.component, "videos_only", False)]
    scorers = [part for part in scorers if part.component.needs.mode != "none"]
    spent = dict.fromkeys(("probe", "decode", "score", "copy"), 0.0)
    shown = FrameRequest("even", 1, offset=0.0)
    paths = sorted(raw.glob("*.mp4"))
    for number, video in enumerate([paths[0], *paths]):
        if number == 1:
            spent = dict.fromkeys(spent, 0.0)
        path = target / f"{video.stem}.jpg"
        Image.fromarray(read_frames(video, raw, 0.0, 1.0, 24.0, [shown])[shown].pixels[0]).save(path)
        began = time.process_time()
        info = probe(path, target).info
        probed = time.process_time()
        frames = read_frames(path, target, 0.0, 0.0, 0.0, [part.component.needs for part in scorers])
        decoded = time.process_time()
        record = {
            "path": str(path),
            "width": info.width,
            "height": info.height,
            "is_picture": True,
            "codec": "jpeg",
        }
        for part in scorers:
            part.component(frames[part.component.needs], record)
        scored = time.process_time()
        write_clip(record, target, target / "copy.jpg")
        spent["probe"] += probed - began
        spent["decode"] += decoded - probed
        spent["score"] += scored - decoded
        spent["copy"] += time.process_time() - scored
        path.unlink()
    return {name: round(seconds / len(paths), 4) for name, seconds in spent.items()}


@pytest.mark.slow
def test_processor_seconds_of_each_stage(tmp_path: Path, report: Any):
    from ea_data.draw.raw_write import write_raw

    figures = {}
    for height, width in FRAMES:
        raw = tmp_path / f"{width}x{height}"
        write_raw(raw, NUM_VIDEOS, 0, height, width)
        pictures = tmp_path / "pictures"
        pictures.mkdir(exist_ok=True)
        told = stages(raw.resolve(), tmp_path)
        figures[raw.name] = {**told, "a_picture": picture_stages(raw.resolve(), pictures.resolve())}
    report(f"data_stages{FULL}", figures)
    for told in figures.values():
        assert told["clips"] > NUM_VIDEOS
        assert all(seconds >= 0 for seconds in told["a_clip"].values())
