from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from ea_data.records.ledger import Ledger, fingerprint
from ea_runtime.errors import UserError


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
    ledger.close()
    with Ledger(tmp_path) as again:
        assert again.get("a") == {("s", "v"): 1}
        assert again.get("b") == {("s", "v"): 2}


def test_fingerprints_depend_on_values_and_not_on_order():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


def test_an_index_on_a_full_disk_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ea_data.records import ledger
    from ea_data.records.full_disk import told_if_full

    schema = ledger._SCHEMA + "CREATE TABLE filler (x); INSERT INTO filler VALUES (zeroblob(1000000));"
    monkeypatch.setattr(ledger, "_SCHEMA", "PRAGMA max_page_count=8;" + schema)
    with pytest.raises(UserError, match=r"the disk .* is full; free some space"), told_if_full(tmp_path):
        Ledger(tmp_path / "ledger")
