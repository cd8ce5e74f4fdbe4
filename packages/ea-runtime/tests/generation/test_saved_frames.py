"""Frames of an unfinished run in their two files: what is read back, and what is dropped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ea_runtime.generation.saved_frames import INDEX, RAW, SavedFrames


def frames(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 8, 16, 3), dtype=np.uint8))


def stored(folder: Path, count: int = 5, first: int = 0) -> list[np.ndarray]:
    made = frames(count)
    saved = SavedFrames(folder, 8, 16)
    for number, frame in enumerate(made, first):
        saved.append(number, frame, number >= first + 3)
    return made


@pytest.mark.parametrize("first", [0, 4])
def test_what_was_appended_comes_back(tmp_path, first):
    made = stored(tmp_path, first=first)
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.first, saved.stop, saved.is_tiled, saved.damaged) == (first, first + 5, True, None)
    assert all(np.array_equal(a, b) for a, b in zip(saved.read(), made, strict=True))
    saved.append(first + 5, made[0], False)
    assert SavedFrames(tmp_path, 8, 16).stop == first + 6


def test_a_kill_at_every_byte_loses_at_most_the_last_frame(tmp_path):
    stored(tmp_path)
    raw, index = (tmp_path / RAW).read_bytes(), (tmp_path / INDEX).read_bytes()
    size = 8 * 16 * 3
    for cut in range(4 * size, 5 * size, 37):
        (tmp_path / RAW).write_bytes(raw[:cut])
        (tmp_path / INDEX).write_bytes(b"".join(index.splitlines(True)[:4]))
        saved = SavedFrames(tmp_path, 8, 16)
        assert (saved.stop, saved.damaged) == (4, None)
        assert (tmp_path / RAW).stat().st_size == 4 * size
    for cut in range(1, len(index.splitlines(True)[-1])):
        (tmp_path / RAW).write_bytes(raw)
        (tmp_path / INDEX).write_bytes(index[:-cut])
        assert SavedFrames(tmp_path, 8, 16).stop == 4


@pytest.mark.parametrize("damaged", [0, 2, 4])
def test_a_damaged_frame_and_those_after_it_are_dropped(tmp_path, damaged):
    made = stored(tmp_path)
    data = bytearray((tmp_path / RAW).read_bytes())
    data[damaged * 384 + 100] ^= 1
    (tmp_path / RAW).write_bytes(data)
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.stop, saved.damaged) == (damaged, damaged)
    assert all(np.array_equal(a, b) for a, b in zip(saved.read(), made, strict=False)) if damaged else True


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"frame": 9}', '{"frame": -1, "sha256": "", "is_tiled": 0}']
)
def test_an_index_that_is_none_ends_there(tmp_path, line):
    stored(tmp_path)
    lines = (tmp_path / INDEX).read_text().splitlines()
    (tmp_path / INDEX).write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    assert SavedFrames(tmp_path, 8, 16).stop == 2


def index_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]


def test_a_frame_is_its_bytes_and_then_a_line_that_vouches_for_them(tmp_path):
    made = stored(tmp_path, 2, first=7)
    assert (tmp_path / RAW).read_bytes() == made[0].tobytes() + made[1].tobytes()
    digests = [hashlib.sha256(frame.tobytes()).hexdigest() for frame in made]
    assert index_of(tmp_path) == [
        {"frame": 7 + number, "sha256": digest, "is_tiled": False} for number, digest in enumerate(digests)
    ]
    saved = SavedFrames(tmp_path, 8, 16)
    assert saved.shape == (8, 16, 3)
    assert [(one.shape, one.dtype, one.flags.writeable) for one in saved.read()] == [
        ((8, 16, 3), np.uint8, True)
    ] * 2


def test_frames_come_in_order_and_the_first_has_any_number(tmp_path):
    made = stored(tmp_path, 2)
    saved = SavedFrames(tmp_path, 8, 16)
    for number in (1, 3):
        with pytest.raises(AssertionError, match="in order"):
            saved.append(number, made[0], False)
    saved.append(2, made[0][:, ::-1], False)  # any layout in memory
    assert np.array_equal(list(SavedFrames(tmp_path, 8, 16).read())[2], made[0][:, ::-1])
    empty = SavedFrames(tmp_path / "none", 8, 16)
    assert (empty.first, empty.stop, empty.is_tiled, empty.damaged) == (0, 0, False, None)


@pytest.mark.parametrize("gone", [RAW, INDEX])
def test_one_file_without_the_other_is_dropped(tmp_path, gone):
    stored(tmp_path)
    (tmp_path / gone).unlink()
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.first, saved.stop, saved.damaged) == (0, 0, None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_dropped_is_gone_from_both_files(tmp_path):
    made = stored(tmp_path)
    raw = bytearray((tmp_path / RAW).read_bytes())
    raw[2 * 384] ^= 1
    (tmp_path / RAW).write_bytes(bytes(raw) + b"more")
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.first, saved.stop, saved.is_tiled, saved.damaged) == (0, 2, False, 2)
    assert (tmp_path / RAW).read_bytes() == made[0].tobytes() + made[1].tobytes()
    assert [line["frame"] for line in index_of(tmp_path)] == [0, 1]
    saved.append(2, made[2], True)
    again = SavedFrames(tmp_path, 8, 16)
    assert (again.stop, again.is_tiled, again.damaged) == (3, True, None)
    assert all(np.array_equal(a, b) for a, b in zip(again.read(), made[:3], strict=True))


def test_damage_of_the_first_frame_leaves_none(tmp_path):
    made = stored(tmp_path, first=4)
    (tmp_path / RAW).write_bytes(bytes(5 * 384))
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.first, saved.stop, saved.damaged) == (0, 0, 4)
    assert list(tmp_path.iterdir()) == []
    saved.append(9, made[0], False)
    assert (saved.first, saved.stop) == (9, 10)


def test_frames_of_another_size_are_not_these(tmp_path):
    stored(tmp_path)
    assert SavedFrames(tmp_path, 16, 16).stop == 0


@pytest.mark.parametrize(
    ("line", "is_taken"),
    [
        ({"frame": 2}, False),
        ({"frame": 2, "sha256": "0"}, False),
        ({"frame": 1, "sha256": "", "is_tiled": False}, False),
        ({"frame": 3, "sha256": "", "is_tiled": False}, False),
        ({"frame": 2.0, "sha256": "", "is_tiled": False}, False),
        ({"frame": True, "sha256": "", "is_tiled": False}, False),
        ("[" * 100_000, False),
        (None, True),
    ],
)
def test_lines_that_are_none_end_the_index(tmp_path, line, is_taken):
    stored(tmp_path, 3)
    lines = (tmp_path / INDEX).read_text().splitlines()
    if line is not None:
        lines[2] = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / INDEX).write_text("\n".join(lines) + "\n")
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.stop, saved.damaged) == (3 if is_taken else 2, None)


def test_a_first_frame_below_zero_is_none(tmp_path):
    stored(tmp_path)
    lines = (tmp_path / INDEX).read_text().splitlines()
    (tmp_path / INDEX).write_text(lines[0].replace('"frame": 0', '"frame": -1') + "\n")
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.first, saved.stop, saved.damaged) == (0, 0, None)


def test_bytes_of_less_than_a_frame_are_none(tmp_path):
    """Even if a line vouches for them."""
    (tmp_path / RAW).write_bytes(b"short")
    line = {"frame": 0, "sha256": hashlib.sha256(b"short").hexdigest(), "is_tiled": False}
    (tmp_path / INDEX).write_text(json.dumps(line) + "\n")
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.first, saved.stop, saved.damaged) == (0, 0, 0)


def test_a_first_frame_that_failed_leaves_nothing_to_the_next(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(28, "No space left on device")

    first, second = frames(2)
    saved = SavedFrames(tmp_path, 8, 16)
    with monkeypatch.context() as patch:
        patch.setattr("ea_runtime.generation.saved_frames.json.dumps", fail)
        with pytest.raises(OSError, match="No space"):
            saved.append(3, first, False)
    saved.append(4, second, False)
    assert np.array_equal(next(SavedFrames(tmp_path, 8, 16).read()), second)
