"""Tensors by key in shards: found again, complete or absent, read through memory maps."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ea_runtime.errors import UserError
from ea_runtime.training.latents.store import KEY, Store, Writer, remake_index

KILLS = 50 if os.environ.get("EA_FULL") else 3


def keys(numbers: list[tuple[int, int]]) -> np.ndarray:
    return np.array(numbers, dtype=KEY)


def test_what_was_added_is_found(tmp_path: Path) -> None:
    """Entries of several shapes and lengths in several shards, with keys that share a half; other keys are not
    found."""
    rng = np.random.default_rng(0)
    numbers = [
        (int(high), int(low)) for high in rng.integers(0, 1 << 63, 20) for low in rng.integers(0, 1 << 63, 5)
    ]
    entries = {
        key: torch.randn(
            *((1, 4, 3) if i % 3 else (1 + i % 7, 8)), dtype=torch.bfloat16 if i % 2 else torch.float32
        )
        for i, key in enumerate(numbers)
    }
    assert len(Store(tmp_path / "none")) == 0
    assert Store(tmp_path / "none").find(keys(numbers)).tolist() == [-1] * 100
    for kind in (torch.float32, torch.bfloat16):  # a shard holds one type
        with Writer(tmp_path / "store", shard_bytes=1000) as writer:
            for key, entry in entries.items():
                if entry.dtype == kind:
                    writer.add(key, entry)
    assert len(list((tmp_path / "store").glob("shard-*"))) > 2
    for indexed in (False, True):
        if indexed:
            remake_index(tmp_path / "store")
        store = Store(tmp_path / "store")
        for one in (store, pickle.loads(pickle.dumps(store))):
            places = one.find(keys(numbers))
            for key, place in zip(numbers, places, strict=True):
                assert torch.equal(one.get(int(place)), entries[key])
        assert store.find(keys([(1, 2), (numbers[0][0], 3), (0, 0), ((1 << 64) - 1, 0)])).tolist() == [-1] * 4


def test_an_index_of_other_shards_is_not_believed(tmp_path: Path) -> None:
    for number in range(2):
        with Writer(tmp_path) as writer:
            writer.add((number, 0), torch.ones(1, 2))
        if number == 0:
            remake_index(tmp_path)
    assert (Store(tmp_path).find(keys([(0, 0), (1, 0)])) >= 0).all()


def test_reading_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    def anonymous() -> int:
        text = Path("/proc/self/status").read_text()
        return int(text.split("RssAnon:")[1].split()[0]) << 10

    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here")
    with Writer(tmp_path) as writer:
        for number in range(64):
            writer.add((number, number), torch.randn(1, 1 << 18))  # 1 MiB
    store = Store(tmp_path)
    before = anonymous()
    total = sum(float(store.get(place).sum()) for place in range(64))
    assert np.isfinite(total)
    assert anonymous() - before < 8 << 20


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ea_runtime.training.latents.store.OPEN_SHARDS", 2)
    for number in range(5):
        with Writer(tmp_path) as writer:
            writer.add((number, 0), torch.full((1, 2), float(number)))
    store = Store(tmp_path)
    for number in (0, 4, 2, 0, 3):
        assert store.get(int(store.find(keys([(number, 0)]))[0])).tolist() == [[number, number]]
        assert len(store._open) <= 2


_CHILD = """
import sys, torch
from pathlib import Path
from ea_runtime.training.latents.store import Writer
with Writer(Path(sys.argv[1]), shard_bytes=20_000) as writer:
    print("ready", flush=True)
    for number in range(1_000_000):
        writer.add((number, number * 7), torch.full((1, 100), float(number)))
"""


def test_killed_at_any_time(tmp_path: Path) -> None:
    """A killed writer leaves a prefix of what it wrote, with every entry intact; the next writer appends to it."""
    rng = np.random.default_rng(1)
    done = 0
    for _ in range(KILLS):
        words = [sys.executable, "-c", _CHILD, str(tmp_path)]
        child = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(float(rng.uniform(0.02, 0.3)))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        store = Store(tmp_path)
        wanted = keys([(number, number * 7) for number in range(2000)])
        places = store.find(wanted)
        count = int((places >= 0).sum())
        assert (places[:count] >= 0).all(), "no gap"
        for number in range(0, count, 37):
            assert store.get(int(places[number]))[0, 0] == number
        done = max(done, count)
    assert done > 0
    with Writer(tmp_path) as writer:
        writer.add((5_000_000, 0), torch.zeros(1, 100))
    assert not list(tmp_path.glob(".*.part"))
    assert Store(tmp_path).find(keys([(5_000_000, 0)]))[0] >= 0


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ea_runtime.training.latents.store.save_file", full)
    writer = Writer(tmp_path / "store")
    writer.add((1, 1), torch.zeros(1, 2))
    with pytest.raises(UserError, match=r"the cache .* cannot be written: .*No space left.*; make room or"):
        writer.flush()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        Writer(tmp_path / "file" / "store")
