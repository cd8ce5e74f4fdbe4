"""The interface of a training set, opening one, and making its samples a batch.

ea-data brings the set of EasyAnimate's JSON. Shapes: frames uint8 (T, H, W, 3), batches of them (B, T, H, W, 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ea_runtime.training.recipe import Batch
from ea_runtime.video.pictures import BACKGROUND, Colour, read_colour

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Bucket(NamedTuple):
    """The shape that the samples of a batch share. Sizes in pixels."""

    kind: Literal["image", "video"]
    num_frames: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a set. `path` is absolute and beneath the set's root; sizes are 0 where unknown.

    given: "start" or "ends" if the caption says how those frames continue or come together: a training of known frames
    then always shows them. "": any.
    """

    path: Path
    text: str
    is_video: bool
    width: int
    height: int
    given: str = ""


class BadSample(Exception):
    """A file that cannot be used. `path` and `reason` (one line) go into the log."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it can be pickled
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Sample:
    """frames: uint8 (T, H, W, 3), of the bucket's size, T as asked. text: its caption. start: first frame taken."""

    frames: np.ndarray
    text: str
    start: int = 0


class SetOptions(BaseModel):
    """The keys of a [data] table that choose a set and how it is cut; recipes add their own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="folder of the set, with dataset.json, or a JSON or CSV file")
    root: str | None = Field(
        None, description="folder that `file_path`s are relative to; the list's own if not given"
    )
    format: str = Field("easyanimate", description="which installed dataset reads it")
    kinds: Literal["both", "videos", "pictures"] = "both"
    limit: int = Field(0, ge=0, description="use only the first so many; 0: all")
    repeat_videos: int = Field(1, gt=0, description="times that each video counts in an epoch")
    size: int = Field(
        0, ge=0, description="side of a square with a bucket's area, in pixels; 0: each file's own size"
    )
    multiple: int = Field(16, gt=0, description="height and width of a bucket are multiples of it, in pixels")
    crop: Literal["centre", "random"] = Field(
        "centre", description="where a file is cut that does not have its bucket's shape"
    )
    background: str | None = Field(
        None, description="colour where a picture is transparent: a name or #rrggbb; white if not given"
    )
    num_frames: int = Field(9, gt=0, description="largest number of frames of a clip")
    chunk: int = Field(
        9, gt=0, description="a video too short for num_frames gives a multiple of so many, or one frame"
    )
    stride: int = Field(1, gt=0, description="every so many frames of a clip")
    start_multiple: int = Field(1, gt=0, description="a clip's window starts at a multiple of so many frames")
    middle: float = Field(
        1.0, gt=0, le=1, description="part of a video, around its middle, that windows come from"
    )
    decode: Literal["child", "inline"] = Field(
        "child", description="decode in a separate process, whose death costs one sample, or in this one"
    )
    timeout: float = Field(20.0, gt=0, description="seconds that a child may take for a sample")
    strict: bool = Field(
        True, description="a file with damaged frames is bad, even if a decoder could conceal them"
    )
    keep_mib: int = Field(
        2048, ge=0, description="memory per process for small clips, so that they are decoded once"
    )

    @property
    def folder(self) -> Path:
        """The folder that `file_path`s are relative to, resolved."""
        place = Path(self.root or self.path)
        return (place if place.is_dir() else place.parent).resolve()

    @field_validator("background")
    @classmethod
    def _is_colour(cls, value: str | None) -> str | None:
        if value is not None:
            read_colour(value)
        return value

    @property
    def background_colour(self) -> Colour:
        return read_colour(self.background or BACKGROUND)


class TrainingSet(Protocol):
    """Made as `TrainingSet(options: SetOptions)`. Raises UserError, one line, for a set that cannot be read.

    Picklable, since workers get a copy. May have `remarks() -> list[str]`: lines about its files that a run says at its
    start, once `buckets` was called.
    """

    items: Sequence[Item]

    def __init__(self, options: SetOptions) -> None: ...

    def __len__(self) -> int:
        """Samples per epoch."""
        ...

    def item(self, index: int) -> Item:
        """The entry that sample `index` shows."""
        ...

    def buckets(self, size: int | None = None, num_frames: int | None = None) -> list[Bucket]:
        """One per sample. size, num_frames: in place of the options' (a schedule changes them)."""
        ...

    def starts(self, index: int, bucket: Bucket) -> range:
        """The frames that a window of the bucket may start at, at least one."""
        ...

    def read(self, index: int, start: int, bucket: Bucket) -> np.ndarray:
        """The window from frame `start`, centre cropped: uint8 (T, H, W, 3) of the bucket's size. Raises BadSample."""
        ...

    def sample(self, index: int, seed: int, bucket: Bucket) -> Sample:
        """Reads, cuts and resizes one sample: a function of its arguments. Raises BadSample.

        Its start is `draw_start(self.starts(index, bucket), index, seed)`.
        """
        ...


def open_set(options: SetOptions) -> TrainingSet:
    """The set as the installed dataset `options.format` reads it. Raises UserError naming what is missing."""
    from ea_runtime.plugins.host import get_host

    return get_host().get("datasets", options.format).build()(options)


def bucket_name(key: Hashable) -> str:
    """A bucket in words: "video 64x64, 18 frames"; any other key as text."""
    if isinstance(key, Bucket):
        frames = f", {key.num_frames} frames" if key.kind == "video" else ""
        return f"{key.kind} {key.width}x{key.height}{frames}"
    return str(key)


def short_videos(buckets: Iterable[Bucket | None], num_frames: int) -> str | None:
    """A line about the videos that are too short to give `num_frames` frames; None if all do."""
    counts = Counter(bucket.num_frames for bucket in buckets if bucket is not None and bucket.kind == "video")
    short = sorted((frames, count) for frames, count in counts.items() if frames < num_frames)
    if not short:
        return None
    named = ", ".join(f"{count} give {frames}" for frames, count in short[:4]) + ", ..." * (len(short) > 4)
    return (
        f"{sum(count for _, count in short)} of {counts.total()} videos are too short for {num_frames} frames and "
        f"give fewer ({named})"
    )


def draw_start(starts: range, index: int, seed: int) -> int:
    """One of `starts`, a function of (index, seed) alone."""
    if len(starts) == 1:
        return starts[0]
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    return starts[int(rng.integers(len(starts)))]


def fetch_samples(data: TrainingSet, indices: Sequence[int], seed: int, bucket: Bucket) -> Batch:
    """Samples of one bucket as a batch, for `Recipe.fetch`.

    tensors: "frames" uint8 (B, T, H, W, 3) and "captions", a list of B strings; what does not decode is in `bad`.
    If nothing decodes, the batch is empty, B = 0.
    """
    import torch

    batch = Batch([])
    frames = np.empty((len(indices), *bucket[1:], 3), dtype=np.uint8)
    captions: list[str] = []
    for index in indices:
        try:
            sample = data.sample(index, seed, bucket)
        except BadSample as error:
            batch.bad.append((index, error.path, error.reason))
            continue
        frames[len(captions)] = sample.frames
        captions.append(sample.text)
        batch.indices.append(index)
    batch.tensors = {"frames": torch.from_numpy(frames[: len(captions)]), "captions": captions}
    return batch


def to_float(frames: Tensor, device: str | torch.device = "cpu") -> Tensor:
    """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W) in -1..1 on the device, contiguous."""
    moved = frames.to(device).movedim(-1, 1).contiguous()  # bytes travel, not floats
    return moved.float().div_(127.5).sub_(1.0)
