"""Opens files of a data set: only regular files beneath its root, and only formats that refer to no other file.

FFmpeg follows playlists and lists of files, and Pillow passes PostScript to Ghostscript, whatever the file name. So
nothing is opened by name, and both get a list of the formats that they may detect (that of pictures is in
ea_runtime.video.pictures).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ea_runtime.video.reader import CONTAINERS
from ea_runtime.video.streams import best_video

#: Windows has only O_BINARY, and needs it.
_FLAGS = os.O_RDONLY
for _name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)


class BadFile(ValueError):
    """A fault of a raw file, in one line that starts with "it"."""


@contextmanager
def open_beneath(path: Path, root: Path) -> Iterator[BinaryIO]:
    """The regular file `path`, read only. Raises ValueError if it is none, or if its links lead out of `root`."""
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root):
            raise ValueError("it is a link that leaves the set")
        # a link that replaces the file from here on is refused, and a pipe does not block
        number = os.open(real, _FLAGS)
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except (OSError, RuntimeError) as error:  # a loop of links
        raise ValueError(getattr(error, "strerror", None) or str(error)) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ValueError("it is no regular file")
    with os.fdopen(number, "rb") as file:
        yield file


@contextmanager
def open_video(file: BinaryIO, strict: bool = False) -> Iterator[tuple[Any, Any]]:
    """An open file as a PyAV (container, its video stream), which decodes in this thread.

    strict: the decoder reports damage that it could conceal (FFmpeg's err_detect explode). Frames come from a
    FrameDecoder. Raises ValueError if there is no video in it; decoding errors (av.FFmpegError) are OSErrors or
    ValueErrors.
    """
    import av

    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
    if strict:
        options["err_detect"] = "explode"
    with av.open(file, "r", options=options) as container:
        stream = best_video(container)
        if stream is None:
            has_cover = bool(container.streams.video)
            raise ValueError("it holds a cover picture and no video" if has_cover else "it holds no video")
        if stream.codec_context is None:
            raise ValueError("this build of FFmpeg has no decoder for its video")
        # one thread: workers and children fill the cores, and small frames are slower with more
        stream.codec_context.thread_count = 1
        yield container, stream


def rewind(container: Any) -> None:
    """Goes back to the beginning of an open container, by bytes where there is no index."""
    from av import PermissionError

    try:
        container.seek(0)
    except PermissionError:
        container.seek(0, unsupported_byte_offset=True)
