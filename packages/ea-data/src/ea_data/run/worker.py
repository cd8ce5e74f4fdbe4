"""The work on one file or one clip, the same code in a supervised child, in a process of Ray, or in a test.

A task is plain values; a result is entries for the ledger, and nothing else: this run continues with what a rerun
would read there. A fault of the input is an entry too (`{"error": ...}`), so it is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from ea_data.children.supervisor import Failure, is_transient, note
from ea_data.media import cut, frames, probe
from ea_data.profile import Components, Part, parse
from ea_data.protocols import FrameRequest, Frames, Span, VideoInfo
from ea_data.records.ledger import fingerprint
from ea_data.records.record import caption_entry, clip_id, score_entry
from ea_data.run.judge import Judge
from ea_runtime.plugins.host import get_host, make_host, set_host

Entry = tuple[str, str, str, Any]  # item, stage, version, value
#: Fields of VideoInfo that a ledger entry keeps as they are.
_INFO = [one.name for one in fields(VideoInfo) if one.name not in ("path", "fps")]


@dataclass(frozen=True, slots=True)
class Task:
    """stage: "probe", "split", "score", "look", "caption" or "cut". record: a clip's, for the first two a file's
    {source, path, key, probe}. known: ledger entries of scores by name. target: the file to write. extra_seconds: on
    top of the usual limit, for work that grows with the file.
    """

    stage: str
    record: dict[str, Any]
    known: dict[str, Any] = field(default_factory=dict)
    target: str = ""
    extra_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TaskResult:
    """entries: for the ledger. transient: why there are none, if a retry may help. frames: of "look"."""

    entries: list[Entry]
    transient: str = ""
    frames: Frames | None = None


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
    """Does tasks. It pickles as its settings: components are built when they are first needed.

    tables: of the profile. root: the folder of raw files. plugins: local plugin files.
    """

    def __init__(
        self, tables: dict[str, Any], root: str, plugins: Iterable[str] = (), score_all: bool = False
    ):
        self.tables, self.root, self.score_all = tables, root, score_all
        self.plugins = tuple(plugins)
        self._parts: Components | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}

    def prepare(self) -> None:
        """Loads the parent's plugins in a new process."""
        if set(self.plugins) != {str(path) for path in get_host().files}:
            set_host(make_host(self.plugins))
        self._make()

    def _make(self) -> Components:
        if self._parts is None:
            self.profile = parse(self.tables, "of this run")
            self._parts = Components(self.profile)
            self.versions = versions_of(self._parts, self.tables)
            self.judge = Judge(self._parts, self.score_all)
        return self._parts

    def __call__(self, task: Task) -> TaskResult:
        self._make()
        if task.stage == "look":
            return self._look(task)
        try:
            return TaskResult(getattr(self, f"_{task.stage}")(task))
        except Exception as error:
            # the disk or the network; a fault of the input is an entry already
            if is_transient(error):
                return TaskResult([], " ".join(str(error).split()))
            raise

    # -- stages

    def _probe(self, task: Task) -> list[Entry]:
        """Looks at a file."""
        source = self.profile.source
        limits = {"strict": source.strict_decode, "max_pixels": source.max_pixels}
        note("probe")

        def look() -> dict[str, Any]:
            return _probe_entry(probe.probe(Path(task.record["path"]), Path(self.root), **limits))

        return [(task.record["key"], "probe", self.versions.probe, guarded(look))]

    def _split(self, task: Task) -> list[Entry]:
        """Finds the clips of a file."""
        parts, path = self._make(), Path(task.record["path"])
        info = info_of(task.record["probe"], path)
        content = task.record["probe"]["content"]
        note("split")

        def find() -> dict[str, Any]:
            spans = parts.split.component(path, info)
            timeline = None if info.is_picture else probe.timeline_of(path, Path(self.root))
            of_file = (info, content, timeline, self.versions.split)
            return {"clips": [_clip_entry(span, *of_file) for span in spans]}

        return [(content, "split", self.versions.split, guarded(find))]

    def _score(self, task: Task) -> list[Entry]:
        """Computes the scores that the verdict needs; decodes at most once for all of them."""
        entries: list[Entry] = []
        record = dict(task.record)
        pending = self.judge(record, task.known)
        if pending is None:
            return []
        wanted = set(pending.scores)
        needs = {part.component.needs for part in self.judge.scores if part.name in wanted}
        decoded: dict[FrameRequest, Frames] = {}

        def compute(part: Part) -> dict[str, Any]:
            assert part.name in wanted, "scores after a known failure are never needed"
            request = part.component.needs
            if request.mode != "none" and not decoded:
                decoded.update(self._frames(record, needs))
            note(part.name)
            entry = guarded(lambda: score_entry(part.component(decoded.get(request, no_frames()), record)))
            entries.append((record["clip_id"], f"score:{part.name}", self.versions.scores[part.name], entry))
            return entry

        try:
            self.judge(record, task.known, compute)
        except probe.BadFile as error:
            entries.append((record["clip_id"], "decode", self.versions.decode, {"error": str(error)}))
        return entries

    def _look(self, task: Task) -> TaskResult:
        """The frames for a captioner that runs elsewhere; an error becomes the caption's."""
        part = self._make().caption
        assert part is not None
        try:
            shown = self._frames(task.record, {part.component.needs})
        except probe.BadFile as error:
            item = task.record["clip_id"]
            return TaskResult([(item, "caption", self.versions.caption, {"error": str(error)})])
        return TaskResult([], frames=shown.get(part.component.needs))

    def _caption(self, task: Task) -> list[Entry]:
        part, record = self._make().caption, task.record
        assert part is not None

        def describe() -> dict[str, Any]:
            request = part.component.needs
            shown = self._frames(record, {request}).get(request, no_frames())
            note("caption")
            return caption_entry(part.component(shown, record))

        return [(record["clip_id"], "caption", self.versions.caption, guarded(describe))]

    def _cut(self, task: Task) -> list[Entry]:
        note("cut")

        def write() -> dict[str, Any]:
            quality = {"crf": self.profile.clips.crf, "strict": self.profile.source.strict_decode}
            return asdict(cut.write_clip(task.record, Path(self.root), Path(task.target), **quality))

        return [(task.record["clip_id"], "cut", self.versions.cut, guarded(write))]

    def _frames(self, record: dict[str, Any], requests: set[FrameRequest]) -> dict[FrameRequest, Frames]:
        requests = {request for request in requests if request.mode != "none"}
        if not requests:
            return {}
        note("decode")
        span = (record["start"], record["end"], record["fps"])
        path, strict = Path(record["path"]), self.profile.source.strict_decode
        return frames.read_frames(path, Path(self.root), *span, sorted(requests, key=repr), strict=strict)


def versions_of(parts: Components, tables: dict[str, Any]) -> Versions:
    """The settings and code versions on which each stage's results depend."""
    options = parse(tables, "of this run")
    strict = options.source.strict_decode
    decode = fingerprint("decode", frames.VERSION, strict)
    looked = fingerprint("probe", probe.VERSION, strict, options.source.max_pixels)
    return Versions(
        probe=looked,
        split=parts.split.version,
        decode=decode,
        scores={part.name: fingerprint(part.version, decode) for part in parts.scores},
        caption=fingerprint(parts.caption.version, decode) if parts.caption else "",
        cut=fingerprint("cut", cut.VERSION, strict, options.clips.crf),
    )


def entries_of_failure(task: Task, failure: Failure, versions: Versions) -> list[Entry]:
    """Ledger entries for a task that ended its process: an error at the stage where it happened."""
    value = {"error": failure.reason}
    if task.stage == "probe":
        return [(task.record["key"], "probe", versions.probe, value)]
    if task.stage == "split":
        return [(task.record["probe"]["content"], "split", versions.split, value)]
    item = task.record["clip_id"]
    if task.stage in ("caption", "cut"):
        return [(item, task.stage, getattr(versions, task.stage), value)]
    if failure.during in versions.scores:
        return [(item, f"score:{failure.during}", versions.scores[failure.during], value)]
    return [(item, "decode", versions.decode, value)]


def one_line(error: BaseException) -> str:
    """An error for a row: the message of errors meant for users, and the class of others."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


def guarded(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The entry, or {"error": ...} for a fault that a retry would meet again."""
    try:
        return action()
    except Exception as error:
        if isinstance(error, MemoryError) or is_transient(error):
            raise
        return {"error": one_line(error)}


def no_frames() -> Frames:
    import numpy as np

    return Frames(np.zeros((0, 0, 0, 3), np.uint8), np.zeros(0))


def _probe_entry(probed: probe.Probed) -> dict[str, Any]:
    info = {name: getattr(probed.info, name) for name in _INFO}
    return {"content": probed.content, "fps_exact": str(probed.info.fps), **info}


def info_of(entry: dict[str, Any], path: Path) -> VideoInfo:
    """The VideoInfo of a ledger entry."""
    info = {name: entry[name] for name in _INFO}
    return VideoInfo(path=path, fps=Fraction(entry["fps_exact"]), **info)


def _clip_entry(
    span: Span, info: VideoInfo, content: str, timeline: probe.Timeline | None, contract: str
) -> dict[str, Any]:
    """A clip of a file: its exact place, and its number of frames."""
    if timeline is None:
        pts, base, count = (0, 0), "0", 1
    else:
        window = timeline.window(span.start, span.end, float(info.fps))
        if not window:
            raise ValueError(f"there is no frame between {span.start:g} s and {span.end:g} s")
        base, count = str(timeline.time_base), len(window)
        usual = round(1 / info.fps / timeline.time_base)
        after = timeline.pts[window.stop] if window.stop < len(timeline.pts) else timeline.pts[-1] + usual
        pts = (int(timeline.pts[window.start]), int(after))
    return {
        "clip_id": clip_id(content, *pts, base, contract),
        "start": float(span.start),
        "end": float(span.end),
        "start_pts": pts[0],
        "end_pts": pts[1],
        "time_base": base,
        "num_frames": count,
        "is_whole": count == info.num_frames,
    }
