"""Finds what is wrong with a training set, before a run wastes a night on it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ea_data.children.supervisor import Failure, Supervisor
from ea_data.media.reader import probe
from ea_data.training.dataset import SMALLEST, EasyAnimateSet
from ea_runtime.files.safe import plain
from ea_runtime.training.data.dataset import BadSample, Bucket, SetOptions, TrainingSet, open_set

#: Most tokens that V2's text encoder takes; longer captions are cut.
MAX_TOKENS = 120
#: Files named for each finding.
NAMED = 10


@dataclass
class Finding:
    """One fault. is_fatal: a run would stop or lose samples over it. files: the first few."""

    name: str
    count: int
    is_fatal: bool
    what_to_do: str
    files: list[str] = field(default_factory=list)


@dataclass
class BucketRow:
    """A bucket with its samples and their batches in an epoch. last: samples of the smallest batch."""

    bucket: Bucket
    num_samples: int
    num_batches: int
    last: int


@dataclass
class Diagnosis:
    """The result of `diagnose`. steps: optimiser steps of an epoch at `batch_size`. tokenizer: the one that counted."""

    num_samples: int
    num_pictures: int
    num_videos: int
    batch_size: int
    steps: int
    buckets: list[BucketRow]
    longest_caption: int
    tokenizer: str
    findings: list[Finding]

    @property
    def is_healthy(self) -> bool:
        return not any(finding.is_fatal for finding in self.findings)

    def to_json(self) -> str:
        buckets = [
            {**row.bucket._asdict(), "samples": row.num_samples, "batches": row.num_batches, "last": row.last}
            for row in self.buckets
        ]
        findings = [finding.__dict__ for finding in self.findings]
        # the two lists come last
        rest = {key: value for key, value in self.__dict__.items() if key not in ("buckets", "findings")}
        table = {**rest, "buckets": buckets, "findings": findings}
        return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def diagnose(
    options: SetOptions,
    *,
    batch_size: int,
    model: str = "tiny",
    with_files: bool = True,
    workers: int = 2,
    on_file: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Opens the set as training would and looks at every sample. Nothing is written, not even training's cache.

    batch_size: samples per step. model: the model whose tokenizer counts the captions ("tiny" or a folder).
    with_files: decode every sample once, in children, and compare the files' contents.
    on_file: called with (files done, files in total). Raises UserError for a set or model that cannot be read.
    """
    dataset = open_set(options)
    if isinstance(dataset, EasyAnimateSet):
        dataset.keeps_headers = False
    buckets = dataset.buckets()
    rows = _bucket_rows(buckets, batch_size)
    items = list(dataset.items)
    findings, longest = _captions(items, model)
    typed = getattr(dataset.items, "typed", ())
    untyped = [item.path.name for item, is_told in zip(items, typed, strict=False) if not is_told]
    advice = (
        'it was read from the files, which other programs do not do; write "image" or "video" in the list'
    )
    findings += _finding("entries without `type`", untyped, advice)
    short = [
        dataset.item(i).path.name
        for i, bucket in enumerate(buckets)
        if bucket.kind == "video" and bucket.num_frames < options.num_frames
    ]
    advice = f"they train with fewer than {options.num_frames} frames; lower `num_frames` or `stride`"
    findings += _finding("videos shorter than the window", short, advice)
    if with_files:
        findings += _files(dataset, buckets, workers, options.timeout, on_file)
    else:
        sizes = [(item.path.name, item.width, item.height) for item in items if item.width and item.height]
        findings += _small(sizes)
    small = [row for row in rows if row.num_samples < batch_size]
    if len(rows) > 1:
        advice = "their steps see fewer samples; merge sizes with `size`, or accept it"
        count = sum(row.num_samples for row in small)
        names = [_name(row.bucket) for row in small]
        findings += _finding("samples in buckets smaller than a batch", names, advice, count=count)
    return Diagnosis(
        num_samples=len(buckets),
        num_pictures=sum(not item.is_video for item in items),
        num_videos=sum(item.is_video for item in items),
        batch_size=batch_size,
        steps=sum(row.num_batches for row in rows),
        buckets=rows,
        longest_caption=longest,
        tokenizer=model,
        findings=findings,
    )


def _finding(
    name: str, files: list[str], advice: str, *, is_fatal: bool = False, count: int = 0
) -> list[Finding]:
    """The finding about `files`, none if there are none. count: if it is not the number of files."""
    return [Finding(name, count or len(files), is_fatal, advice, files[:NAMED])] if files else []


def _bucket_rows(buckets: Sequence[Bucket], batch_size: int) -> list[BucketRow]:
    counts = sorted(Counter(buckets).items(), key=lambda pair: (-pair[1], pair[0]))
    return [
        BucketRow(bucket, count, -(-count // batch_size), count % batch_size or batch_size)
        for bucket, count in counts
    ]


def _captions(items: Sequence[Any], model: str) -> tuple[list[Finding], int]:
    """Findings about the captions, and the number of tokens of the longest, end mark included."""
    from ea_runtime.models.layout import resolve_folder
    from ea_runtime.text.cleaning import clean_caption
    from ea_runtime.text.lost_words import lost_words
    from ea_runtime.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(resolve_folder(model) / "tokenizer")
    empty, long, losing, texts, longest = [], [], [], Counter[str](), 0
    for start in range(0, len(items), 256):
        part = items[start : start + 256]
        cleaned = [clean_caption(item.text) for item in part]
        ids = tokenizer(cleaned, add_special_tokens=False, verbose=False)["input_ids"]
        for item, text, row in zip(part, cleaned, ids, strict=True):
            count = len(row) + 1
            longest = max(longest, count)
            texts[text] += 1
            lost = lost_words(item.text, text)
            if lost:
                losing.append(f"{item.path.name}: {', '.join(plain(word, 40) for word in lost[:NAMED])}")
            if not text:
                empty.append(item.path.name)
            elif count > MAX_TOKENS:
                long.append(f"{item.path.name} ({count} tokens)")
    advice = "caption them (`ea data caption`) or leave the files out"
    findings = _finding("empty captions", empty, advice, is_fatal=True)
    advice = "the text encoder does not see them (cleaning as in EasyAnimate V2); write them in other words"
    findings += _finding("captions that lose words to cleaning", losing, advice)
    advice = f"their ends are cut; shorten them (counted with the tokenizer of {model!r})"
    findings += _finding(f"captions over {MAX_TOKENS} tokens", long, advice)
    if len(items) > 1 and len(texts) == 1:
        findings.append(Finding("one caption for every file", len(items), False, "the text teaches nothing"))
    return findings, longest


@dataclass(frozen=True, slots=True)
class _Read:
    """A file as a child read it. digest: of its contents. reason: why it cannot be read, "" if it can."""

    digest: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""


class _Reader:
    """Reads a sample as training does, in a child."""

    def __init__(self, dataset: TrainingSet) -> None:
        self.dataset = dataset

    def __call__(self, task: tuple[int, Bucket]) -> _Read:
        index, bucket = task
        path = self.dataset.item(index).path
        try:
            start = self.dataset.starts(index, bucket)[-1]  # the last window, which a truncated file lacks
            self.dataset.read(index, start, bucket)
            size = probe(path, path.resolve().parent)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return _Read(digest, size.width, size.height)
        except (BadSample, ValueError, OSError) as error:
            return _Read(reason=error.reason if isinstance(error, BadSample) else str(error))


def _small(sizes: Sequence[tuple[str, int, int]]) -> list[Finding]:
    """sizes: (name, width, height), upright."""
    small = [f"{name} ({width}x{height})" for name, width, height in sizes if min(width, height) < SMALLEST]
    return _finding(
        f"sizes below {SMALLEST} pixels", small, "they are enlarged, and show little; leave them out"
    )


def _files(
    dataset: TrainingSet,
    buckets: Sequence[Bucket],
    workers: int,
    timeout: float,
    on_file: Callable[[int, int], None] | None,
) -> list[Finding]:
    first: dict[str, str] = {}
    bad, twins, sizes = list[str](), list[str](), list[tuple[str, int, int]]()
    total = len(dataset.items)  # repeats follow, and are the same files
    tasks = [(i, buckets[i]) for i in range(total)]
    with Supervisor(_Reader(dataset), workers=workers, timeout=timeout + 5) as pool:
        for done, result in enumerate(pool.map(tasks), 1):
            name = dataset.item(done - 1).path.name
            if on_file:
                on_file(done, total)
            read = _Read(reason=result.reason) if isinstance(result, Failure) else result
            if read.reason:
                bad.append(f"{name}: {read.reason}")
                continue
            sizes.append((name, read.width, read.height))
            if read.digest in first:
                twins.append(f"{name} = {first[read.digest]}")
            first.setdefault(read.digest, name)
    advice = "mend them or take their entries out of the list"
    found = _finding("unreadable files", bad, advice, is_fatal=True) + _small(sizes)
    return found + _finding("files with the content of another", twins, "take the second ones out")


def _name(bucket: Bucket) -> str:
    return f"{bucket.kind} {bucket.num_frames} x {bucket.height} x {bucket.width}"
