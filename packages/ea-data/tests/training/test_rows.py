"""Lists as spreadsheets, editors and scripts of all systems write them."""

from __future__ import annotations

import codecs
import csv
import json
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_data.training.dataset_json import Entries, read_list
from ea_runtime.errors import UserError

#: Captions with everything that a separator or a line end could be mistaken in.
TEXTS = ['a "red", round; thing | here', "café\u2028au lait", "two\nlines"]
ROWS = [
    {"file_path": f"images/{i}.png", "text": text, "type": "image", "width": 32}
    for i, text in enumerate(TEXTS)
]


def csv_of(separator: str, space: str = "") -> str:
    def line(cells: list[str]) -> str:
        return f"{separator}{space}".join(cells)

    rows = [["file_path", "text", "type", "width"]]
    for row in ROWS:
        caption = str(row["text"]).replace('"', '""')
        rows.append([str(row["file_path"]), f'"{caption}"', "image", "32"])
    return "\n".join(map(line, rows)) + "\n"


FORMS = {
    "dataset.json": json.dumps(ROWS),
    "indented.json": json.dumps(ROWS, indent=1, ensure_ascii=False),
    "lines.json": "".join(json.dumps(row) + "\n" for row in ROWS),
    "dataset.jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS),
    "blank.ndjson": "\n\n".join(json.dumps(row) for row in ROWS),
    "dataset.csv": csv_of(","),
    "spaces.csv": csv_of(",", " "),
    "semicolon.csv": csv_of(";"),
    "tabs.csv": csv_of("\t"),
    "tabs.tsv": csv_of("\t"),
    "bars.csv": csv_of("|"),
}
ENCODINGS = {
    "plain": lambda text: text.encode(),
    "mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
}


def table(entries: Entries) -> list[tuple[str, str, bool, int]]:
    return list(zip(entries.names, entries.texts, entries.videos, entries.widths, strict=True))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", FORMS)
def test_one_list_in_every_form(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(ENCODINGS[encoding](FORMS[name]))
    assert table(read_list(tmp_path / name)) == [(f"images/{i}.png", TEXTS[i], False, 32) for i in range(3)]


@pytest.mark.parametrize("name", ["dataset.json", "dataset.jsonl", "dataset.csv", "semicolon.csv"])
def test_line_ends_of_windows(name: str, tmp_path: Path) -> None:
    text = FORMS[name].replace("two\nlines", "two lines")
    (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode())
    assert [row[0] for row in table(read_list(tmp_path / name))] == [f"images/{i}.png" for i in range(3)]
    assert read_list(tmp_path / name).texts[:2] == TEXTS[:2]


@pytest.mark.parametrize("name", ["dataset.json", "dataset.csv", "dataset.jsonl"])
def test_a_folder_holds_any_of_them(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    assert len(read_list(tmp_path)) == 3


def wrong(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_list(folder / name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        # a caption that was not quoted
        ("a.csv", "file_path,text\n0.png,plain\n1.png,a red, blue thing\n", "line 3: has 3 columns"),
        ("a.csv", 'file_path;text\n0.png;"two\nlines"\n1.png;a; b\n', "line 4: has 3 columns"),
        ("a.csv", 'file_path,text\n0.png,"a big\n1.png,one\n2.png,two\n', "line 2: "),
        ("a.csv", "file_path,text,width\n\n0.png,a,wide\n", "line 3: `width` must be a number"),
        ("a.csv", "path,caption\n0.png,a\n", "line 1: must name the columns file_path and text"),
        ("a.csv", "", "line 1: must name the columns"),
        ("a.csv", "file_path,text\n0.png\n", "line 2: `text` must be a string, got nothing"),
        ("a.jsonl", '{"file_path": "0.png", "text": "a"}\n\n{"file_path": \n', "line 3: "),
        ("a.jsonl", '{"file_path": "0.png", "text": "a"}\n[]\n', "line 2: must be an object, got list"),
        ("a.json", '[\n{"file_path": "0.png", "text": "a"},\n{"file_path": "1.png"}\n]', "line 3: `text`"),
        ("a.json", '[\n{"file_path": "0.png", "text": "a"},\n{"file_path"}\n]', "line 3"),
        ("a.json", '{"file_path": "0.png", "text": "a"}', "must be a list of entries, got dict"),
        ("a.json", '{"file_path": "0.png", "text": "a"}\n\n', "must be a list of entries, got dict"),
        ("a.json", '{\n"file_path": "0.png"}', "must be a list of entries, got dict"),
        ("a.json", '\n[{"file_path": "0.png"}]', "line 2: `text`"),
        # a .json file that holds JSON lines
        ("a.json", '{"file_path": "0.png", "text": "a"}\n[]', "line 2: must be an object, got list"),
        ("a.json", '{"file_path": "0.png", "text": "a"}\n{"a', "is not valid JSON lines: line 2: "),
        ("a.json", "[]\n[]", "is not valid JSON: "),
        ("a.csv", "file_path;text;file_path\n", "line 1: has the column 'file_path' twice; remove one"),
        ("a.csv", "file_path,text," + 200_000 * "x", "is not valid CSV: field larger than field limit"),
        # the name decides: only a .json file may hold something else
        ("a.csv", '{"file_path": "0.png", "text": "a"}\n{}', "line 1: must name the columns"),
    ],
)
def test_errors_name_the_line(name: str, text: str, expected: str, tmp_path: Path) -> None:
    error = wrong(tmp_path, name, text)
    assert expected in error
    assert name in error


def test_what_spreadsheets_add(tmp_path: Path) -> None:
    """Empty columns and rows, a column of the user's, quoted names after a space; a caption may be empty."""
    text = 'file_path, "text",mine,mine\n0.png,a,,,, ,\n,,,\n1.png,,x,y\n2.png,\n'
    (tmp_path / "a.csv").write_text(text)
    assert read_list(tmp_path / "a.csv").texts == ["a", "", ""]
    (tmp_path / "b.csv").write_text("file_path,text\n0.png,\n1.png,a,\n")
    assert read_list(tmp_path / "b.csv").texts == ["", "a"]
    (tmp_path / "two.json").write_text(
        '{"file_path": "0.png", "text": "a"}\n{"file_path": "1.png", "text": "b"}'
    )
    assert read_list(tmp_path / "two.json").texts == ["a", "b"]


def csv_text(separator: str, rows: list[dict[str, Any]]) -> str:
    out = StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


WRITERS = {
    "a.json": json.dumps,
    "indented.json": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False),
    "a.jsonl": lambda rows: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
    **{f"{number}.csv": lambda rows, by=by: csv_text(by, rows) for number, by in enumerate(",;\t|")},
}


@settings(derandomize=True, deadline=None, max_examples=40)  # the same cases each time, no limit by the clock
@given(
    st.sampled_from(list(WRITERS)),
    st.lists(
        st.fixed_dictionaries(
            {
                "file_path": st.text("ab .,;|é", min_size=1, max_size=6).map(lambda name: f"x{name}.png"),
                "text": st.text(
                    st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12
                ),
                "type": st.sampled_from(("image", "video")),
                "width": st.integers(0, (1 << 20) - 1),
                "num_frames": st.integers(0, (1 << 30) - 1),
                "given": st.sampled_from(("", "start", "ends")),
            }
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_every_form_gives_back_what_was_written(name: str, rows: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_text(WRITERS[name](rows), encoding="utf-8", newline="")
        entries = read_list(path)
    columns = (entries.names, entries.texts, entries.widths, entries.num_frames, entries.given)
    keys = ("file_path", "text", "width", "num_frames", "given")
    assert list(zip(*columns, strict=True)) == [tuple(row[key] for key in keys) for row in rows]
    assert entries.videos == [row["type"] == "video" for row in rows]


def test_the_remedy_for_a_comma_in_a_caption(tmp_path: Path) -> None:
    assert "between double quotes" in wrong(tmp_path, "a.csv", "file_path,text\n0.png,a, b\n")


def test_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"file_path,text\n0.png,un caf\xe9\n")
    with pytest.raises(UserError, match=r"a\.csv' is not valid CSV: line 2 is not UTF-8 text"):
        read_list(tmp_path / "a.csv")


def test_absolute_paths_inside_the_set(tmp_path: Path) -> None:
    """Also if the path, the set, or both are written through a link."""
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    (tmp_path / "link").symlink_to("set")
    (folder / "inner").symlink_to("images")
    for root in ("set", "link"):
        names = [
            f"{tmp_path}/{root}/0.png",
            f"{tmp_path}/{root}/images/1.png",
            f"{tmp_path}/{root}/inner/2.png",
        ]
        rows = [{"file_path": name, "text": "a"} for name in names]
        (folder / "dataset.json").write_text(json.dumps(rows))
        for path in (folder, tmp_path / "link"):
            assert read_list(path).names == ["0.png", "images/1.png", "images/2.png"]
    outside = json.dumps([{"file_path": f"{tmp_path}/0.png", "text": "a"}])
    error = wrong(folder, "dataset.json", outside)
    assert "`data.root`" in error
    assert str(folder) in error
    (folder / "out.png").symlink_to("../0.png")
    wrong(folder, "dataset.json", json.dumps([{"file_path": f"{folder}/out.png", "text": "a"}]))


def test_paths_from_windows(tmp_path: Path) -> None:
    (tmp_path / "odd\\name.png").touch()
    rows = [
        {"file_path": name, "text": "a"} for name in ("images\\0.png", ".\\images\\1.png", "odd\\name.png")
    ]
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    assert read_list(tmp_path).names == ["images/0.png", "images/1.png", "odd\\name.png"]
    for name in ("..\\0.png", "C:\\set\\0.png", "\\\\host\\share\\0.png"):
        assert "must stay beneath the set" in wrong(
            tmp_path, "a.json", json.dumps([{"file_path": name, "text": "a"}])
        )
