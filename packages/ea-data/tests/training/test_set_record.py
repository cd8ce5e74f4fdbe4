"""A changed set is noticed whatever changed, and a moved or rewritten one is no changed one."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ea_data.training.dataset import EasyAnimateSet
from ea_runtime.errors import UserError
from ea_runtime.files.hashes import sampled_hash
from ea_runtime.training.data import set_record
from ea_runtime.training.data.dataset import SetOptions
from ea_runtime.training.data.set_record import Row, changes, describe_set, read_record, write_record

Entries = list[dict[str, Any]]
Change = Callable[[Path, Entries, np.random.Generator], None]


def colour(path: Path, rng: np.random.Generator, size: tuple[int, int] = (32, 32)) -> None:
    # without compression: a replaced picture has the size in bytes of the old one
    Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist())).save(path, compress_level=0)


def make_set(folder: Path, rng: np.random.Generator) -> Entries:
    (folder / "images").mkdir(parents=True)
    entries = []
    for number in range(8):
        name = f"images/{number}.png"
        colour(folder / name, rng)
        entries.append(
            {"file_path": name, "text": f"caption {number}", "type": "image", "width": 32, "height": 32}
        )
    return entries


def record(folder: Path, entries: Entries | None = None) -> list[Row]:
    if entries is not None:
        (folder / "dataset.json").write_text(json.dumps(entries))
    data = EasyAnimateSet(SetOptions(path=str(folder), decode="inline"))
    return list(describe_set(data, folder.resolve()))


def pick(entries: Entries, rng: np.random.Generator) -> dict[str, Any]:
    return entries[int(rng.integers(len(entries)))]


def remove(folder: Path, entries: Entries, rng: np.random.Generator) -> None:
    del entries[int(rng.integers(len(entries)))]


def lose(folder: Path, entries: Entries, rng: np.random.Generator) -> None:
    (folder / pick(entries, rng)["file_path"]).unlink()


def add(folder: Path, entries: Entries, rng: np.random.Generator) -> None:
    colour(folder / "images/new.png", rng)
    entries.insert(int(rng.integers(len(entries) + 1)), {"file_path": "images/new.png", "text": "new"})


def again(folder: Path, entries: Entries, rng: np.random.Generator) -> None:
    entries.append({**pick(entries, rng), "text": "a second caption"})


def replace(folder: Path, entries: Entries, rng: np.random.Generator) -> None:
    path = folder / pick(entries, rng)["file_path"]
    size = path.stat().st_size
    colour(path, rng)
    assert path.stat().st_size == size


def swap(folder: Path, entries: Entries, rng: np.random.Generator) -> None:
    one, other = rng.permutation(len(entries))[:2]
    first, second = folder / entries[one]["file_path"], folder / entries[other]["file_path"]
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)


def caption(folder: Path, entries: Entries, rng: np.random.Generator) -> None:
    pick(entries, rng)["text"] += str(rng.choice([" ", ".", " moves", "\u2028"]))


def order(folder: Path, entries: Entries, rng: np.random.Generator) -> None:
    place = int(rng.integers(len(entries) - 1))
    entries[place], entries[place + 1] = entries[place + 1], entries[place]


def listed_size(folder: Path, entries: Entries, rng: np.random.Generator) -> None:
    pick(entries, rng)[str(rng.choice(["width", "height"]))] += 1


def size(folder: Path, entries: Entries, rng: np.random.Generator) -> None:
    entry = pick(entries, rng)
    colour(folder / entry["file_path"], rng, (48, 32))
    entry |= {"width": 48, "height": 32}


CHANGES: dict[Change, str] = {
    remove: "1 file removed (images/",
    lose: "1 file replaced (images/",
    add: "1 file added (images/new.png)",
    again: "1 file added (images/",
    replace: "1 file replaced (images/",
    swap: "2 files replaced (images/",
    caption: "1 caption changed (images/",
    order: "the order of the list changed",
    listed_size: "1 size, length or type changed (images/",
    size: "1 file replaced (images/",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_fifty_changes_of_a_set_are_caught(change: Change, tmp_path: Path) -> None:
    """Five of each of ten kinds. The set's own table of hashes stays, as between two starts of a run."""
    for seed in range(5):
        rng = np.random.default_rng([list(CHANGES).index(change), seed])
        folder = tmp_path / str(seed)
        entries = make_set(folder, rng)
        before = record(folder, entries)
        change(folder, entries, rng)
        told = changes(before, record(folder, entries))
        assert told.startswith(CHANGES[change]), told
        assert "\n" not in told
        assert ", " not in told.partition(")")[2], "nothing else changed"


def test_a_moved_or_rewritten_set_is_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    entries = make_set(folder, np.random.default_rng(0))
    before = record(folder, entries)
    write_record(tmp_path / "set.jsonl", before)
    assert list(read_record(tmp_path / "set.jsonl")) == before
    assert changes(before, record(folder)) == ""
    for path in folder.glob("images/*.png"):
        os.utime(path, (1, 1))
    moved = tmp_path / "elsewhere" / "set"
    shutil.copytree(folder, moved)
    with (moved / "list.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, entries[0])
        table.writeheader()
        table.writerows({**entry, "file_path": str(moved / entry["file_path"])} for entry in entries)
    (moved / "dataset.json").unlink()
    data = EasyAnimateSet(SetOptions(path=str(moved / "list.csv"), decode="inline"))
    assert changes(before, list(describe_set(data, moved))) == ""


def test_several_changes_are_one_line(tmp_path: Path) -> None:
    entries = make_set(tmp_path / "set", np.random.default_rng(0))
    before = record(tmp_path / "set", entries)
    del entries[1:6]
    entries[0]["text"] = "other"
    told = changes(before, record(tmp_path / "set", entries))
    assert (
        told
        == "5 files removed (images/1.png, images/2.png, images/3.png, ...), 1 caption changed (images/0.png)"
    )


def test_files_with_the_recorded_size_and_time_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sampled_hash(path)

    monkeypatch.setattr(set_record, "sampled_hash", counted)
    entries = make_set(tmp_path / "set", np.random.default_rng(0))
    before = record(tmp_path / "set", entries)
    assert len(read) == 8
    os.utime(tmp_path / "set" / "images" / "3.png", (1, 1))
    read.clear()
    data = EasyAnimateSet(SetOptions(path=str(tmp_path / "set"), decode="inline"))
    now = list(describe_set(data, (tmp_path / "set").resolve(), before))
    assert read == ["3.png"]
    assert [row.contents for row in now] == [row.contents for row in before]


def test_a_damaged_record(tmp_path: Path) -> None:
    for text in ("[1]\n", '["a", "b", "c"', "\xff"):
        (tmp_path / "set.jsonl").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=r"set\.jsonl.* cannot be read .*; remove it if"):
            list(read_record(tmp_path / "set.jsonl"))
