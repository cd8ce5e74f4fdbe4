"""The work on one file or one clip, the same code in a supervised child, in a process of Ray, or in a test.

A task is plain values; a result is entries for the ledger, and nothing else: this run continues with what a rerun
would read there. A fault of the input is an entry too (`{"error": ...}`), so it is remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ea_data.children.supervisor import Failure, is_transient, note
from ea_data.media import cut, frames, probe
from ea_data.media.look import Look
from ea_data.media.timeline import Timeline, place_of
from ea_data.profile import Components, Part, parse
from ea_data.protocols import FrameRequest, Frames, Span, Spans, VideoInfo
from ea_data.records.ledger import fingerprint
from ea_data.records.record import clip_id, score_entry
from ea_data.run.judge import Judge
from ea_runtime.plugins.host import get_host, make_host, set_host

Entry = tuple[str, str, str, Any]  # item, stage, version, value
#: Fields of VideoInfo that a ledger entry keeps as they are.
_INFO = [one.name for one in fields(VideoInfo) if one.name not in ("path", "fps")]


@dataclass(frozen=True, slots=True)
class Task:
    """stage: "probe", "split", "score", "look", "caption" or "cut". record: a clip's, for the first two a file's
    {source, path, key, probe}. known: ledger entries of scores by name; of "caption", what
    its entry also holds. target: the file to write. extra_seconds: on top of the usual limit, for work that grows with
    the file.
    """

    stage: str
    record: dict[str, Any]
    known: dict[str, Any] = field(default_factory=dict)
    target: str = ""
    extra_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TaskResult:
    """entries: for the ledger. transient: why there are none, if a retry may help. frames: of "look". cost: CPU
    seconds of this process by stage ("decode" and each score are one)."""

    entries: list[Entry]
    transient: str = ""
    frames: Frames | None = None
    cost: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Versions:
    """The version of each stage, for the ledger's keys."""

    probe: str
    split: str
    decode: str
    scores: dict[str, str]
    caption: str
    cut: str


class Worker:
    """Does tasks, once it is prepared. It pickles as its settings.

    tables: of the profile. root: the folder of raw files. plugins: local plugin files.
    """

    def __init__(
        self, tables: dict[str, Any], root: str, plugins: Iterable[str] = (), score_all: bool = False
    ):
        self.tables, self.root, self.score_all = tables, root, score_all
        self.plugins = tuple(plugins)

    def prepare(self) -> None:
        """Loads the parent's plugins in a new process, and builds the components."""
        if set(self.plugins) != {str(path) for path in get_host().files}:
            set_host(make_host(self.plugins))
        self.parts = Components(parse(self.tables, "of this run"))
        self.versions = versions_of(self.parts)
        self.judge = Judge(self.parts, self.score_all)

    def __call__(self, task: Task) -> TaskResult:
        clock = Clock()
        self._clock = clock
        if task.stage == "look":
            return clock.costed(self._look(task), "decode")
        stage = getattr(self, f"_{task.stage}")
        if task.stage == "score":
            return clock.costed(attempt(lambda: stage(task)))
        note(task.stage)
        result = attempt(lambda: [(*key_of(task, self.versions), guarded(lambda: stage(task)))])
        return clock.costed(result, task.stage)

    # -- stages

    def _probe(self, task: Task) -> dict[str, Any]:
        """Looks at a file."""
        source, clips = self.parts.profile.source, self.parts.profile.clips
        limits = {
            "strict": source.strict_decode,
            "max_pixels": source.max_pixels,
            "crop_bars": clips.crop_bars,
        }
        probed = probe.probe(Path(task.record["path"]), Path(self.root), **limits)
        return entry_of_probe(probed.info, probed.content)

    def _split(self, task: Task) -> dict[str, Any]:
        """Finds the clips of a file."""
        path, probed = Path(task.record["path"]), task.record["probe"]
        info = info_of(probed, path)
        spans = self.parts.split.component(path, info)
        timeline = None if info.is_picture else probe.timeline_of(path, Path(self.root))
        of_file = (info, probed["content"], timeline, self.versions.split)
        clips = [clip_entry(span, *of_file) for span in spans]
        if not isinstance(spans, Spans):
            spans = Spans(spans)
        return {
            "clips": clips,
            "reason": "" if clips else spans.reason,
            "cuts": [[cut.start, cut.end] for cut in spans.cuts],
            "longest_scene": spans.longest_scene,
            "lost": [[one.start, one.end, one.reason] for one in spans.lost],
        }

    def _score(self, task: Task) -> list[Entry]:
        """Computes the scores that the verdict needs; decodes at most once for all of them."""
        entries: list[Entry] = []
        record = dict(task.record)
        wanted = self.judge(record, task.known)
        needs = {part.component.needs for part in self.judge.scores if part.name in wanted}
        decoded: dict[FrameRequest, Frames] = {}

        def compute(part: Part) -> dict[str, Any]:
            assert part.name in wanted, "scores after a known failure are never needed"
            request = part.component.needs
            if request.mode != "none" and not decoded:
                with self._clock.stage("decode"):
                    decoded.update(self._frames(record, needs))
            note(part.name)
            with self._clock.stage(part.name):
                entry = guarded(
                    lambda: score_entry(part.component(decoded.get(request, no_frames()), record))
                )
            entries.append((record["clip_id"], f"score:{part.name}", self.versions.scores[part.name], entry))
            return entry

        try:
            self.judge(record, task.known, compute)
        except probe.BadFile as error:
            entries.append((*key_of(task, self.versions), {"error": str(error)}))
        return entries

    def _look(self, task: Task) -> TaskResult:
        """The frames for a captioner that runs elsewhere; an error becomes the caption's."""
        assert self.parts.caption is not None
        request = self.parts.caption.component.needs
        try:
            return TaskResult([], frames=self._frames(task.record, {request}).get(request))
        except probe.BadFile as error:
            return TaskResult([(*key_of(task, self.versions), {"error": str(error)})])

    def _caption(self, task: Task) -> dict[str, Any]:
        assert self.parts.caption is not None
        component = self.parts.caption.component
        shown = self._frames(task.record, {component.needs}).get(component.needs, no_frames())
        note("caption")
        return asdict(component(shown, task.record))

    def _cut(self, task: Task) -> dict[str, Any]:
        profile = self.parts.profile
        clips = profile.clips
        quality = {"crf": clips.crf, "strict": profile.source.strict_decode, "form": clips.target}
        return asdict(cut.write_clip(task.record, Path(self.root), Path(task.target), **quality))

    def _frames(self, record: dict[str, Any], requests: set[FrameRequest]) -> dict[FrameRequest, Frames]:
        requests = {request for request in requests if request.mode != "none"}
        if not requests:
            return {}
        note("decode")
        span = (record["start"], record["end"], record["fps"])
        path, strict = Path(record["path"]), self.parts.profile.source.strict_decode
        seen: dict[str, Any] = {"strict": strict}
        if not record["is_picture"]:
            seen |= {"place": place_of(record), "look": Look.of(record)}
        return frames.read_frames(path, Path(self.root), *span, sorted(requests, key=repr), **seen)


class Clock:
    """CPU seconds of this process, by stage, since it was made."""

    def __init__(self) -> None:
        self._began = time.process_time()
        self._cost: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.process_time()
        try:
            yield
        finally:
            self._cost[name] = self._cost.get(name, 0.0) + time.process_time() - began

    def costed(self, result: TaskResult, rest: str = "") -> TaskResult:
        """The result with its cost. rest: the stage that gets what no other stage has taken."""
        if rest:
            self._cost[rest] = time.process_time() - self._began - sum(self._cost.values())
        return replace(result, cost=self._cost)


def versions_of(parts: Components) -> Versions:
    """The settings and code versions on which each stage's results depend."""
    source, clips = parts.profile.source, parts.profile.clips
    decode = fingerprint("decode", frames.VERSION, source.strict_decode, clips.crop_bars)
    return Versions(
        probe=fingerprint("probe", probe.VERSION, source.strict_decode, source.max_pixels, clips.crop_bars),
        split=fingerprint(parts.split.version, probe.VERSION),
        decode=decode,
        scores={part.name: fingerprint(part.version, decode) for part in parts.scores},
        caption=fingerprint(parts.caption.version, decode) if parts.caption else "",
        cut=fingerprint("cut", cut.VERSION, source.strict_decode, clips.model_dump(mode="json")),
    )


def key_of(task: Task, versions: Versions) -> tuple[str, str, str]:
    """Item, stage and version of a task's entry in the ledger; for "score", of the decoding that its scores share."""
    stage = {"score": "decode", "look": "caption"}.get(task.stage, task.stage)
    if stage == "probe":
        item = task.record["key"]
    else:
        item = task.record["probe"]["content"] if stage == "split" else task.record["clip_id"]
    return item, stage, getattr(versions, stage)


def entry_of_failure(task: Task, failure: Failure, versions: Versions) -> Entry:
    """The ledger's entry for a task that ended its process: an error at the stage where it happened."""
    item, stage, version = key_of(task, versions)
    if task.stage == "score" and failure.during in versions.scores:
        stage, version = f"score:{failure.during}", versions.scores[failure.during]
    return item, stage, version, {"error": failure.reason}


def attempt(action: Callable[[], list[Entry]]) -> TaskResult:
    """The result of an action, or the reason why the disk or the network did not let it finish."""
    try:
        return TaskResult(action())
    except Exception as error:
        # a fault of the input is an entry already
        if is_transient(error):
            return TaskResult([], " ".join(str(error).split()))
        raise


def guarded(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The entry, or {"error": ...} for a fault that a retry would meet again.

    The error is the message of errors meant for users, and the class of others.
    """
    try:
        return action()
    except Exception as error:
        if isinstance(error, MemoryError) or is_transient(error):
            raise
        text = " ".join(str(error).split())
        is_ours = isinstance(error, ValueError) and text
        return {"error": text if is_ours else f"{type(error).__name__}: {text}".rstrip(": ")}


def no_frames() -> Frames:
    import numpy as np

    return Frames(np.zeros((0, 0, 0, 3), np.uint8), np.zeros(0))


def entry_of_probe(info: VideoInfo, content: str) -> dict[str, Any]:
    """The ledger entry of a probed file. content: the file's hash."""
    return {
        "content": content,
        "fps_exact": str(info.fps),
        **{name: getattr(info, name) for name in _INFO},
    }


def info_of(entry: dict[str, Any], path: Path) -> VideoInfo:
    """The VideoInfo of a ledger entry."""
    info = {name: entry[name] for name in _INFO}
    return VideoInfo(path=path, fps=Fraction(entry["fps_exact"]), **info)


def clip_entry(
    span: Span, info: VideoInfo, content: str, timeline: Timeline | None, contract: str
) -> dict[str, Any]:
    """A clip of a file: its exact place, and its number of frames."""
    numbers, pts, base, is_counted, bits = range(1), (0, 0), "0", False, info.bits
    if timeline is not None:
        numbers = timeline.window(span.start, span.end, float(info.fps))
        if not numbers:
            raise ValueError(f"there is no frame between {span.start:g} s and {span.end:g} s")
        pts, base = timeline.span(numbers, info.fps), str(timeline.time_base)
        is_counted, bits = timeline.is_counted, timeline.bits(numbers)
    return {
        "clip_id": clip_id(content, *pts, base, contract),
        "start": float(span.start),
        "end": float(span.end),
        "start_pts": pts[0],
        "end_pts": pts[1],
        "time_base": base,
        "start_frame": numbers.start,
        "is_counted": is_counted,
        "num_frames": len(numbers),
        "bits": bits,
        "is_whole": len(numbers) == info.num_frames,
    }
