"""Turns a folder of raw video into a set: probe, split, score, judge, caption, cut, write.

Every pass asks the ledger first and hands out only the missing work; results go into the ledger, and the next pass
reads them from it. So a run that was killed, one with other workers and one after a change of thresholds are all the
same run, and end in the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from ea_data.children.supervisor import Failure
from ea_data.media.cut import measure, suffix_of
from ea_data.media.source import SKIPPED, find_files, tell_skipped
from ea_data.profile import Components, parse
from ea_data.records import store
from ea_data.records.files import file_table, skipped_of
from ea_data.records.full_disk import full_disk, says_full, told_if_full
from ea_data.records.ledger import Ledger
from ea_data.records.record import clip_id, empty_record
from ea_data.records.timings import add_timings
from ea_data.run.captions import CaptionEngine
from ea_data.run.edits import edited
from ea_data.run.engine import TaskEngine
from ea_data.run.file_records import dropped_file, findings_of_split, record_of_file
from ea_data.run.judge import Judge
from ea_data.run.progress import RunProgress
from ea_data.run.scratch import Scratch, Spool
from ea_data.run.set_filters import apply_set_filters
from ea_data.run.worker import Task, TaskResult, entry_of_failure, versions_of
from ea_runtime.errors import UserError
from ea_runtime.files.atomic import remove_partials
from ea_runtime.text.lost_words import LOOKED_AT

#: command -> the passes that may compute; the others only read the ledger
PASSES: dict[str, tuple[str, ...]] = {
    "run": ("probe", "split", "score", "caption", "cut"),
    "split": ("probe", "split"),
    "score": ("score",),
    "filter": (),
    "caption": ("caption", "cut"),
}
#: Lowest bytes per second of a file that is read and split; a slower one hangs.
_BYTES_A_SECOND = 500_000


@dataclass(slots=True)
class Outcome:
    """The outcome of a run. statuses: rows by status. dropped: by filter. errors: by the failed stage. unwritten: kept
    clips whose caption or file is missing. empty: written clips without a word in their caption. captions: the first
    LOOKED_AT of written clips."""

    found: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    clips: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    unwritten: int = 0
    empty: int = 0
    captions: list[str] = field(default_factory=list)


class Pipeline:
    """One run. raw: the folder of raw files, resolved. out: the set. tables: of the profile, checked already.

    command: a key of PASSES. retry_errors: compute known errors again.
    """

    def __init__(
        self,
        raw: Path,
        out: Path,
        tables: dict[str, Any],
        engine: TaskEngine | None,
        *,
        command: str = "run",
        score_all: bool = False,
        retry_errors: bool = False,
        progress: RunProgress | None = None,
    ) -> None:
        self.raw, self.out, self.engine = raw, out, engine
        self.command, self.retry_errors = command, retry_errors
        self.parts = Components(parse(tables, "of this run"))
        self.versions = versions_of(self.parts)
        self.judge = Judge(self.parts, score_all)
        self.progress = progress or RunProgress()
        self.outcome = Outcome()
        self.costs: defaultdict[str, float] = defaultdict(float)

    def run(self) -> Outcome:
        """Does the remaining work and writes the set.

        Raises UserError for a fault of the whole run, KeyboardInterrupt when it is stopped; either way the next run
        resumes from the ledger.
        """
        with told_if_full(self.out), Ledger(self.out / store.LEDGER) as self.ledger:
            self.scratch = Scratch(self.out / ".work")
            try:
                self._run()
            finally:
                self.scratch.close()
        return self.outcome

    def _run(self) -> None:
        if self.command == "filter" and not self.raw.is_dir():
            clips = self.scratch.spool("clips").write(self._recorded())
        else:
            clips = self._split_files()
        self.outcome.clips = sum(1 for record in clips if record["status"] == "ok")
        if self.command == "split":
            self._write(clips)
            return
        self._pass("score", "clips", clips, self._score_task)
        alone = self.scratch.spool("judged").write(self._judged(clips))
        together = apply_set_filters(alone, self.judge.set_filters, self.scratch)
        judged = self.scratch.spool("kept").write(together)
        self._pass("caption", "clips", judged, self._caption_task)
        self._pass("cut", "clips", judged, self._cut_task)
        self._write(judged)

    def _split_files(self) -> Spool:
        """The clips of all files, and a record for each file without."""
        files = self.scratch.spool("files").write(self._find())
        self.outcome.found = len(files)
        if not files:
            raise UserError(_nothing_found(self.raw, self.outcome.skipped))
        self._pass("probe", "files", files, self._probe_task)
        firsts = self.scratch.spool("firsts").write(self._first_of_each(files))
        self._pass("split", "files", firsts, self._split_task)
        return self.scratch.spool("clips").write(self._clips(files))

    def _recorded(self) -> Iterator[dict[str, Any]]:
        """The same from the set's own records, for verdicts where the raw files are no longer in their place."""
        found = store.read_sources(self.out)
        self.outcome.found, self.outcome.skipped = found["found"], Counter(found["skipped"])
        fresh = {"scores": {}, "decisions": [], "caption": None, "status": "ok", "error": "", "file": None}
        fresh |= {"num_written": 0, "luma_error": 0.0}
        for record in store.iter_rows(self.out):
            yield {**record, **fresh} if record["num_frames"] else record

    # -- passes

    def _pass(
        self, stage: str, unit: str, items: Spool, task_of: Callable[[dict[str, Any], bool], Task | None]
    ) -> None:
        """Hands out the work that the ledger lacks, and stores the results."""
        if stage not in PASSES[self.command]:
            return
        engine = self._engine_of(stage)
        with self.progress.phase(stage, unit, len(items)) as shown:

            def tasks(records: Iterable[dict[str, Any]], retry: bool) -> Iterator[Task]:
                for record in records:
                    task = task_of(record, retry)
                    if task is not None:
                        yield task
                    elif records is items:
                        shown.done(self._verdict(stage, record))

            records: Iterable[dict[str, Any]] = items
            retry = self.retry_errors
            while True:
                failed = []
                for task, result in engine.run(tasks(records, retry)):
                    if not self._store(task, result):
                        # the fault is known now; cheaper scores may still be computed and decide
                        failed.append(task.record)
                    if records is items:
                        shown.done(self._verdict(stage, dict(task.record)), fresh=True)
                if stage != "score" or not failed:
                    break
                records, retry = failed, False
        self.ledger.flush()

    def _engine_of(self, stage: str) -> TaskEngine:
        assert self.engine is not None
        part = self.parts.caption
        if stage == "caption" and part is not None and hasattr(part.component, "concurrency"):
            return CaptionEngine(self.engine, part, self.versions.caption)
        return self.engine

    def _store(self, task: Task, result: TaskResult | Failure) -> bool:
        """Puts a result's entries into the ledger. False for a task that ended its process."""
        item = task.record.get("clip_id") or task.record["source"]
        if isinstance(result, TaskResult):
            for name, seconds in result.cost.items():
                self.costs[name] += seconds
            for about, stage, version, value in result.entries:
                kept = {**value, **task.known} if task.stage == "caption" else value
                self.ledger.put(about, stage, version, kept)
            if says_full(result.transient):
                raise full_disk(self.out)
            if result.transient:
                self.scratch.put("transient", item, result.transient)
            return True
        if result.is_transient and says_full(result.reason):
            raise full_disk(self.out)
        if result.is_transient:
            self.scratch.put("transient", item, result.reason)
            return True
        self.ledger.put(*entry_of_failure(task, result, self.versions))
        return False

    def _entry(self, item: str, stage: str) -> dict[str, Any] | None:
        """The ledger's entry of a stage for a file or clip."""
        return self.ledger.get(item).get((stage, getattr(self.versions, stage)))

    def _caption_of(self, entries: dict[tuple[str, str], Any]) -> dict[str, Any] | None:
        """A clip's caption among its ledger entries: one that was edited, else the captioner's."""
        return edited(entries) or entries.get(("caption", self.versions.caption))

    def _with_path(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record as components see it."""
        return {**record, "path": str(self.raw / record["source"])}

    def _verdict(self, stage: str, record: dict[str, Any]) -> str:
        """The verdict about a scored clip, for the progress."""
        if stage != "score" or record["status"] != "ok" or not record["num_frames"]:
            return ""
        return "" if self.judge(record, self._scores(record)) else _verdict_of(record)

    # -- files

    def _find(self) -> Iterator[dict[str, Any]]:
        pictures = self.parts.profile.source.pictures
        with self.scratch.spool("skipped").appender() as add:
            for found in find_files(self.raw, self.outcome.skipped, pictures=pictures, on_skip=add):
                yield {"source": found.source, "key": found.key, "size": found.size}

    def _probe_task(self, file: dict[str, Any], retry: bool) -> Task | None:
        if _is_known(self._entry(file["key"], "probe"), retry):
            return None
        return Task("probe", self._with_path(file), extra_seconds=file["size"] / _BYTES_A_SECOND)

    def _first_of_each(self, files: Spool) -> Iterator[dict[str, Any]]:
        """Usable files, of those with equal contents only the first."""
        for file in files:
            probed = self._entry(file["key"], "probe")
            if probed is None or "error" in probed:
                continue
            if self.scratch.get("content", probed["content"]) is None:
                self.scratch.put("content", probed["content"], file["source"])
                yield {**self._with_path(file), "probe": probed}

    def _split_task(self, file: dict[str, Any], retry: bool) -> Task | None:
        if _is_known(self._entry(file["probe"]["content"], "split"), retry):
            return None
        slow = getattr(self.parts.split.component, "seconds_a_frame", 0.0) * file["probe"]["num_frames"]
        return Task("split", file, extra_seconds=file["size"] / _BYTES_A_SECOND + slow)

    def _clips(self, files: Spool) -> Iterator[dict[str, Any]]:
        """A record for each clip, and one for each file without clips."""
        for file in files:
            source = file["source"]
            probed = self._entry(file["key"], "probe")
            if probed is None or "error" in probed:
                unknown = {**empty_record(source), "clip_id": clip_id("file", source)}
                yield self._without_clip(unknown, probed, "source")
                continue
            first = self.scratch.get("content", probed["content"])
            if first != source:
                yield dropped_file(
                    record_of_file(source, probed), "source", f"it has the same contents as {first}"
                )
                continue
            split = self._entry(probed["content"], "split")
            if split is None or "error" in split:
                yield self._without_clip(record_of_file(source, probed), split, "split")
            elif not split["clips"]:
                reason = split["reason"] or "no scene in it is long enough for a clip"
                yield dropped_file(
                    {**record_of_file(source, probed), **findings_of_split(split)}, "split", reason
                )
            else:
                clips: dict[str, dict[str, Any]] = {}
                for clip in split["clips"]:
                    clips.setdefault(
                        clip["clip_id"],
                        {**record_of_file(source, probed), **findings_of_split(split), **clip},
                    )
                for number, clip in enumerate(clips.values()):
                    yield clip if number == 0 else {**clip, "cuts": [], "lost": []}

    def _without_clip(
        self, record: dict[str, Any], entry: dict[str, Any] | None, stage: str
    ) -> dict[str, Any]:
        """The record of a file that failed, or that was not read yet."""
        if entry is None:
            reason = self.scratch.get("transient", record["source"])
            status, reason = "transient", reason or "not read yet; `ea data split` does"
        else:
            status, reason = "error", entry["error"]
        return {**record, "num_frames": 0, "status": status, "error": f"{stage}: {reason}"}

    # -- clips

    def _scores(self, record: dict[str, Any], retry: bool = False) -> dict[str, dict[str, Any]]:
        """The ledger's entries of a clip's scores."""
        entries = self.ledger.get(record["clip_id"])
        known = {}
        broken = entries.get(("decode", self.versions.decode))
        for part in self.judge.scores:
            entry = entries.get((f"score:{part.name}", self.versions.scores[part.name]))
            if entry is None and broken is not None and part.component.needs.mode != "none":
                entry = {**broken, "stage": "decode"}
            if entry is not None and _is_known(entry, retry):
                known[part.name] = entry
        return known

    def _score_task(self, record: dict[str, Any], retry: bool) -> Task | None:
        if record["status"] != "ok":
            return None
        known = self._scores(record, retry)
        return Task("score", self._with_path(record), known) if self.judge(dict(record), known) else None

    def _judged(self, clips: Spool) -> Iterator[dict[str, Any]]:
        for record in clips:
            if record["status"] == "ok":
                record = self._with_path(record)
                lacking = self.judge(record, self._scores(record))
                del record["path"]
                if lacking and not self._is_transient(record, "score"):
                    names = ", ".join(lacking)
                    record.update(
                        status="error", error=f"score: {names} not computed yet; `ea data score` does"
                    )
            yield record

    def _is_transient(self, record: dict[str, Any], stage: str) -> bool:
        """True if a clip's work met a passing fault, which its record then names."""
        reason = self.scratch.get("transient", record["clip_id"])
        if reason is not None:
            record.update(status="transient", error=f"{stage}: {reason}")
        return reason is not None

    def _caption_task(self, record: dict[str, Any], retry: bool) -> Task | None:
        if record["status"] != "ok" or self.parts.caption is None:
            return None
        entries, record = self.ledger.get(record["clip_id"]), self._with_path(record)
        reads = getattr(self.parts.caption.component, "reads", None)
        words = {"read": reads(record)} if reads is not None else {}
        known = self._caption_of(entries)
        is_current = edited(entries) or (known is not None and known.items() >= words.items())
        return None if is_current and _is_known(known, retry) else Task("caption", record, words)

    def _cut_task(self, record: dict[str, Any], retry: bool) -> Task | None:
        if record["status"] != "ok":
            return None
        entries = self.ledger.get(record["clip_id"])
        caption = self._caption_of(entries)
        if self.parts.caption is not None and (caption is None or "error" in caption):
            return None
        written = entries.get(("cut", self.versions.cut))
        is_done = written is not None and ("error" in written or self._is_whole(record, written))
        if is_done and _is_known(written, retry):
            return None
        self.scratch.remove("checksum", Path(_file_of(record)).name)
        return Task("cut", self._with_path(record), target=str(self.out / _file_of(record)))

    def _is_whole(self, record: dict[str, Any], written: dict[str, Any]) -> bool:
        """True if a clip's file is as it was written: of the same size and, if this run may write it, checksum."""
        path = self.out / _file_of(record)
        try:
            if path.stat().st_size != written["num_bytes"]:
                return False
            if "cut" not in PASSES[self.command]:
                return True
            found = self.scratch.get("checksum", path.name)
            if found is None:
                found = str(measure(path)[1])
                self.scratch.put("checksum", path.name, found)
            return found == str(written["checksum"])
        except OSError:
            return False

    # -- the set

    def _write(self, records: Spool) -> None:
        """Writes records.parquet, and dataset.json and clips/ once clips have been judged."""
        self.out.mkdir(parents=True, exist_ok=True)
        remove_partials(self.out)
        with file_table(self.out, self._skipped()) as told:
            if self.command == "split":
                store.write_records(self.out, told(self._finished(records, None)))
            else:
                with store.dataset_writer(self.out) as add:
                    store.write_records(self.out, told(self._finished(records, add)))
        if "cut" in PASSES[self.command]:
            self._prune()
        sources = {"found": self.outcome.found, "skipped": dict(sorted(self.outcome.skipped.items()))}
        store.write_text(self.out / store.SOURCES, json.dumps(sources, indent=1) + "\n")
        add_timings(self.out, self.costs)

    def _skipped(self) -> Iterator[tuple[str, str]]:
        """(source, reason) of the skipped files; where RAW has moved, those that the set names."""
        spool = self.scratch.spool("skipped")
        if not spool.path.exists():
            yield from skipped_of(self.out)
            return
        for source, why in spool:
            yield source, SKIPPED.get(str(why), str(why))

    def _finished(
        self, records: Spool, add: Callable[[dict[str, Any]], None] | None
    ) -> Iterator[dict[str, Any]]:
        for record in records:
            if record["status"] == "ok" and add is not None:
                written = self._finish(record)
                if written is not None:
                    entry = {**store.dataset_entry(record), **written}
                    self.outcome.empty += not entry["text"].strip()
                    if len(self.outcome.captions) < LOOKED_AT:
                        self.outcome.captions.append(entry["text"])
                    add(entry)
                    self.scratch.put("kept", record["file"])
            self._count(record)
            yield record

    def _finish(self, record: dict[str, Any]) -> dict[str, Any] | None:
        """Adds caption and file to a kept clip. Returns size, frames and rate of its file, or None without one."""
        entries, entry = self.ledger.get(record["clip_id"]), None
        found = {"caption": self._caption_of(entries), "cut": entries.get(("cut", self.versions.cut))}
        if self.parts.caption is None and found["caption"] is None:
            del found["caption"]
        for stage, entry in found.items():
            if entry is not None and "error" in entry:
                record.update(status="error", error=f"{stage}: {entry['error']}")
                return None
            if entry is None or (stage == "cut" and not self._is_whole(record, entry)):
                if not self._is_transient(record, stage):
                    self.outcome.unwritten += 1  # kept by new limits: its caption and file will follow
                return None
            if stage == "caption":
                record["caption"] = {name: entry[name] for name in ("text", "model", "prompt_hash")}
        assert entry is not None
        record.update(file=_file_of(record), num_written=entry["num_frames"], luma_error=entry["luma_error"])
        rate = {} if record["is_picture"] else {"fps": float(Fraction(entry["fps"]))}
        return {name: entry[name] for name in ("width", "height", "num_frames")} | rate

    def _count(self, record: dict[str, Any]) -> None:
        outcome = self.outcome
        outcome.statuses[record["status"]] += 1
        if record["status"] == "dropped":
            outcome.dropped[_verdict_of(record)] += 1
        elif record["status"] in ("error", "transient"):
            outcome.errors[record["error"].partition(":")[0]] += 1

    def _prune(self) -> None:
        """Removes files of clips that are no longer kept, and half-written files of killed runs."""
        clips = self.out / store.CLIPS
        for folder in sorted(clips.iterdir()) if clips.is_dir() else ():
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                if self.scratch.get("kept", path.relative_to(self.out).as_posix()) is None:
                    path.unlink()
            if not any(folder.iterdir()):
                folder.rmdir()


def _is_known(entry: dict[str, Any] | None, retry: bool) -> bool:
    return entry is not None and not (retry and "error" in entry)


def _file_of(record: dict[str, Any]) -> str:
    """Relative to the set, in subfolders, as there may be millions."""
    name = record["clip_id"]
    return f"{store.CLIPS}/{name[:2]}/{name}{suffix_of(record)}"


def _verdict_of(record: dict[str, Any]) -> str:
    if record["status"] != "dropped":
        return "kept" if record["status"] == "ok" else "error"
    return next(one["filter"] for one in record["decisions"] if one["verdict"] == "dropped")


def _nothing_found(raw: Path, skipped: Counter[str]) -> str:
    found = f"skipped: {tell_skipped(skipped)}" if skipped else "it is empty"
    return f"`raw` {str(raw)!r} holds no video, {found}; name the folder that holds .mp4, .mov, .mkv, .webm or others"
