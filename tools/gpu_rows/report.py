"""Records of a run as a table in Markdown, and as the files in benchmarks/results/ that `ea bench report` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_rows.rows import ROWS

#: the file that names the rows until they are measured
LISTING = "gpu_check.json"
COMMAND = "python3 tools/gpu_check.py"
_NUMBERS = ("baseline_s", "ours_s", "ratio", "error")


def listing() -> dict[str, Any]:
    """The record that names the rows which no other benchmark has."""
    cases = [row.case for row in ROWS if row.group == "gpu_check"]
    return {"machine": {}, "rows": [], "gpu": {"command": COMMAND, "cases": cases}}


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line that was cut off is left out. Raises SystemExit."""
    records = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}; give the file of a run") from error
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number + 1 < len(lines):
                raise SystemExit(f"{path}, line {number + 1} is no JSON; give the file of a run") from None
    if not records or "machine" not in records[0]:
        raise SystemExit(f"{path} does not begin with a machine; give the file of a run")
    return records


def resumed(path: Path) -> list[dict[str, Any]]:
    """The records of a file that is appended to; a last line that was cut off is removed."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return read_records(path) if whole else []


def newest(records: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The record of each row: of several the last that was measured, else the last."""
    found: dict[str, Mapping[str, Any]] = {}
    for record in records:
        name = record.get("row")
        if name is not None and (
            record["status"] == "measured" or found.get(name, {}).get("status") != "measured"
        ):
            found[name] = record
    return found


def results(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """File name -> record for benchmarks/results/: comparisons as rows, the rest as figures, reasons for what is
    missing."""
    machine = next(record["machine"] for record in reversed(records) if "machine" in record)
    files: dict[str, dict[str, Any]] = {}
    for record in newest(records).values():
        name = f"{record['group']}_gpu.json"
        empty: dict[str, Any] = {"machine": machine, "rows": [], "figures": {}, "missing": {}}
        file = files.setdefault(name, empty)
        case, result = record["case"], record.get("result", {})
        if record["status"] != "measured":
            file["missing"][case] = f"{record['status']}: {record['reason']}"
        elif all(isinstance(result.get(key), int | float) for key in _NUMBERS) and "cap" not in result:
            file["rows"].append({"case": case, **{key: float(f"{result[key]:.4g}") for key in _NUMBERS}})
            if "flops" in result:
                file["figures"][f"{case}: rate and memory"] = told(
                    result, ("baseline_s", "ours_s", "ratio", "error")
                )
        else:
            file["figures"][case] = told(result)
    return files


def told(result: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, str]:
    """A row's figures for people: seconds, GB, TFLOP/s, shares."""
    lines: dict[str, str] = {}
    for name, value in result.items():
        if name in without or value is None:
            continue
        if isinstance(value, Mapping):
            lines |= {
                f"{_words(name)} {key}": _value(name, one) for key, one in value.items() if one is not None
            }
        else:
            lines[_words(name)] = _value(name, value)
    return lines


def _words(name: str) -> str:
    ends = ("_gb_s", "_ms", "_s", "_tflops", "_bytes", "_peak")
    short = next((name.removesuffix(end) for end in ends if name.endswith(end)), name)
    if name.endswith("_peak"):
        short += " peak"
    return short.replace("_", " ").replace("baseline", "plain eager")


def _value(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if name.endswith("_gb_s"):
        return f"{value:.0f} GB/s"
    if name.endswith("_ms"):
        return f"{value:.3g} ms"
    if name.endswith(("_s", "seconds")):
        return f"{value:.3g} s"
    if name.endswith("_tflops"):
        return f"{value:.0f} TFLOP/s" if value >= 10 else f"{value:.2g} TFLOP/s"
    if name == "flops":
        return f"{value / 1e12:.1f} TFLOP" if value >= 1e11 else f"{value / 1e9:.2g} GFLOP"
    if name.endswith("_share") or name.startswith("spread") or name == "errors":
        return f"{value:.1%}" if abs(value) >= 1e-3 else f"{value:.1e}"
    if "peak" in name or name.endswith("bytes") or name in ("cap", "predicted", "measured"):
        return f"{value / 1e9:.2f} GB"
    if name == "error":
        return f"{value:.1e}"
    return f"{value:.3g}"


def summary(records: Sequence[Mapping[str, Any]]) -> str:
    """All rows in order, in Markdown; "not measured" for those that were not reached."""
    found = newest(records)
    lines = ["| row | figures |", "|---|---|"]
    for row in ROWS:
        record = found.get(row.name)
        if record is None:
            lines.append(f"| {row.name} | not measured |")
        elif record["status"] == "measured":
            figures = told(record["result"])
            lines.append(f"| {row.name} | {'; '.join(f'{key} {value}' for key, value in figures.items())} |")
        else:
            lines.append(f"| {row.name} | {record['status']}: {record['reason']} |".replace("\n", " "))
    machine = next(record["machine"] for record in reversed(records) if "machine" in record)
    where = ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None)
    return "\n".join([*lines, "", f"Machine: {where}"])


def write_results(records: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Writes the files; only what a GPU measured. Raises SystemExit for a rehearsal on a CPU."""
    if any(record["machine"].get("gpu") is None for record in records if "machine" in record):
        raise SystemExit(
            "a rehearsal on a CPU measures nothing for benchmarks/results/; give the file of a GPU's run"
        )
    written = []
    for name, record in results(records).items():
        path = folder / name
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        written.append(path)
    return written
