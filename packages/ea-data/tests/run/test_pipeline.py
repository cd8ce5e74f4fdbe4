from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ea_data.draw.raw import RawScene, draw_picture
from ea_data.records.store import iter_rows
from ea_data.records.tables import read_table
from ea_data.records.timings import read_timings
from ea_data.run.file_records import findings_of_split
from ea_runtime.errors import UserError


def outputs(out: Path) -> dict[str, bytes]:
    """Every file that a set is made of."""
    names = ("records.parquet", "dataset.json", "sources.json", "files.csv")
    files = [*(out / name for name in names), *out.glob("clips/**/*.mp4")]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def raw(tmp_path: Path, draw_video: Callable[..., Path]) -> Path:
    folder = tmp_path / "raw"
    (folder / "more").mkdir(parents=True)
    draw_video(folder / "a.mp4", 48, seed=1)
    draw_video(folder / "more" / "b.mp4", 60, seed=2, size=(64, 96))
    return folder


def test_a_folder_becomes_a_set(raw: Path, tmp_path: Path, run_set: Callable[..., Any]):
    out = tmp_path / "set"
    outcome = run_set(raw, out)
    rows = list(iter_rows(out))
    assert [(row["source"], row["start"], row["end"], row["num_frames"]) for row in rows] == [
        ("a.mp4", 0.0, 1.0, 24),
        ("a.mp4", 1.0, 2.0, 24),
        ("more/b.mp4", 0.0, 1.0, 24),
        ("more/b.mp4", 1.0, 2.0, 24),
    ]
    assert (outcome.found, outcome.clips, dict(outcome.statuses)) == (2, 4, {"ok": 4})
    row = rows[1]
    assert (row["start_pts"], row["end_pts"], row["time_base"]) == (12288, 24576, "1/12288")
    assert list(row["scores"]) == ["light", "change"]  # the cheap one first
    assert row["scores"]["light"]["detail"] == {"frames": 3}
    assert len(row["scores"]["change"]["values"]) == 5
    assert [(one["filter"], one["verdict"], one["minimum"]) for one in row["decisions"]] == [
        ("bright", "kept", 0.0),
        ("moving", "kept", 0.0),
    ]
    assert row["caption"] == {"text": "a.mp4 from 1 s, (1, 24, 32, 3)", "model": "test", "prompt_hash": ""}
    listed = json.loads((out / "dataset.json").read_text())
    assert [entry["text"] for entry in listed] == [row["caption"]["text"] for row in rows]
    assert listed[0] == {
        "file_path": rows[0]["file"],
        "text": "a.mp4 from 0 s, (1, 24, 32, 3)",
        "type": "video",
        "width": 128,
        "height": 96,
        "num_frames": 24,
        "fps": 24.0,
    }
    for entry in listed:
        with av.open(str(out / entry["file_path"])) as container:
            assert sum(1 for _ in container.decode(video=0)) == 24
    assert not (out / ".work").exists()


def test_workers_and_reruns_give_the_same_bytes(raw: Path, tmp_path: Path, run_set: Callable[..., Any]):
    run_set(raw, tmp_path / "one", workers=1)
    run_set(raw, tmp_path / "two", workers=2)
    first = outputs(tmp_path / "one")
    assert len(first) == 8
    assert outputs(tmp_path / "two") == first
    run_set(raw, tmp_path / "one")
    assert outputs(tmp_path / "one") == first


def test_a_new_threshold_computes_nothing(
    raw: Path,
    tmp_path: Path,
    run_set: Callable[..., Any],
    tables: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
):
    calls = tmp_path / "calls"
    monkeypatch.setenv("EA_TEST_CALLS", str(calls))
    out = tmp_path / "set"
    run_set(raw, out)
    assert sorted(set(calls.read_text().split())) == ["caption", "change", "light", "split"]
    values = sorted(row["scores"]["light"]["value"] for row in iter_rows(out))
    calls.write_text("")
    strict = copy.deepcopy(tables)
    strict["filter"][0]["min"] = values[2]
    outcome = run_set(raw, out, strict, command="filter")
    assert calls.read_text() == ""
    assert outcome.statuses == {"ok": 2, "dropped": 2}
    assert outcome.dropped == {"bright": 2}
    assert len(json.loads((out / "dataset.json").read_text())) == 2
    # a whole run ends in what a run from nothing ends in, files included
    run_set(raw, out, strict)
    assert calls.read_text() == ""
    run_set(raw, tmp_path / "fresh", strict)
    assert outputs(out) == outputs(tmp_path / "fresh")


def test_a_drop_ends_the_clip_unless_all_is_scored(
    raw: Path, tmp_path: Path, run_set: Callable[..., Any], tables: dict[str, Any]
):
    tables["filter"][0]["min"] = 1000
    run_set(raw, tmp_path / "set", tables)
    assert [list(row["scores"]) for row in iter_rows(tmp_path / "set")] == [["light"]] * 4
    run_set(raw, tmp_path / "set", tables, score_all=True)
    for row in iter_rows(tmp_path / "set"):
        assert (row["status"], list(row["scores"])) == ("dropped", ["light", "change"])
        assert [one["verdict"] for one in row["decisions"]] == ["dropped", "kept"]
    # the rows are those of the request, whatever else the ledger knows by now
    run_set(raw, tmp_path / "set", tables)
    assert [list(row["scores"]) for row in iter_rows(tmp_path / "set")] == [["light"]] * 4


def test_a_misbehaving_scorer_costs_its_own_clip(
    raw: Path, tmp_path: Path, run_set: Callable[..., Any], draw_video: Callable[..., Path]
):
    for number, name in enumerate(("exit", "hang", "eat", "raise", "nan", "badsplit")):
        draw_video(raw / f"{name}.mp4", 24, seed=10 + number)
    outcome = run_set(raw, tmp_path / "set", workers=2, timeout=5, memory_mb=400)
    errors = {row["source"]: row["error"] for row in iter_rows(tmp_path / "set") if row["status"] == "error"}
    assert errors == {
        "exit.mp4": "change: its process left with exit code 7",
        "hang.mp4": "change: it took longer than 5 s",
        "eat.mp4": "change: it took more than 400 MB",
        "raise.mp4": "change: RuntimeError: no good",
        "nan.mp4": "change: a score must be finite, got nan",
        "badsplit.mp4": "split: its process left with exit code 9",
    }
    assert outcome.statuses == {"ok": 4, "error": 6}
    # what was cheaper than the fault is known, so a filter on it still decides
    row = next(row for row in iter_rows(tmp_path / "set") if row["source"] == "exit.mp4")
    assert list(row["scores"]) == ["light"]
    first = outputs(tmp_path / "set")
    # remembered: the same run again is quick, with the same result
    run_set(raw, tmp_path / "set", workers=1, timeout=5, memory_mb=400)
    assert outputs(tmp_path / "set") == first


def test_errors_are_tried_again_on_request(
    raw: Path, tmp_path: Path, run_set: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    (raw / "a.mp4").rename(raw / "raise.mp4")
    calls = tmp_path / "calls"
    monkeypatch.setenv("EA_TEST_CALLS", str(calls))
    run_set(raw, tmp_path / "set")
    calls.write_text("")
    run_set(raw, tmp_path / "set")
    assert calls.read_text() == ""
    outcome = run_set(raw, tmp_path / "set", retry_errors=True)
    assert calls.read_text().split() == ["change", "change"]
    assert outcome.statuses == {"ok": 2, "error": 2}


def test_transient_errors_are_not_remembered(
    raw: Path, tmp_path: Path, run_set: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    (raw / "a.mp4").rename(raw / "later.mp4")
    outcome = run_set(raw, tmp_path / "set")
    assert outcome.statuses == {"ok": 2, "transient": 2}
    row = next(iter_rows(tmp_path / "set"))
    assert (row["status"], row["error"]) == ("transient", "score: the server is away")
    monkeypatch.setenv("EA_TEST_SERVER", "1")
    assert run_set(raw, tmp_path / "set").statuses == {"ok": 4}


def test_a_filter_over_the_set(
    raw: Path,
    tmp_path: Path,
    run_set: Callable[..., Any],
    tables: dict[str, Any],
    draw_video: Callable[..., Path],
):
    draw_video(raw / "copy.mkv", 48, seed=1)  # the same pictures in another container
    tables["filter"].append({"name": "twin"})
    run_set(raw, tmp_path / "set", tables)
    rows = list(iter_rows(tmp_path / "set"))
    dropped = {row["clip_id"] for row in rows if row["status"] == "dropped"}
    alike = [row for row in rows if row["source"] != "more/b.mp4"]
    pairs = [[row["clip_id"] for row in alike if row["start"] == start] for start in (0, 1)]
    assert [len(pair) for pair in pairs] == [2, 2]
    assert dropped == {max(pair) for pair in pairs}
    assert all(row["decisions"][-1]["filter"] == "twin" for row in rows)


def test_copies_are_found_by_their_contents(raw: Path, tmp_path: Path, run_set: Callable[..., Any]):
    (raw / "z.mp4").write_bytes((raw / "a.mp4").read_bytes())
    outcome = run_set(raw, tmp_path / "set")
    row = [row for row in iter_rows(tmp_path / "set") if row["source"] == "z.mp4"]
    assert [one["decisions"][0]["reason"] for one in row] == ["it has the same contents as a.mp4"]
    assert outcome.dropped == {"source": 1}


def test_captions_from_a_server_are_asked_for_by_threads(
    raw: Path, tmp_path: Path, run_set: Callable[..., Any], tables: dict[str, Any]
):
    run_set(raw, tmp_path / "one")
    texts = [entry["text"] for entry in json.loads((tmp_path / "one" / "dataset.json").read_text())]
    tables["caption"]["name"] = "server"
    run_set(raw, tmp_path / "two", tables)
    listed = json.loads((tmp_path / "two" / "dataset.json").read_text())
    assert [entry["text"] for entry in listed] == texts


def test_stages_alone_add_up_to_a_run(raw: Path, tmp_path: Path, run_set: Callable[..., Any]):
    run_set(raw, tmp_path / "whole")
    out = tmp_path / "set"
    assert run_set(raw, out, command="split").statuses == {"ok": 4}
    assert not (out / "dataset.json").exists()
    row = next(iter_rows(out))
    assert (row["num_frames"], row["scores"]) == (24, {})
    outcome = run_set(raw, out, command="filter")
    assert outcome.statuses == {"error": 4}  # a missing score is an error, never a pass
    assert next(iter_rows(out))["error"] == "score: light, change not computed yet; `ea data score` does"
    outcome = run_set(raw, out, command="score")
    assert (outcome.statuses, outcome.unwritten) == ({"ok": 4}, 4)
    outcome = run_set(raw, out, command="caption")
    assert (outcome.statuses, outcome.unwritten) == ({"ok": 4}, 0)
    assert outputs(out) == outputs(tmp_path / "whole")


def test_a_damaged_or_lost_clip_is_written_again(raw: Path, tmp_path: Path, run_set: Callable[..., Any]):
    out = tmp_path / "set"
    run_set(raw, out)
    first = outputs(out)
    clips = sorted(out.glob("clips/**/*.mp4"))
    clips[0].unlink()
    clips[1].write_bytes(b"cut short")
    (clips[2].parent / ".left.mp4.part").write_bytes(b"by a killed run")
    run_set(raw, out)
    assert outputs(out) == first
    assert not list(out.glob("clips/**/.*"))


def test_a_clip_that_is_damaged_at_its_old_size_is_written_again(
    raw: Path, tmp_path: Path, run_set: Callable[..., Any]
):
    out = tmp_path / "set"
    run_set(raw, out)
    first = outputs(out)
    damaged = sorted(out.glob("clips/**/*.mp4"))[0]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    run_set(raw, out)
    assert outputs(out) == first


def test_each_written_clip_has_its_proof(raw: Path, tmp_path: Path, run_set: Callable[..., Any]):
    run_set(raw, tmp_path / "set")
    rows = list(iter_rows(tmp_path / "set"))
    assert [row["num_written"] for row in rows] == [24] * 4
    assert all(0 < row["luma_error"] < 3 for row in rows)
    assert [row["start_frame"] for row in rows] == [0, 24, 0, 24]


def test_other_limits_where_the_raw_files_have_moved(
    raw: Path, tmp_path: Path, run_set: Callable[..., Any], tables: dict[str, Any]
):
    (raw / "z.mp4").write_bytes((raw / "a.mp4").read_bytes())
    (raw / "broken.mp4").write_text("no video")
    run_set(raw, tmp_path / "set")
    run_set(raw, tmp_path / "twin")
    values = sorted(row["scores"]["light"]["value"] for row in iter_rows(tmp_path / "set") if row["scores"])
    tables["filter"][0]["min"] = values[2]
    expected = run_set(raw, tmp_path / "twin", tables, command="filter")
    raw.rename(tmp_path / "elsewhere")
    assert run_set(raw, tmp_path / "set", tables, command="filter") == expected
    assert outputs(tmp_path / "set") == outputs(tmp_path / "twin")
    tables["filter"][0]["min"] = 0.0  # and back again
    assert run_set(raw, tmp_path / "set", tables, command="filter").statuses["ok"] == 4


def test_empty_captions_are_counted(
    raw: Path, tmp_path: Path, run_set: Callable[..., Any], tables: dict[str, Any]
):
    assert run_set(raw, tmp_path / "one").empty == 0
    del tables["caption"]
    assert run_set(raw, tmp_path / "two", tables).empty == 4


@pytest.mark.parametrize("where", ["scratch", "ledger", "clip"])
def test_a_full_disk_is_one_line(
    where: str, raw: Path, tmp_path: Path, run_set: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    import errno

    from ea_data.records.ledger import Ledger
    from ea_data.run.engine import LocalEngine
    from ea_data.run.scratch import Scratch
    from ea_data.run.worker import TaskResult

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "scratch":
        real = Scratch.__init__

        def small(scratch: Scratch, folder: Path) -> None:
            real(scratch, folder)
            scratch.database.execute("PRAGMA max_page_count=1")  # SQLite's own error, at the next page

        put = Scratch.put
        monkeypatch.setattr(Scratch, "__init__", small)
        monkeypatch.setattr(Scratch, "put", lambda scratch, *key: put(scratch, *key[:2], "x" * 100_000))
    elif where == "ledger":
        monkeypatch.setattr(Ledger, "flush", full)
    else:
        run_tasks = LocalEngine.run

        def run(engine: LocalEngine, tasks: Any) -> Any:
            for task, result in run_tasks(engine, tasks):
                yield task, TaskResult([], f"[Errno 28] {os.strerror(28)}") if task.stage == "cut" else result

        monkeypatch.setattr(LocalEngine, "run", run)
    with pytest.raises(UserError, match=r"the disk of `--output` .*set' is full; free some space") as error:
        run_set(raw, tmp_path / "set", workers=1)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    assert run_set(raw, tmp_path / "set").statuses == {"ok": 4}


def test_a_full_disk_while_ffmpeg_writes_is_no_fault_of_the_clip():
    import errno

    from ea_data.children.supervisor import is_transient
    from ea_data.media.probe import file_errors

    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(OSError) as error, file_errors():
            av.error.err_check(-number)
        assert is_transient(error.value)
        assert type(error.value) is OSError


def test_a_folder_without_video(tmp_path: Path, run_set: Callable[..., Any]):
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(UserError, match="holds no video, it is empty"):
        run_set(raw, tmp_path / "set")
    (raw / "notes.txt").write_text("x")
    (raw / "film.mp4.part").write_text("x")
    with pytest.raises(UserError, match="no video or picture by its name 1, not fully downloaded 1"):
        run_set(raw, tmp_path / "set")


def test_pictures_on_request(raw: Path, tmp_path: Path, run_set: Callable[..., Any], tables: dict[str, Any]):
    """By the profile `offline`'s components: a picture is judged by all but its length and motion."""
    from PIL import Image

    picture = draw_picture(RawScene((1, 0, 0), 1, 0.0, "left", 1, "scenes"), 180, 320, 320)
    turned = Image.fromarray(np.rot90(picture))
    marks = Image.Exif()
    marks[0x0112] = 6  # as phones mark an upright picture
    turned.save(raw / "p.png", exif=marks)
    Image.fromarray(picture).resize((240, 135)).save(raw / "smaller.webp")
    Image.fromarray(picture // 12).save(raw / "dark.bmp")
    outcome = run_set(raw, tmp_path / "set")
    assert (outcome.found, outcome.skipped) == (2, {"picture": 3})
    tables["source"] = {"pictures": True}
    tables["split"] = {"name": "whole"}
    tables["score"] = [{"name": name} for name in ("probe", "dis", "duplicates", "technical")]
    tables["filter"] = [{"name": name} for name in ("duration", "size", "technical", "motion", "duplicate")]
    tables["filter"][1]["min_side"] = 32
    tables["filter"].append({"name": "threshold", "score": "dis", "min": 0.0})
    outcome = run_set(raw, tmp_path / "set", tables)
    rows = {row["source"]: row for row in iter_rows(tmp_path / "set")}
    assert {name: row["status"] for name, row in rows.items() if row["is_picture"]} == {
        "p.png": "ok",
        "smaller.webp": "dropped",
        "dark.bmp": "dropped",
    }
    assert outcome.dropped["technical"] >= 1
    kept_id = rows["p.png"]["clip_id"]
    assert rows["smaller.webp"]["decisions"][-1]["reason"] == f"shows the same as p.png (clip {kept_id})"
    assert list(rows["p.png"]["scores"]) == ["probe", "duplicates", "technical"]
    assert [one["filter"] for one in rows["p.png"]["decisions"]] == ["size", "technical", "duplicate"]
    assert rows["more/b.mp4"]["decisions"][0]["filter"] == "duration"
    (entry,) = [
        e for e in json.loads((tmp_path / "set" / "dataset.json").read_text()) if e["type"] == "image"
    ]
    assert (entry["width"], entry["height"], entry["num_frames"]) == (320, 180, 1)
    with Image.open(tmp_path / "set" / entry["file_path"]) as written:
        assert written.size == (320, 180)


def test_every_raw_file_has_a_row(
    raw: Path, tmp_path: Path, run_set: Callable[..., Any], tables: dict[str, Any]
) -> None:
    """Also where RAW has moved since."""
    (raw / "more" / "twin.mp4").write_bytes((raw / "a.mp4").read_bytes())
    (raw / "broken.mp4").write_bytes(b"no video")
    (raw / ".hidden.mp4").touch()
    (raw / "notes.txt").touch()
    (raw / "film.mp4.part").touch()
    out = tmp_path / "set"

    def fates() -> dict[str, tuple[str, str]]:
        return {row["source"]: (row["status"], row["reason"]) for row in read_table(out / "files.csv")}

    run_set(raw, out)
    first = (out / "files.csv").read_bytes()
    assert fates() == {
        "a.mp4": ("kept", ""),
        "broken.mp4": ("error", "source: it cannot be read: Invalid data found when processing input"),
        "more/b.mp4": ("kept", ""),
        "more/twin.mp4": ("duplicate", "it has the same contents as a.mp4"),
        ".hidden.mp4": ("skipped", "hidden"),
        "film.mp4.part": ("skipped", "not fully downloaded"),
        "notes.txt": ("skipped", "no video or picture by its name"),
    }
    raw.rename(tmp_path / "elsewhere")
    run_set(raw, out, command="filter")
    assert (out / "files.csv").read_bytes() == first
    tables["filter"][0]["min"] = 1000
    run_set(raw, out, tables, command="filter")
    assert fates()["a.mp4"][0] == "dropped"
    assert len(fates()) == 7


def test_the_rate_of_the_list_is_that_of_the_files(
    raw: Path, tmp_path: Path, run_set: Callable[..., Any], tables: dict[str, Any]
) -> None:
    tables["clips"] = {"fps": 12.0}
    run_set(raw, tmp_path / "set", tables)
    for entry in json.loads((tmp_path / "set" / "dataset.json").read_text()):
        with av.open(str(tmp_path / "set" / entry["file_path"])) as container:
            rate = container.streams.video[0].average_rate
            assert (entry["fps"], entry["num_frames"]) == (rate, 12) == (12.0, 12)


def test_what_each_stage_costs(raw: Path, tmp_path: Path, run_set: Callable[..., Any]) -> None:
    """It is counted once, in a file apart from those that are the same after every run."""
    out = tmp_path / "set"
    run_set(raw, out, command="split")
    assert set(read_timings(out)) == {"probe", "split"}
    run_set(raw, out)
    first = read_timings(out)
    assert list(first) == ["probe", "split", "decode", "light", "change", "caption", "cut"]
    assert first["cut"] > 0
    run_set(raw, out)
    assert read_timings(out) == first
    (out / "timings.json").write_text("[" * 1000)
    run_set(raw, out)
    assert read_timings(out) == {}


def test_what_a_split_tells_is_in_the_records(
    raw: Path, tmp_path: Path, run_set: Callable[..., Any], tables: dict[str, Any]
) -> None:
    """Of the file in every row, its lists in the first; an entry of an older version has none."""
    tables["split"] = {"name": "telling"}
    run_set(raw, tmp_path / "set", tables)
    rows = list(iter_rows(tmp_path / "set"))
    assert [(row["num_cuts"], row["longest_scene"], row["file_seconds"]) for row in rows] == [
        *[(1, 1.5, 2.0)] * 2,
        *[(1, 1.5, 2.5)] * 2,
    ]
    assert [row["cuts"] for row in rows] == [
        [{"start": 1.0, "end": 1.25}],
        [],
        [{"start": 1.0, "end": 1.25}],
        [],
    ]
    assert rows[0]["lost"] == [{"start": 1.0, "end": 1.5, "reason": "transition"}]
    told = next(read_table(tmp_path / "set" / "files.csv"))
    assert (told["cut_times"], told["lost"], told["seconds_lost"]) == (
        "1.00-1.25",
        "1.00-1.50 transition",
        "0.500",
    )
    assert findings_of_split({"clips": [], "reason": ""}) == {
        "num_cuts": 0,
        "longest_scene": 0.0,
        "cuts": [],
        "lost": [],
    }
