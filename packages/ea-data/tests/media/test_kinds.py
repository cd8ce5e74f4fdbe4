"""Pictures and videos told apart by their first bytes, each sign alone."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ea_data.media.kinds import kind_at, kind_of

SIGNS = {
    "mp4": b"....ftyp",
    "mov": b"....moov",
    "matroska": b"\x1aE\xdf\xa3",
    "avi": b"RIFF....AVI ",
    "flv": b"FLV\x01",
    "ogg": b"OggS",
    "ivf": b"DKIF",
    "asf": b"0&\xb2u",
    "programme stream": b"\x00\x00\x01\xba",
    "mpeg-2": b"\x00\x00\x01\xb3",
}


@pytest.mark.parametrize("name", SIGNS)
def test_the_sign_of_a_container_counts_in_its_place_alone(name: str) -> None:
    sign = SIGNS[name]
    for head, kind in (
        (sign, "video"),
        (sign + bytes(9), "video"),
        (b"-" + sign, "image"),
        (sign[:-1], "image"),
    ):
        file = BytesIO(head)
        assert kind_of(file, Path("a.PNG")) == kind
        assert file.tell() == 0


def test_formats_that_this_pillow_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Formats are looked up once all are loaded; one that Pillow lacks, or has no sign of, does not count."""
    asked: list[bool] = []
    monkeypatch.setattr(Image, "init", lambda: asked.append(True))
    monkeypatch.setattr(Image, "OPEN", {"TIFF": (None, None), "PNG": (None, lambda head: head[:3] == b"abc")})
    assert kind_of(BytesIO(b"abcd"), Path("a.mp4")) == "image"
    assert kind_of(BytesIO(b"abd"), Path("a.mp4")) == "video"
    assert len(asked) == 2


def test_a_pipe_and_a_file_without_permission_go_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.gif")

    def refuse(path: Path, mode: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert kind_at(tmp_path / "pipe.gif") == "image"
    (tmp_path / "a.tif").touch()
    assert kind_at(tmp_path / "a.tif") == "image"


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_a_picture_is_one_whatever_its_name(tmp_path: Path, name: str) -> None:
    Image.init()
    if name not in Image.SAVE:
        pytest.skip(f"this build of Pillow writes no {name}")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.mp4", name)
    assert kind_at(tmp_path / "a.mp4") == "image"
    assert kind_at(tmp_path / "gone.mp4") == "video"
