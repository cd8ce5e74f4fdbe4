"""Tables for spreadsheets: nothing in them runs, and every text comes back."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_data.records.tables import cell_text, read_table, safe_cell, table_writer

#: what spreadsheets run, also as full-width signs, and the apostrophe that marks a mended cell
SIGNS = "=+-@\t\r\uff1d\uff0b\uff0d\uff20'"
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=10)
#: the same cases each time, and no limit by the clock
drawn = settings(derandomize=True, deadline=None, max_examples=60)


@pytest.mark.parametrize("sign", SIGNS)
def test_a_cell_that_a_spreadsheet_would_run(sign: str) -> None:
    assert safe_cell(f"{sign}1+1") == f"'{sign}1+1"
    assert safe_cell(sign) == f"'{sign}"
    assert safe_cell(f"a{sign}1") == f"a{sign}1"


def test_other_cells() -> None:
    assert (safe_cell(""), safe_cell("plain"), safe_cell("bad\udcff")) == ("", "plain", "bad\\udcff")
    # an apostrophe that somebody typed stays, one before a formula goes
    assert (cell_text("'tis"), cell_text("''tis"), cell_text("'=1"), cell_text("'")) == (
        "'tis",
        "'tis",
        "=1",
        "'",
    )


@drawn
@given(st.sampled_from(("", *SIGNS)), TEXTS)
def test_a_cell_comes_back(sign: str, text: str) -> None:
    assert cell_text(safe_cell(sign + text)) == sign + text


@drawn
@given(st.lists(st.tuples(TEXTS, TEXTS.map("={}".format), st.integers()), max_size=4))
def test_a_table_comes_back(rows: list[tuple[str, str, int]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.csv")
        with table_writer(path, ("one", "two", "three")) as add:
            for row in rows:
                add(row)
            assert not path.exists()
        assert path.read_bytes().startswith(b"\xef\xbb\xbfone,two,three\n")
        found = [tuple(row.values()) for row in read_table(path)]
    assert found == [(one, two, str(number)) for one, two, number in rows]


def test_numbers_are_numbers_and_ragged_rows_are_read(tmp_path: Path) -> None:
    with table_writer(tmp_path / "a.csv", ("a", "b")) as add:
        add([-1, "-1"])
    assert (tmp_path / "a.csv").read_text("utf-8-sig") == "a,b\n-1,'-1\n"
    (tmp_path / "b.csv").write_text("a,b\n1\n1,2,3\n")
    assert list(read_table(tmp_path / "b.csv")) == [{"a": "1", "b": ""}, {"a": "1", "b": "2"}]
    with pytest.raises(RuntimeError), table_writer(tmp_path / "a.csv", ("a",)):
        raise RuntimeError
    assert (tmp_path / "a.csv").read_text("utf-8-sig").startswith("a,b\n")
