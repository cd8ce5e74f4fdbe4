"""Captions that are edited in a table, and what stays of them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ea_data.records.store import iter_rows
from ea_data.records.tables import cell_text, safe_cell
from ea_data.run.caption_list import read
from ea_data.run.edits import export_captions, import_captions, reset_captions
from ea_runtime.cli.main import run as ea
from ea_runtime.errors import UserError

RunSet = Callable[..., Any]
TEXTS = ["=1+1", 'a, "b"; c | d', "'tis ümlaut 红", "- @home"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the set that `made` hands out."""
    return tmp_path_factory.mktemp("original")


@pytest.fixture
def made(original: Path, tmp_path: Path, draw_video: Callable[..., Path], run_set: RunSet) -> Path:
    """A set of four clips of two files, made from tmp_path / "raw": made once, then copied with its raw files."""
    raw = original / "raw"
    if not raw.exists():
        raw.mkdir()
        draw_video(raw / "=a.mp4", 48, seed=1)
        draw_video(raw / "b.mp4", 48, seed=2)
        run_set(raw, original / "set")
    for name in ("raw", "set"):
        shutil.copytree(original / name, tmp_path / name)
    return tmp_path / "set"


def export(folder: Path, name: str = "captions.csv") -> tuple[Path, list[dict[str, str]]]:
    path = folder.parent / name
    export_captions(folder, path, overwrite=True)
    assert path.read_bytes().startswith(b"\xef\xbb\xbfclip_id,file,source,start,end,text\n")
    with path.open(encoding="utf-8-sig", newline="") as file:
        return path, list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]], encoding: str = "utf-8-sig", **form: Any) -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        out = csv.DictWriter(file, list(rows[0]), **form)
        out.writeheader()
        out.writerows(rows)
    return path


def texts(folder: Path) -> list[str]:
    """The captions of a set, the same in its two files."""
    listed = [entry["text"] for entry in json.loads((folder / "dataset.json").read_text(encoding="utf-8"))]
    rows = [row for row in iter_rows(folder) if row["file"]]
    assert [row["caption"]["text"] for row in rows] == listed
    return listed


def test_edits_stay(made: Path, tmp_path: Path, run_set: RunSet, capsys: pytest.CaptureFixture[str]) -> None:
    before = (made / "records.parquet").read_bytes(), (made / "dataset.json").read_bytes()
    path, rows = export(made)
    assert [row["source"] for row in rows] == ["'=a.mp4", "'=a.mp4", "b.mp4", "b.mp4"]
    assert import_captions(made, read(path)).changed == 0
    assert ((made / "records.parquet").read_bytes(), (made / "dataset.json").read_bytes()) == before
    written = {name.name: name.stat().st_mtime_ns for name in made.glob("clips/*/*")}
    for row, text in zip(rows, TEXTS, strict=True):
        row["text"] = text
    rows[3]["text"] = ""
    found = import_captions(made, read(write(path, rows)))
    assert (found.changed, found.empty) == (4, 1)
    expected = [*TEXTS[:3], ""]
    assert texts(made) == expected
    assert {row["caption"]["model"] for row in iter_rows(made)} == {"edited"}
    after = (made / "records.parquet").read_bytes(), (made / "dataset.json").read_bytes()
    for command in ("run", "caption", "filter", "score"):
        run_set(tmp_path / "raw", made, command=command)
        assert ((made / "records.parquet").read_bytes(), (made / "dataset.json").read_bytes()) == after
    assert {name.name: name.stat().st_mtime_ns for name in made.glob("clips/*/*")} == written
    # a second round trip, with the words that spreadsheets would run
    path, rows = export(made)
    assert [row["text"] for row in rows] == ["'=1+1", TEXTS[1], "''tis ümlaut 红", ""]
    assert import_captions(made, read(path)).changed == 0
    # without RAW
    shutil.move(tmp_path / "raw", tmp_path / "moved")
    run_set(tmp_path / "raw", made, command="filter")
    assert texts(made) == expected
    shutil.move(tmp_path / "moved", tmp_path / "raw")
    assert reset_captions(made) == 4
    run_set(tmp_path / "raw", made, command="caption")
    assert ((made / "records.parquet").read_bytes(), (made / "dataset.json").read_bytes()) == before


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_habits_of_spreadsheets(separator: str, encoding: str, made: Path) -> None:
    """Other separators, line ends of Windows, quoted line breaks, empty columns and rows, numbers rewritten."""
    path, rows = export(made)
    for row, text in zip(rows, TEXTS, strict=True):
        row |= {"text": f"{text}\r\nand more", "start": "0,5", "": "", " ": ""}
    write(path, rows, encoding, delimiter=separator, lineterminator="\r\n")
    text = path.read_bytes().decode(encoding)
    path.write_bytes((text + separator * 9 + "\r\n\r\n").encode(encoding))
    found = import_captions(made, read(path))
    assert (found.changed, found.unlisted, found.empty) == (4, 0, 0)
    assert texts(made) == [f"{text} and more" for text in TEXTS]


def test_a_part_of_the_clips(made: Path, tmp_path: Path, run_set: RunSet, tables: dict[str, Any]) -> None:
    values = sorted((row["scores"]["light"]["value"], row["clip_id"]) for row in iter_rows(made))
    path, rows = export(made)
    before = texts(made)
    for row in rows:
        row["text"] = f"new {row['clip_id']}"
    tables["filter"][0]["min"] = values[2][0]
    run_set(tmp_path / "raw", made, tables)
    _, left = export(made, "left.csv")
    assert len(left) == 2
    found = import_captions(made, read(write(path, rows[:3])))
    assert (found.changed, found.dropped) == (3, 1 + found.unlisted)
    # the words of dropped clips come with them
    tables["filter"][0]["min"] = 0.0
    run_set(tmp_path / "raw", made, tables)
    assert texts(made) == [*(row["text"] for row in rows[:3]), before[3]]


def test_a_clip_whose_captioner_failed(
    tmp_path: Path, draw_video: Callable[..., Path], run_set: RunSet, tables: dict[str, Any]
) -> None:
    (tmp_path / "raw").mkdir()
    draw_video(tmp_path / "raw" / "a.mp4", 24)
    tables["caption"] = {"name": "folder"}
    outcome = run_set(tmp_path / "raw", tmp_path / "set", tables)
    assert outcome.statuses == {"error": 1}
    path, rows = export(tmp_path / "set")
    assert [row["text"] for row in rows] == [""]
    rows[0]["text"] = "by hand"
    found = import_captions(tmp_path / "set", read(write(path, rows)))
    assert (found.changed, found.to_write) == (1, 1)
    run_set(tmp_path / "raw", tmp_path / "set", tables, command="caption")
    assert texts(tmp_path / "set") == ["by hand"]


def test_a_profile_without_captioner(
    tmp_path: Path, draw_video: Callable[..., Path], run_set: RunSet, tables: dict[str, Any]
) -> None:
    (tmp_path / "raw").mkdir()
    draw_video(tmp_path / "raw" / "a.mp4", 24)
    del tables["caption"]
    run_set(tmp_path / "raw", tmp_path / "set", tables)
    path, rows = export(tmp_path / "set")
    rows[0]["text"] = "by hand"
    assert import_captions(tmp_path / "set", read(write(path, rows))).changed == 1
    run_set(tmp_path / "raw", tmp_path / "set", tables)
    assert texts(tmp_path / "set") == ["by hand"]


def test_what_is_refused_changes_nothing(made: Path) -> None:
    path, rows = export(made)
    before = (made / "records.parquet").read_bytes()
    for row in rows:
        row["text"] = "new"
    wrong = {
        r"line 3.*'0000' is no clip.*1 of 4 rows are of none.*--skip-unknown": [
            rows[0],
            rows[1] | {"clip_id": "0000"},
            *rows[2:],
        ],
        r"line 4.*source 'b.mp4'|line 4.*names the source '=a.mp4'": [
            *rows[:2],
            rows[2] | {"source": "'=a.mp4"},
        ],
        r"line 3: is about the clip of .*line 2": [rows[0], rows[0] | {"text": "another"}],
        r"line 2: `clip_id` is missing": [rows[0] | {"clip_id": " "}],
    }
    for message, lines in wrong.items():
        with pytest.raises(UserError, match=message) as caught:
            import_captions(made, read(write(path, lines)))
        assert "\n" not in str(caught.value)
    found = import_captions(
        made, read(write(path, [rows[0], rows[0], rows[1] | {"clip_id": "0"}])), skip_unknown=True
    )
    assert (found.changed, found.skipped, found.unlisted) == (1, 1, 3)
    assert (made / "records.parquet").read_bytes() != before


CASE = (Path(__file__).parents[5] / "shared" / "cases" / "data" / "caption_later" / "a.mp4").resolve()


@pytest.mark.parametrize("source", ["drawn", "from the field"])
@pytest.mark.parametrize("command", ["run", "caption"])
def test_words_that_are_written_later(
    source: str,
    command: str,
    tmp_path: Path,
    draw_video: Callable[..., Path],
    run_set: RunSet,
    tables: dict[str, Any],
) -> None:
    """A caption file that appears, changes and goes, next to a video that stays (as in SimpleTuner 1635)."""
    raw, out = tmp_path / "raw", tmp_path / "set"
    raw.mkdir()
    if source == "drawn":
        draw_video(raw / "a.mp4", 48)
    elif not CASE.is_file():
        pytest.skip("the cases from the field are not next to the checkout")
    else:
        shutil.copy(CASE, raw)
    tables["caption"] = {"name": "folder", "missing_text": "empty"}
    run_set(raw, out, tables)
    first = texts(out)
    assert set(first) == {""}
    for words in ("a red ball", "a red box!", "a red ball", "a red ball.", None):
        if words is None:
            (raw / "a.txt").unlink()
        else:
            (raw / "a.txt").write_text(words)
            os.utime(raw / "a.txt", (1, 1))  # of the same age, and once of the same size
        run_set(raw, out, tables, command=command)
        assert texts(out) == [words or ""] * len(first)
    tables["caption"] = {"name": "folder"}
    assert run_set(raw, out, tables).statuses["error"] == len(first)
    (raw / "a.txt").write_text("at last")
    run_set(raw, out, tables, command="filter")  # which reads no words
    run_set(raw, out, tables, command=command)
    assert texts(out) == ["at last"] * len(first)
    # an edited caption wins until it is removed
    path, rows = export(out)
    rows[0]["text"] = "by hand"
    import_captions(out, read(write(path, rows)))
    (raw / "a.txt").write_text("later still")
    run_set(raw, out, tables, command=command)
    assert texts(out) == ["by hand", *["later still"] * (len(first) - 1)]


#: An import that is killed when it renames a file for the nth time (the ledger's segment, the records, the list).
_KILLED = """
import os, signal, sys
from pathlib import Path
from ea_data.run.caption_list import read
from ea_data.run.edits import import_captions
left = int(sys.argv[3])
def dies(inner):
    def replace(*places, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return inner(*places, **options)
    return replace
os.replace, os.rename = dies(os.replace), dies(os.rename)
import_captions(Path(sys.argv[1]), read(Path(sys.argv[2])))
"""


def test_a_killed_import_is_completed(made: Path, tmp_path: Path, run_set: RunSet) -> None:
    path, rows = export(made)
    for row, text in zip(rows, TEXTS, strict=True):
        row["text"] = text
    write(path, rows)
    first = texts(made)
    shutil.copytree(made, tmp_path / "whole")
    import_captions(tmp_path / "whole", read(path))
    names = ("records.parquet", "dataset.json")
    expected = [(tmp_path / "whole" / name).read_bytes() for name in names]
    codes = []
    for number in range(4):
        folder = tmp_path / f"killed {number}"
        shutil.copytree(made, folder)
        words = [sys.executable, "-c", _KILLED, str(folder), str(path), str(number)]
        codes.append(subprocess.run(words, check=False).returncode)
        for name in names:  # each is one or the other, whole
            assert (folder / name).read_bytes() in (
                (made / name).read_bytes(),
                (tmp_path / "whole" / name).read_bytes(),
            )
        found = import_captions(folder, read(path))
        assert found.unlisted == 0
        assert [(folder / name).read_bytes() for name in names] == expected
        assert not list(folder.glob(".*.part"))
    assert codes[:2] == [-9, -9]
    assert codes[-1] == 0
    assert texts(made) == first
    # or by the next run, from the ledger alone
    folder = tmp_path / "resumed"
    shutil.copytree(made, folder)
    subprocess.run([sys.executable, "-c", _KILLED, str(folder), str(path), "0"], check=False)
    run_set(tmp_path / "raw", folder)
    assert [(folder / name).read_bytes() for name in names] == expected


def test_cells_come_back() -> None:
    for text in ("=x", "+x", "-x", "@x", "'x", "''", "'=x", "\tx", "＝x", "x'", "", "a=b", "'"):
        assert cell_text(safe_cell(text)) == text
        assert not safe_cell(text).startswith(("=", "+", "-", "@", "\t", "＝"))
    assert cell_text("'tis") == "'tis"  # as it is typed by hand


def test_a_list_in_another_form(made: Path) -> None:
    """dataset.json as another program saved it: the words are in the ledger, and no entry is lost."""
    path, rows = export(made)
    rows[0]["text"] = "new"
    listed = json.loads((made / "dataset.json").read_text())
    (made / "dataset.json").write_text(json.dumps(listed, indent=2))
    with pytest.raises(UserError, match=r"`ea data caption .*` writes"):
        import_captions(made, read(write(path, rows)))
    assert json.loads((made / "dataset.json").read_text()) == listed


def test_the_commands(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, rows = export(made)
    for row in rows:
        row["text"] = ""
    write(path, rows)
    words = [
        ["export", str(made), "-o", str(path)],
        ["import", str(made), str(path), "--no-report"],
        ["reset", str(made)],
    ]
    codes, told = [], []
    for line in words:
        codes.append(ea(["data", "captions", *line]))
        told.append(capsys.readouterr().err.strip())
    assert codes == [2, 0, 0]
    assert "import it first" in told[0]
    assert told[1].startswith("captions changed: 4; empty captions: 4 (")
    assert told[2].startswith("4 imported captions forgotten; `ea data caption ")
    assert all("\n" not in line for line in told)
    for line in (
        [str(made), str(tmp_path / "no.csv")],
        [str(made), str(made / "dataset.json")],
        [str(tmp_path), str(path)],
    ):
        assert ea(["data", "captions", "import", *line]) == 2
        told.append(capsys.readouterr().err.strip())
    assert "`CAPTIONS` must be an existing file" in told[3]
    assert "`CAPTIONS` must be a .csv or .tsv" in told[4]
    assert "has no records.parquet" in told[5]
    assert not (tmp_path / "ledger").exists()
