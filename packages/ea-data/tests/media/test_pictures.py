"""One picture looks the same to scores, clips and training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ea_data.media.cut import suffix_of, write_clip
from ea_data.media.frames import read_frames
from ea_data.media.probe import BadFile, probe
from ea_data.media.reader import Cut, read
from ea_data.media.reader import probe as probe_header
from ea_data.media.source import find_files
from ea_data.protocols import FrameRequest
from ea_runtime.video.reader import read_frames as read_any

RAMP = np.arange(48 * 64).reshape(48, 64) % 256
RGBA = np.dstack([RAMP, RAMP[::-1], RAMP, 255 * (RAMP > 100)]).astype(np.uint8)


def sideways(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGBA[:, :, :3]).save(path, exif=exif)


def grey(kind: Any, factor: float) -> Callable[[Path], None]:
    return lambda path: Image.fromarray((RAMP * factor).astype(kind)).save(path)


KINDS: dict[str, Callable[[Path], None]] = {
    "16.png": grey(np.uint16, 257),
    "16.tif": grey(np.uint16, 257),
    "32.tif": grey(np.int32, 257),
    "float.tif": grey(np.float32, 1 / 255),
    "alpha.png": lambda path: Image.fromarray(RGBA).save(path),
    "alpha.tif": lambda path: Image.fromarray(RGBA).save(path),
    "palette.gif": lambda path: Image.fromarray(RGBA).save(path),
    "cmyk.tif": lambda path: Image.fromarray(RGBA[:, :, :3]).convert("CMYK").save(path),
    "sideways.tif": sideways,
    "sideways.png": sideways,
    "plain.jfif": lambda path: Image.fromarray(RGBA[:, :, :3]).save(path, "JPEG"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_entry_point_sees_the_same_picture(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    KINDS[name](path)
    assert [found.source for found in find_files(tmp_path, Counter())] == [name]
    info = probe(path, tmp_path).info
    assert info.bits == 8 * path.stat().st_size
    request = FrameRequest("middle")
    scored = read_frames(path, tmp_path, 0, 0, 0, [request])[request].pixels[0]
    assert scored.shape == (info.height, info.width, 3)
    assert np.array_equal(scored, next(iter(read_any(path))))
    assert probe_header(path, tmp_path)[:2] == (info.width, info.height)

    def trained(file: Path, **options: Any) -> np.ndarray:
        return read(Cut(file, tmp_path, 0, 1, info.height, info.width, **options))[0]

    assert np.array_equal(trained(path), scored)
    record = {"path": str(path), "is_picture": True, "codec": info.codec}
    clip = tmp_path / f"clip{suffix_of(record)}"
    written = write_clip(record, tmp_path, clip)
    assert (written.width, written.height) == (info.width, info.height)
    assert np.array_equal(trained(clip), scored)
    # a clip keeps its transparency for the background that its training wants
    assert np.array_equal(trained(clip, background=(9, 9, 9)), trained(path, background=(9, 9, 9)))


def test_a_file_that_is_no_picture_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("noise")
    for look in (probe, probe_header):
        with pytest.raises(
            BadFile, match=r"^it cannot be read: damaged, or no picture of these kinds: PNG, JPEG"
        ):
            look(tmp_path / "a.png", tmp_path)
