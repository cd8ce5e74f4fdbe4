"""Parts of the videos and masks that a generation starts from, for windows of a long one: read again for each window,
so that memory does not grow with length.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.video.reader import read_frames

if TYPE_CHECKING:
    from ea_runtime.generation.requests import Request


def video_name(request: Request) -> str | None:
    """The argument that gives all frames: `video`, or `image` with a mask; None if single pictures are given."""
    if request.video is not None:
        return "video"
    return "image" if request.mask is not None else None


def check_lengths(request: Request) -> None:
    """Raises UserError for a video or mask whose length does not suit the request. Files are read once."""
    count, name = request.num_frames, video_name(request)
    if name is None:
        return
    found = _count(getattr(request, name), count)
    if found < count:
        raise UserError(
            f"`{name}` must have {count} frames or more, got {found}; ask for fewer with num_frames"
        )
    found = count if request.mask is None else _count(request.mask, count)
    if found not in (1, count):
        raise UserError(
            f"`mask` must be a picture or a video of {count} frames, got {found}; cut it to that length"
        )


def cut_request(request: Request, first: int, last: int) -> Request:
    """The request of frames first..last alone; past the end it begins again.

    Single pictures stay as they are.
    """
    name, total = video_name(request), request.num_frames
    part = replace(request, num_frames=last - first)
    if name is None:
        return part
    ranges = [(first, min(last, total)), *([(0, last - total)] if last > total else [])]
    changes: dict[str, Any] = {name: _cut(getattr(request, name), ranges)}
    if request.mask is not None and _count(request.mask, 2) > 1:
        changes["mask"] = _cut(request.mask, ranges)
    return replace(part, **changes)


def _count(value: Any, most: int) -> int:
    """The number of frames, counted up to `most` in a file. A tensor has to have exactly as many as it is for."""
    if isinstance(value, Tensor):
        return value.shape[2] if value.ndim == 5 else 1
    if isinstance(value, np.ndarray):
        return min(len(value), most) if value.ndim == 4 else 1
    if isinstance(value, str | os.PathLike):
        return sum(1 for _ in islice(read_frames(value), most))
    return min(len(value), most) if isinstance(value, Sequence) else 1


def _cut(value: Any, ranges: Sequence[tuple[int, int]]) -> Any:
    """The frames of `ranges`, one after the other."""
    if isinstance(value, Tensor):
        return torch.cat([value[:, :, first:last] for first, last in ranges], dim=2)
    if isinstance(value, np.ndarray):
        return np.concatenate([value[first:last] for first, last in ranges])
    return [frame for first, last in ranges for frame in _frames(value, first, last)]


def _frames(value: Any, first: int, last: int) -> Iterator[Any]:
    if isinstance(value, str | os.PathLike):
        return islice(read_frames(value), first, last)
    return iter(value[first:last])
