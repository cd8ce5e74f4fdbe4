"""A plugin file with components that need no weights and misbehave on request, and a way to run the pipeline."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ea_data.run.engine import Limits, LocalEngine
from ea_data.run.pipeline import Outcome, Pipeline
from ea_data.run.worker import Worker
from ea_runtime.plugins import host as plugins

PLUGIN = '''
import os, time
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from ea_data.protocols import Caption, Cut, Decision, FrameRequest, Lost, Score, Span, Spans
from ea_data.children.supervisor import TransientError
from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import CaptionerRecord, FilterRecord, ScorerRecord, SplitterRecord


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def count(what):
    """A line in the file that EA_TEST_CALLS names, for each call."""
    if "EA_TEST_CALLS" in os.environ:
        with open(os.environ["EA_TEST_CALLS"], "a") as file:
            file.write(what + "\\n")


def misbehave(source):
    """A scorer does with a file what its name says."""
    if "exit" in source:
        os._exit(7)
    if "hang" in source:
        time.sleep(1000)
    if "eat" in source:
        kept = []
        while True:
            kept.append(bytearray(b"x" * (8 << 20)))
    if "raise" in source:
        raise RuntimeError("no good")
    if "nan" in source:
        return float("nan")
    if "later" in source and "EA_TEST_SERVER" not in os.environ:
        raise TransientError("the server is away")
    return 0.0


class SplitOptions(Options):
    seconds: float = 1.0


class EvenSplitter:
    version = "1"

    def __init__(self, options):
        self.options = options

    def __call__(self, path, info):
        count("split")
        if "badsplit" in path.name:
            os._exit(9)
        length = self.options.seconds
        return [Span(n * length, (n + 1) * length) for n in range(int(info.seconds / length))]


class TellingSplitter(EvenSplitter):
    """Two clips, and half a second between them that is lost."""

    def __call__(self, path, info):
        lost = [Lost(1.0, 1.5, "transition")]
        return Spans([Span(0, 1), Span(1.5, 2)], cuts=[Cut(1.0, 1.25)], longest_scene=1.5, lost=lost)


class Light:
    """The mean of the pixels; cheap."""

    version, cost, needs = "1", 1.0, FrameRequest("even", 3, 64)

    def __init__(self, options):
        self.options = options

    def __call__(self, frames, record):
        count("light")
        return Score(round(float(frames.pixels.mean()), 6), detail={"frames": len(frames.pixels)})


class Change:
    """The mean change from frame to frame; dear, and it may misbehave."""

    version, cost, needs = "1", 100.0, FrameRequest("fps", 6, 0, "gray")

    def __init__(self, options):
        self.options = options

    def __call__(self, frames, record):
        count("change")
        pixels = frames.pixels.astype(np.int16)
        values = np.abs(np.diff(pixels, axis=0)).mean((1, 2)).round(6).tolist()
        return Score(float(np.mean(values)) + misbehave(record["source"]), tuple(values))


class LimitOptions(Options):
    min: float = 0.0


class Limit:
    version = "1"

    def __init__(self, options, score):
        self.options, self.scores = options, (score,)

    def __call__(self, record):
        value, least = record["scores"][self.scores[0]]["value"], self.options.min
        return Decision(value >= least, f"{value:g}", f">= {least:g}", self.scores[0], value, least)


class Twin:
    """Of clips of equal light, the first by clip_id stays."""

    version, scores = "1", ("light",)

    def __init__(self, options):
        self.options = options

    def order(self, record):
        return (record["clip_id"],)

    def judge(self, records):
        seen = set()
        for record in records:
            value = record["scores"]["light"]["value"]
            yield Decision(value not in seen, "seen before" if value in seen else "new")
            seen.add(value)


class Words:
    version, needs = "1", FrameRequest("middle", max_side=32)

    def __init__(self, options):
        self.options = options

    def __call__(self, frames, record):
        count("caption")
        return Caption(f"{record['source']} from {record['start']:g} s, {frames.pixels.shape}", "test")


class Server(Words):
    """Waits for a server: called from threads of the parent."""

    concurrency = 3


@hookimpl
def ea_splitters():
    telling = SplitterRecord("telling", "with losses", TellingSplitter, SplitOptions)
    return [SplitterRecord("even", "equal pieces", EvenSplitter, SplitOptions), telling]


@hookimpl
def ea_scorers():
    return [
        ScorerRecord("light", "mean", Light, Options),
        ScorerRecord("change", "mean change", Change, Options),
    ]


@hookimpl
def ea_filters():
    return [
        FilterRecord("bright", "light", lambda options: Limit(options, "light"), LimitOptions),
        FilterRecord("moving", "change", lambda options: Limit(options, "change"), LimitOptions),
        FilterRecord("twin", "over the set", Twin, Options),
    ]


@hookimpl
def ea_captioners():
    return [CaptionerRecord("words", "test", Words, Options), CaptionerRecord("server", "test", Server, Options)]
'''

PROFILE: dict[str, Any] = {
    "split": {"name": "even"},
    "score": [{"name": "change"}, {"name": "light"}],
    "filter": [{"name": "bright"}, {"name": "moving"}],
    "caption": {"name": "words"},
}

RunSet = Callable[..., Outcome]


@pytest.fixture
def plugin_file(tmp_path: Path) -> Path:
    path = tmp_path / "test_components.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def tables() -> dict[str, Any]:
    """A copy of the profile of the test components."""
    import copy

    return copy.deepcopy(PROFILE)


@pytest.fixture(scope="session")
def warm() -> Iterator[Any]:
    """The module warm_engine.py, where its process finds it too, and one pool."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        module = importlib.import_module("warm_engine")
        pool = module.make_pool()
        yield SimpleNamespace(engine=lambda worker: module.WarmEngine(pool, worker))
        pool.close()
        del sys.modules["warm_engine"]


@pytest.fixture
def run_set(plugin_file: Path, tables: dict[str, Any], warm: Any) -> Iterator[RunSet]:
    """run_set(raw, out, profile=tables, workers=0, timeout=60, memory_mb=0, **options) -> Outcome.

    workers: new processes, with these limits; 0: one process that many runs share, which saves its start.
    """
    before = plugins._host
    plugins.set_host(plugins.make_host([plugin_file]))

    def run(
        raw: Path,
        out: Path,
        profile: dict[str, Any] | None = None,
        *,
        workers: int = 0,
        timeout: float = 60.0,
        memory_mb: int = 0,
        engine: Any = None,
        **options: Any,
    ) -> Outcome:
        used = profile or tables
        worker = Worker(used, str(raw), [str(plugin_file)], options.get("score_all", False))
        if engine is None and not workers:
            made = warm.engine(worker)
        else:
            made = engine or LocalEngine(worker, Limits(workers, timeout, memory_mb))
        try:
            return Pipeline(raw, out, used, made, **options).run()
        finally:
            if engine is None:
                made.close()

    yield run
    plugins.set_host(before)
