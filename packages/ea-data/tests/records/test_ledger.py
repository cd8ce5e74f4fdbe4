from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from ea_data.records import ledger as module
from ea_data.records.ledger import Ledger, fingerprint
from ea_runtime.errors import UserError


def line_of(item: str, value: str = "1") -> bytes:
    """The line of an entry, as a segment has it."""
    body = f'["{item}","s","v",{value}]'.encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def calls_of(monkeypatch: pytest.MonkeyPatch, place: object, name: str) -> list[object]:
    """First arguments of the calls of a function, which works as before."""
    seen: list[object] = []
    real: Callable[..., object] = getattr(place, name)
    monkeypatch.setattr(
        place, name, lambda one, *more, **named: (seen.append(one), real(one, *more, **named))[1]
    )
    return seen


def test_entries_come_back_in_the_same_run_and_in_the_next(tmp_path: Path):
    with Ledger(tmp_path) as ledger:
        ledger.put("a", "score:dis", "v1", {"value": 0.1, "values": (1.0, 2.0)})
        assert ledger.get("a") == {("score:dis", "v1"): {"value": 0.1, "values": [1.0, 2.0]}}
        ledger.flush()
        ledger.put("a", "score:dis", "v2", 1)
        ledger.put("b", "probe", "v1", None)
        assert len(ledger.get("a")) == 2
    with Ledger(tmp_path) as ledger:
        assert ledger.get("a") == {
            ("score:dis", "v1"): {"value": 0.1, "values": [1.0, 2.0]},
            ("score:dis", "v2"): 1,
        }
        assert ledger.get("nobody") == {}
        assert len(ledger) == 3


def test_a_later_entry_replaces_an_earlier_one(tmp_path: Path):
    for value in (1, 2, 3):
        with Ledger(tmp_path) as ledger:
            ledger.put("a", "s", "v", value)
            assert ledger.get("a") == {("s", "v"): value}
    with Ledger(tmp_path) as ledger:
        assert len(ledger) == 1


def test_segments_are_sealed_when_full(tmp_path: Path):
    with Ledger(tmp_path, segment_bytes=2000) as ledger:
        for number in range(100):
            ledger.put(f"clip {number}", "s", "v", "x" * 50)
            ledger.flush()
        assert all(ledger.get(f"clip {number}") for number in range(100))
    assert len(list(tmp_path.glob("*.jsonl"))) > 3
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("seed", range(8))
def test_a_torn_tail_is_cut_off(tmp_path: Path, seed: int):
    with Ledger(tmp_path) as ledger:
        for number in range(50):
            ledger.put(str(number), "s", "v", {"text": "é" * number})
    segment = tmp_path / "00000001.jsonl"
    whole = segment.read_bytes()
    cut = random.Random(seed).randrange(1, len(whole))
    # as a killed process leaves it: the name of an open segment, half a line at its end, an index that is behind
    segment.write_bytes(whole[:cut])
    segment.rename(tmp_path / "00000001.part")
    (tmp_path / "index.sqlite").unlink()
    complete = whole[:cut].count(b"\n")
    with Ledger(tmp_path) as ledger:
        assert len(ledger) == complete
        assert [bool(ledger.get(str(number))) for number in range(50)] == [n < complete for n in range(50)]
        ledger.put("49", "s", "v", "again")
    with Ledger(tmp_path) as ledger:
        assert ledger.get("49") == {("s", "v"): "again"}


def test_the_index_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with Ledger(tmp_path) as ledger:
        ledger.put("a", "s", "v", 1)
    for damage in (b"", b"no database at all" * 100):
        (tmp_path / "index.sqlite").write_bytes(damage)
        with Ledger(tmp_path) as ledger:
            assert ledger.get("a") == {("s", "v"): 1}


def test_a_damaged_line_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with Ledger(tmp_path) as ledger:
        for name in "abc":
            ledger.put(name, "s", "v", "value")
    segment = tmp_path / "00000001.jsonl"
    data = bytearray(segment.read_bytes())
    data[data.index(b'"b"') + 1] ^= 1
    segment.write_bytes(data)
    with Ledger(tmp_path) as ledger:
        assert [bool(ledger.get(name)) for name in "abc"] == [True, False, True]
    assert "damaged" in caplog.text


def test_one_run_at_a_time(tmp_path: Path):
    with Ledger(tmp_path / "ledger"), pytest.raises(UserError, match="another run"):
        Ledger(tmp_path / "ledger")


def test_numbers_must_be_finite(tmp_path: Path):
    with Ledger(tmp_path) as ledger, pytest.raises(ValueError, match="Out of range"):
        ledger.put("a", "s", "v", float("nan"))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger = Ledger(tmp_path)
    ledger.put("a", "s", "v", 1)
    ledger.flush()
    ledger.put("b", "s", "v", 2)

    def no_space(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            ledger.flush()
    assert (tmp_path / "00000001.part").read_bytes() == line_of("a", "1")
    ledger.close()
    with Ledger(tmp_path) as again:
        assert again.get("a") == {("s", "v"): 1}
        assert again.get("b") == {("s", "v"): 2}


def test_fingerprints_depend_on_values_and_not_on_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


def test_an_index_on_a_full_disk_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ea_data.records.full_disk import told_if_full

    schema = module._SCHEMA + "CREATE TABLE filler (x); INSERT INTO filler VALUES (zeroblob(1000000));"
    monkeypatch.setattr(module, "_SCHEMA", "PRAGMA max_page_count=8;" + schema)
    with pytest.raises(UserError, match=r"the disk .* is full; free some space"), told_if_full(tmp_path):
        Ledger(tmp_path / "ledger")


def test_fingerprints_are_the_same_everywhere():
    assert fingerprint({"b": 2, "a": "é"}, 1) == "f541760690083312"
    assert len(fingerprint()) == 16


# -- what is on disk, and when


def test_entries_are_on_disk_after_a_second_or_512(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    part = tmp_path / "00000001.part"
    with Ledger(tmp_path) as ledger:

        def lines() -> int:
            ledger.put("a", "s", "v", {"a": [1, 2]})
            return part.read_bytes().count(b"\n") if part.exists() else 0

        assert [lines() for _ in range(511)] == [0] * 511
        assert lines() == 512
        assert not ledger._pending
        now = 101.0  # a second after the last time is not yet late
        assert lines() == 512
        now = 101.01
        assert lines() == 514
        assert lines() == 514
        assert len(ledger) == 1  # which also puts all on disk
        assert part.read_bytes() == line_of("a", '{"a":[1,2]}') * 515
        assert ledger._segment_bytes == 64 << 20


def test_a_segment_is_full_with_its_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "not" / "there"
    synced = calls_of(monkeypatch, module, "sync_path")
    with Ledger(folder, segment_bytes=2 * len(line_of("a"))) as ledger:
        for item in "abcde":
            ledger.put(item, "s", "v", 1)
            ledger.flush()
        assert sorted(path.name for path in folder.glob("0*")) == [
            "00000001.jsonl",
            "00000002.jsonl",
            "00000003.part",
        ]
        # sealed ones and the open one
        assert [ledger.get(item) for item in "eabcd"] == [{("s", "v"): 1}] * 5
        assert synced == [folder] * 2  # their names last
        ledger.put("f", "s", "v", 1)
        ledger.flush()
        assert ledger.get("f")
        assert [path.suffix for path in sorted(folder.glob("0*"))] == [".jsonl"] * 3


def test_files_are_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    files = psutil.Process().num_fds if hasattr(psutil.Process, "num_fds") else lambda: 0
    before = files()
    with Ledger(tmp_path, segment_bytes=1) as ledger:
        started = files()
        for number in range(70):
            ledger.put(str(number), "s", "v", number)
            ledger.flush()
        for _ in range(2):
            assert all(ledger.get(str(number)) == {("s", "v"): number} for number in range(70))
            assert len(ledger._readers) == 64
            assert files() <= started + 64
    assert files() == before
    ledger.close()
    assert caplog.text == ""


def test_the_index_is_one_that_survives_a_kill(tmp_path: Path):
    with Ledger(tmp_path) as ledger:
        ledger.put("\udcff", "s", "v", 1)
        ledger.flush()
        assert ledger.get("\udcff") == {("s", "v"): 1}
        asked = (
            "PRAGMA journal_mode",
            "PRAGMA synchronous",
            "PRAGMA cache_size",
            "SELECT length(item) FROM entries",
        )
        found = [ledger._index.execute(one).fetchone()[0] for one in asked]
        assert found == ["wal", 1, -32768, 16]


# -- folders that cannot be used, and what other hands or a power failure left


def test_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"'.*file' cannot be written: "):
        Ledger(tmp_path / "file")
    with Ledger(tmp_path / "a") as ledger:
        assert ledger._lock.timeout == 0  # nobody waits for another run
    monkeypatch.setattr(module, "_SCHEMA", "no SQL")
    with pytest.raises(UserError, match=r"index\.sqlite' cannot be used: .*; remove it and run again"):
        Ledger(tmp_path / "b")


def test_a_damaged_index_goes_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The log of another database would be played back into the new one."""
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"index.sqlite{suffix}").write_bytes(b"no database at all" * 100)
    removed = calls_of(monkeypatch, module.Path, "unlink")
    with Ledger(tmp_path):
        pass
    assert [str(one).rpartition("index.sqlite")[2] for one in removed] == ["", "-wal", "-shm"]


def test_the_index_is_not_made_again_without_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for item in "abc":
        with Ledger(tmp_path) as ledger:
            ledger.put(item, "s", "v", 1)
    (tmp_path / ".other").touch()
    made = calls_of(monkeypatch, Ledger, "_index_segment")
    with Ledger(tmp_path) as ledger:
        assert len(ledger) == 3
    assert made == []
    # one that somebody removed: its entries are gone, the others are found again, once
    (tmp_path / "00000002.jsonl").unlink()
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            assert [bool(ledger.get(item)) for item in "abc"] == [True, False, True]
    assert len(made) == 2


def test_an_index_that_is_behind_catches_up(tmp_path: Path):
    with Ledger(tmp_path) as ledger:
        ledger.put("0", "s", "v", 1)
    with (tmp_path / "00000001.jsonl").open("ab") as file:
        file.writelines(line_of(str(number)) for number in range(1, 10_002))
    with Ledger(tmp_path) as ledger:
        assert len(ledger) == 10_002
        assert all(ledger.get(item) == {("s", "v"): 1} for item in ("0", "1", "9999", "10001"))


def test_an_open_segment_is_cut_before_its_first_damaged_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced = calls_of(monkeypatch, os, "fsync")
    folders = calls_of(monkeypatch, module, "sync_path")
    a, b, c = (line_of(item) for item in "abc")
    for content, kept in (
        (a + b[:-2] + c, a),
        (a + b + c[:-1], a + b),
        (b[1:], b""),
        (a + b"00000000 \n" + b, a),
        (a + b, a + b),
    ):
        (tmp_path / "00000007.part").write_bytes(content)
        synced.clear()
        folders.clear()
        with Ledger(tmp_path) as ledger:
            assert len(ledger) == kept.count(b"\n")
            assert folders == [tmp_path]
            assert len(synced) == 1 + (content != kept)
        (path,) = tmp_path.glob("0*")
        assert (path.name, path.read_bytes()) == ("00000007.jsonl", kept)
        path.unlink()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"00000000 \n",
        b"00000000\n",
        line_of("a")[:-1],
        b"0" + line_of("a"),
        line_of("a")[:9] + b"[]\n",
    ],
)
def test_lines_that_are_not_whole(line: bytes):
    assert module._parse(line) is None
    assert module._parse(line_of("a")) == ["a", "s", "v", 1]
