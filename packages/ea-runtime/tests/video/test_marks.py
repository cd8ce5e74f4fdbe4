"""Marks in outputs: read back from every kind of file, seen by other readers, and never in the way of the pixels."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from ea_runtime.video.marks import DIGITAL_SOURCE_TYPE, Marks, read_recipe
from ea_runtime.video.output import plan_output, write_video
from ea_runtime.video.reader import read_frames

NAMES = ("out.mp4", "out.mov", "out.webm", "out.webp", "out.gif", "out.png", "frames/")
MARKS = Marks('{"prompt": "a <b> & \\"c\\" ]]>"}', "a <b>, größer 圆\nSteps: 3", "Made by AI: größer 圆")
#: long enough for several blocks of a GIF and both bytes of every length
LONG = Marks('{"prompt": "' + "x" * 70_000 + '"}', "y" * 70_000, "z" * 300)


def frames_of(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 256, (32, 48, 3), np.uint8) for seed in range(count)]


def written(folder: Path, name: str, count: int, marks: Marks | None) -> Path:
    return write_video(f"{folder}/{name}", frames_of(count), 8, marks=marks)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("marks", [MARKS, LONG], ids=["short", "long"])
def test_a_recipe_comes_back(tmp_path: Path, name: str, count: int, marks: Marks) -> None:
    path = written(tmp_path, name, count, marks)
    assert read_recipe(path, plan_output(path, overwrite=True).kind) == marks.recipe


@pytest.mark.parametrize("name", NAMES)
def test_pixels_and_structure_are_the_same_with_and_without(tmp_path: Path, name: str) -> None:
    plain, marked = (tmp_path / part for part in ("plain", "marked"))
    paths = [written(plain, name, 4, None), written(marked, name, 4, LONG)]
    for folder in (plain, marked):
        assert folder.is_dir()
    first, second = map(pixels, paths)
    assert len(first) == len(second) > 0
    assert all((one == other).all() for one, other in zip(first, second, strict=True))


def pixels(path: Path) -> list[np.ndarray]:
    """All frames of an output, by the libraries that other programs use."""
    if path.is_dir():
        return [np.asarray(Image.open(one)) for one in sorted(path.iterdir())]
    if path.suffix in (".png", ".gif", ".webp"):
        with Image.open(path) as picture:
            return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
    return list(read_frames(path))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("marks", [MARKS, Marks()], ids=["recipe", "no recipe"])
def test_every_file_says_that_ai_made_it(tmp_path: Path, name: str, marks: Marks) -> None:
    path = written(tmp_path, name, 4, marks)
    content = (path / "00003.png" if path.is_dir() else path).read_bytes()
    assert DIGITAL_SOURCE_TYPE.encode() in content
    assert (b"prompt" in content) == bool(marks.recipe)
    assert read_recipe(path, plan_output(path, overwrite=True).kind) == (marks.recipe or None)


def test_other_readers_see_the_marks(tmp_path: Path) -> None:
    with av.open(str(written(tmp_path, "out.mp4", 4, MARKS)), options={"export_xmp": "1"}) as container:
        tags = container.metadata
    assert {name: tags[name] for name in ("parameters", "comment")} == {
        "parameters": MARKS.parameters,
        "comment": MARKS.comment,
    }
    assert DIGITAL_SOURCE_TYPE in tags["xmp"]
    with Image.open(written(tmp_path, "out.png", 1, MARKS)) as picture:
        assert picture.info["parameters"] == MARKS.parameters
        assert DIGITAL_SOURCE_TYPE.encode() in picture.info["xmp"]
    with Image.open(written(tmp_path, "out.gif", 4, MARKS)) as picture:
        assert picture.info["comment"].decode() == MARKS.parameters
    for count in (1, 4):
        with Image.open(written(tmp_path / str(count), "out.webp", count, MARKS)) as picture:
            assert DIGITAL_SOURCE_TYPE.encode() in picture.info["xmp"]


def test_without_marks_a_file_says_nothing(tmp_path: Path) -> None:
    for name in NAMES:
        path = written(tmp_path, name, 4, None)
        content = (path / "00000.png" if path.is_dir() else path).read_bytes()
        assert b"xmp" not in content.lower()


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=80))
def test_any_text_comes_back_from_xmp(text: str) -> None:
    import json

    from ea_runtime.video.marks import _in_xmp

    recipe = json.dumps({"prompt": text})
    assert _in_xmp(Marks(recipe).xmp()) == recipe
