"""tools/gpu_check.py on a CPU: every row's code runs, and what a row does wrong ends no other."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import gpu_check  # noqa: E402
from gpu_rows import lease, pack, report, rows, site  # noqa: E402
from gpu_rows.rows import LARGE, ROWS, SMALL, Row  # noqa: E402

from ea_runtime.cli.bench_report import read_results, table  # noqa: E402

#: a row for each way that the code can go; the others differ in size
REHEARSED = (
    "matrix rate",
    "goldens, fp32",
    f"step {LARGE}, ours",
    "chunk 768x768, ours",
    f"step {SMALL}, compiled",
    f"step {SMALL}, CUDA graphs",
    f"step {SMALL}, fp8",
    f"profile {LARGE}",
    f"whole run {LARGE}, 30 steps",
    f"plan {SMALL}",
    "group offload under 12 GB",
    "fp8 storage",
    "flat decoding to 720 frames",
    "LoRA step at 512, low_vram, under 24 GB",
    f"decoding {LARGE}, smoothed",
)
FAULTS = """
import os
def raises(bench):
    raise ValueError("a fault")
def broken(bench):
    from gpu_rows import goldens
    bench.reference = bench.reference.parent / "broken"
    return goldens.run(bench, "float32")
def dies(bench):
    os._exit(3)
"""


@pytest.fixture
def own_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Puts back what `main` changes in this process."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for name in ("PYTHONPATH", "EA_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, str(tmp_path))


@pytest.mark.slow
def test_a_rehearsal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_paths: None, capsys: Any, reference: Path
) -> None:
    (tmp_path / "faults.py").write_text(FAULTS)
    for name in ("golden", "broken"):
        (tmp_path / name / "dit_grid").mkdir(parents=True)
        for file in (reference / "dit_grid").iterdir():  # the smallest
            shutil.copyfile(file, tmp_path / name / "dit_grid" / file.name)
    changed = tmp_path / "broken" / "dit_grid" / "golden.safetensors"
    tensors = load_file(changed)
    save_file(
        {name: one * 1.01 if name.endswith(".sample") else one for name, one in tensors.items()}, changed
    )
    faults = [Row(name, f"faults:{name}", 1.0, case=name) for name in ("raises", "broken", "dies")]
    chosen = [row for row in ROWS if row.name in REHEARSED]
    assert len(chosen) == len(REHEARSED)
    # the first rows' process is gone by then
    monkeypatch.setattr(rows, "ROWS", (*chosen, *faults, Row("again", "gpu_rows.machine:matrix_rate", 1.0)))
    out = tmp_path / "results.jsonl"
    words = ["--cpu", "--out", str(out), "--reference", str(tmp_path / "golden")]
    assert gpu_check.main(words) == 1  # a row failed
    found = {record["row"]: record for record in report.read_records(out) if "row" in record}
    failed = {name: record["reason"] for name, record in found.items() if record["status"] == "failed"}
    assert failed.pop("broken").startswith("AssertionError: relative errors {'dit_grid': 0.0099")
    assert failed == {"raises": "ValueError: a fault", "dies": "its process died (exit code 3)"}
    skipped = {name: record["reason"] for name, record in found.items() if record["status"] == "skipped"}
    assert skipped.pop(f"step {SMALL}, CUDA graphs") == "needs CUDA"
    assert not skipped
    assert found["again"]["result"]["matrix_tflops"] > 0
    assert found["goldens, fp32"]["result"]["error"] < 1e-5
    assert found[f"step {SMALL}, compiled"]["result"]["error"] < 1e-2
    assert 1e-3 < found[f"step {SMALL}, fp8"]["result"]["error"] < 0.2  # it is fp8, and no other network
    assert found["group offload under 12 GB"]["result"]["is_exact"]
    assert found[f"whole run {LARGE}, 30 steps"]["result"]["steps"] == 2
    assert "| chunk 768x768, ours | " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="rehearsal"):
        report.write_results(report.read_records(out), tmp_path)


class StubChild:
    """In the place of a process: a link on which no answer comes."""

    exitcode, is_killed = None, False

    def poll(self, seconds: float) -> bool:
        assert seconds <= 2.0
        return False

    def kill(self) -> None:
        self.is_killed = True

    def is_alive(self) -> bool:
        return not self.is_killed

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def test_time(tmp_path: Path) -> None:
    """A row that hangs is ended; one that may take longer than what is left does not begin."""
    one = lease.Lease(tmp_path / "out", 60.0, False, tmp_path, None, [])
    one._child = one._link = stub = StubChild()
    answer = one._one(Row("hangs", "", 1.0))
    assert answer == {"status": "failed", "reason": "it was ended after 2 s"}
    assert stub.is_killed
    assert one._child is None
    assert one._one(Row("long", "", 90.0))["reason"].startswith("it may take 90 s, 5")


MACHINE = {"gpu": "a card", "torch": "2.11", "date": "2026-01-02"}
NUMBERS = {"baseline_s": 2.0, "ours_s": 1.0, "ratio": 2.0, "error": 1e-3, "flops": 4e14, "ours_tflops": 400.0}


def _record(row: Row, status: str = "measured", **more: Any) -> dict[str, Any]:
    return {"row": row.name, "group": row.group, "case": row.case, "status": status, **more}


def test_results_fill_the_page(tmp_path: Path) -> None:
    by_name = {row.name: row for row in ROWS}
    records = [
        {"machine": MACHINE},
        _record(by_name["chunk 768x768, ours"], result=NUMBERS),
        _record(by_name[f"step {LARGE}, fp8"], "failed", reason="out of memory"),
        _record(by_name["goldens, fp32"], result={"error": 1e-6}),
    ]
    file = tmp_path / "run.jsonl"
    file.write_text("\n".join([*map(json.dumps, records), '{"row": "cut o']))
    assert report.read_records(file) == records
    gpu = {"command": "pytest", "cases": ["768x768 chunk, bf16", "512x512 chunk, bf16"]}
    (tmp_path / "vae_decode.json").write_text(json.dumps({"machine": {}, "rows": [], "gpu": gpu}))
    (tmp_path / report.LISTING).write_text(json.dumps(report.listing()))
    before = table(read_results(tmp_path))
    report.write_results(records, tmp_path)
    after = table(read_results(tmp_path))
    chunk = "vae_decode | 768x768 chunk, bf16 | not measured: `pytest`"
    assert chunk in before
    assert chunk not in after
    assert "| vae_decode_gpu | 768x768 chunk, bf16 | 2.00 s | 1.00 s | 2.00x | 1.0e-03 |" in after
    assert "ours 400 TFLOP/s" in after
    assert "| vae_decode | 512x512 chunk, bf16 | not measured: `pytest` |" in after
    assert (
        f"step {LARGE}, fp8 | not measured (failed: out of memory): `python3 tools/gpu_check.py` |" in after
    )
    assert "goldens, fp32 | not measured" in before
    assert "goldens, fp32: (error 1.0e-06)" in after
    assert "goldens, fp32 | not measured" not in after


def test_the_page_names_every_row() -> None:
    listed = json.loads((ROOT / "benchmarks" / "results" / report.LISTING).read_text())
    assert listed == report.listing()
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    cases = {
        name: record["gpu"]["cases"]
        for name, record in read_results(ROOT / "benchmarks/results").items()
        if "gpu" in record
    }
    for row in ROWS:
        assert row.case in cases[row.group], f"{row.name} answers no case of {row.group}"
        assert f"| {row.case} |" in page
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = pack.missing(leave_out=["av"])
    assert {"diffusers", "pydantic", "pydantic-core"} <= wanted.keys()
    assert not {"av", "torch", "numpy", "ea-runtime"} & wanted.keys()

    def download(names: dict[str, str], folder: Path) -> list[Path]:
        with zipfile.ZipFile(folder / "x.whl", "w") as wheel:
            wheel.writestr("carried_module/__init__.py", "VALUE = 5\n")
            wheel.writestr("carried_module/stub.pyi", "")
        return [folder / "x.whl"]

    monkeypatch.setattr(pack, "download", download)
    told = pack.pack(tmp_path / "carried", None, 1e6, [])
    assert "together" in told
    with tarfile.open(tmp_path / "carried" / site.ARCHIVE) as packed:
        assert packed.getnames() == ["carried_module/__init__.py"]
    with pytest.raises(SystemExit, match="new or empty folder"):
        pack.pack(tmp_path / "carried", None, 1e6, [])
    with pytest.raises(SystemExit, match="over the limit"):
        pack.pack(tmp_path / "other", None, 1.0, [])
    # on the bare machine: this repository's packages are found without being installed
    monkeypatch.setattr(site, "find_spec", lambda name: None)
    found = site.paths(tmp_path / "carried", tmp_path / "work")
    assert str(ROOT / "packages" / "ea-dit" / "src") in found
    assert (tmp_path / "work" / "site" / "carried_module" / "__init__.py").is_file()
    entry = tmp_path / "work" / "site" / "ea_dit-0.2.0.dist-info" / "entry_points.txt"
    assert entry.read_text() == "[ea]\nea-dit = ea_dit.plugin\n"
    with pytest.raises(SystemExit, match="lacks torch"):
        site.require(("torch",))


def test_wrong_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="`--only` must be a part of a row's name, got 'nothing'"):
        gpu_check.main(["--only", "nothing"])
    (tmp_path / "gpu.jsonl").write_text(json.dumps({"machine": MACHINE}) + "\n")
    with pytest.raises(SystemExit, match="another kind of machine"):
        gpu_check.main(["--cpu", "--out", str(tmp_path / "gpu.jsonl")])
