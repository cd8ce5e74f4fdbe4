"""Tells a picture from a video by a file's first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Literal

from ea_runtime.video.pictures import PICTURE_FORMATS, PICTURE_SUFFIXES

Kind = Literal["image", "video"]
#: As many bytes as Pillow looks at, and signs of containers: (offset, bytes).
_HEAD = 16
_VIDEO_SIGNS = (
    (4, b"ftyp"),  # mp4, mov; of pictures, only AVIF has it too
    (4, b"moov"),
    (0, b"\x1aE\xdf\xa3"),  # Matroska, WebM
    (8, b"AVI "),
    (0, b"FLV\x01"),
    (0, b"OggS"),
    (0, b"DKIF"),
    (0, b"\x30\x26\xb2\x75"),  # ASF
    (0, b"\x00\x00\x01\xba"),  # MPEG programme stream
    (0, b"\x00\x00\x01\xb3"),  # MPEG-1 or -2
)


def kind_of(file: BinaryIO, path: Path) -> Kind:
    """The kind of an open file, which is rewound: by its bytes, and if they tell neither, by the name."""
    head = file.read(_HEAD)
    file.seek(0)
    return _by_bytes(head) or _by_name(path)


def kind_at(path: Path) -> Kind:
    """The kind of the file at `path`; by its name if it cannot be opened."""
    try:
        if not path.is_file():  # a pipe would block
            return _by_name(path)
        with path.open("rb") as file:
            return kind_of(file, path)
    except OSError:
        return _by_name(path)


def _by_bytes(head: bytes) -> Kind | None:
    from PIL import Image

    Image.init()
    for name in PICTURE_FORMATS:
        accepts = Image.OPEN[name][1] if name in Image.OPEN else None
        if accepts is not None and accepts(head):  # a text says that Pillow was built without it
            return "image"
    return "video" if any(head.startswith(sign, at) for at, sign in _VIDEO_SIGNS) else None


def _by_name(path: Path) -> Kind:
    return "image" if path.suffix.lower() in PICTURE_SUFFIXES else "video"
