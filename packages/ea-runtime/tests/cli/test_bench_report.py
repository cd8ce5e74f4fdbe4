"""`ea bench report`: results become a table and a plot; what a GPU has not measured is said."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ea_runtime.cli.bench_report import BEGIN, END
from ea_runtime.cli.main import run

ROW = {"case": "a chunk", "baseline_s": 2.6, "ours_s": 2.0, "ratio": 1.3, "error": 3e-7}
SLOW = {"case": "<small>", "baseline_s": 0.01, "ours_s": 0.02, "ratio": 0.5, "error": 1e-7}
MACHINE = {"date": "2026-01-02", "processor": "a processor", "cores": 2, "gpu": None, "torch": "2.13"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    gpu = {"command": "uv run pytest benchmarks/test_x.py -m gpu", "cases": ["768x768"]}
    write(folder / "decode.json", {"machine": MACHINE, "rows": [ROW, SLOW], "gpu": gpu})
    write(folder / "help.json", {"machine": MACHINE, "figures": {"ratio": 1.1, "more": {"a": 1}}})
    return folder


def write(path: Path, record: object) -> None:
    path.write_text(json.dumps(record), encoding="utf-8")


def test_a_table(results: Path, capsys):
    assert run(["bench", "report", "--results", str(results)]) == 0
    said = capsys.readouterr().out
    assert "| decode | a chunk | 2.60 s | 2.00 s | 1.30x | 3.0e-07 |" in said
    assert "| decode | <small> | 10.0 ms | 20.0 ms | 0.50x |" in said
    assert "| decode | 768x768 | not measured: `uv run pytest benchmarks/test_x.py -m gpu` |" in said
    assert "| help | ratio 1.1; more: (a 1) |" in said
    assert "- processor a processor, cores 2, torch 2.13, 2026-01-02: decode, help" in said
    measured = {"machine": {**MACHINE, "gpu": "a card"}, "rows": [ROW], "missing": {"768x768": "too | long"}}
    write(results / "decode_gpu.json", measured)
    assert run(["bench", "report", "--results", str(results)]) == 0
    assert "768x768 | not measured (too / long): `uv run" in capsys.readouterr().out
    write(results / "decode_gpu.json", {**measured, "rows": [{**ROW, "case": "768x768"}]})
    assert run(["bench", "report", "--results", str(results)]) == 0
    said = capsys.readouterr().out
    assert "not measured" not in said
    assert "gpu a card" in said


def test_a_page_and_a_plot(results: Path, tmp_path: Path):
    page, plot = tmp_path / "page.md", tmp_path / "plot.svg"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    words = ["bench", "report", "--results", str(results), "-o", str(page), "--plot", str(plot)]
    for _ in range(2):
        assert run(words) == 0
        text = page.read_text()
        assert text.startswith(f"before\n{BEGIN}\n")
        assert text.endswith(f"{END}\nafter\n")
        assert "old" not in text
        assert text.count("| decode | a chunk |") == 1
    root = ElementTree.parse(plot).getroot()
    labels = [
        text for text in root.iter("{http://www.w3.org/2000/svg}text") if text.get("text-anchor") == "end"
    ]
    assert all(float(label.get("x", 0)) > 6 * len(label.text or "") for label in labels)  # none is cut off
    bars = [float(bar.get("width", 0)) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert bars[0] / bars[1] == pytest.approx(1.3 / 0.5, rel=1e-2)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("[]", "lacks its parts"),
        ("{", "is no benchmark result"),
        ('{"machine": {}, "rows": [{"case": "x"}]}', "lacks its parts"),
    ],
)
def test_damaged_results_are_named(results: Path, capsys, record, message):
    (results / "bad.json").write_text(record)
    assert run(["bench", "report", "--results", str(results)]) == 2
    said = capsys.readouterr().err
    assert "bad.json" in said
    assert message in said
    assert len(said.splitlines()) == 1


def test_other_records_in_the_folder_are_left_out_and_named(results: Path, capsys, caplog):
    write(results / "proof.json", {"lora": "a file", "weights": {}})
    assert run(["bench", "report", "--results", str(results)]) == 0
    assert "proof" not in capsys.readouterr().out
    assert "proof.json is another kind of record and is left out" in caplog.text


def test_what_is_missing_is_named(tmp_path: Path, results: Path, capsys):
    assert run(["bench", "report", "--results", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    page = tmp_path / "page.md"
    page.write_text("no marks")
    assert run(["bench", "report", "--results", str(results), "-o", str(page)]) == 2
    assert "must hold the lines" in capsys.readouterr().err
    assert page.read_text() == "no marks"
