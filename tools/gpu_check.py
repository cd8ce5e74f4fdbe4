"""All figures that need a GPU, measured in one short lease of a bare machine.

There, in this repository's root, with Python 3.12, torch, transformers, accelerate and peft installed and no index:

    python3 tools/gpu_check.py --carried carried --out results.jsonl

Before, on a machine with an index, the packages that the bare one lacks (diffusers, av, pydantic and others):

    uv run --frozen python tools/gpu_check.py --pack carried --reference ../shared/reference

Afterwards, with the file brought back:

    uv run --frozen python tools/gpu_check.py --report results.jsonl
    uv run --frozen ea bench report -o docs/performance.md --plot docs/images/benchmarks.svg

Rows run in the order of their worth (gpu_rows/rows.py) and within 9 minutes (`--minutes`). Each result is on disk
before the next row begins, so a run that is cut off loses nothing; a row that fails, hangs or kills its process ends
none of the others. The file is appended to: a second run skips what was measured. `--cpu` rehearses all of it with
small networks.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))  # also when it is started by a file name or by multiprocessing
RESULTS = ROOT / "benchmarks" / "results"
_NEEDED = ("torch", "diffusers", "transformers", "accelerate", "peft", "pydantic", "safetensors", "einops")


def main(words: Sequence[str] | None = None) -> int:
    """Exit code 0 if no row failed, 1 otherwise."""
    options = _parser().parse_args(words)
    if options.pack is not None:
        from gpu_rows.pack import pack

        print(pack(options.pack, options.reference, options.limit, options.leave_out))
        return 0
    from gpu_rows import report

    if options.report is not None:
        records = report.read_records(options.report)
        print(report.summary(records))
        for path in report.write_results(records, RESULTS):
            print(path)
        return 0
    return _measure(options)


def _measure(options: argparse.Namespace) -> int:
    began = time.monotonic()
    from gpu_rows import report, site
    from gpu_rows.lease import Lease
    from gpu_rows.rows import ROWS

    names = [row.name for row in ROWS]
    unknown = [name for name in options.only if not any(name in one for one in names)]
    if unknown:
        raise SystemExit(
            f"`--only` must be a part of a row's name, got {unknown[0]!r}; the rows: {'; '.join(names)}"
        )
    rows = [row for row in ROWS if not options.only or any(part in row.name for part in options.only)]
    before = report.resumed(options.out) if options.out.exists() else []
    done = {name for name, record in report.newest(before).items() if record["status"] == "measured"}
    if any((record["machine"].get("gpu") is None) != options.cpu for record in before if "machine" in record):
        raise SystemExit(f"`--out` {options.out} is of another kind of machine; give a new file")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        paths = site.paths(options.carried, work)
        sys.path[:0] = paths
        site.require(_NEEDED)
        # also for the processes that torch.compile starts
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
        os.environ.setdefault("EA_CACHE", str(work / "cache"))
        os.environ["HF_HUB_OFFLINE"] = "1"
        reference = site.find_reference(options.reference, options.carried)
        lease = Lease(options.out, options.minutes * 60, options.cpu, work, reference, paths, began)
        lease.facts = {name: one for record in before for name, one in record.get("facts", {}).items()}
        try:
            records = lease.run([row for row in rows if row.name not in done])
        except RuntimeError as error:
            raise SystemExit(str(error)) from None
    print(report.summary([*before, *records]))
    return int(any(record.get("status") == "failed" for record in records))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_check.jsonl"), help="JSON lines, appended to")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all rows")
    parser.add_argument("--cpu", action="store_true", help="rehearse with small networks on the CPU")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help="rows whose name holds this"
    )
    parser.add_argument("--carried", type=Path, help="folder made by --pack")
    parser.add_argument("--reference", type=Path, help="folder of golden data")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="make the folder to carry, and end")
    parser.add_argument(
        "--limit", type=float, default=60.0, help="MiB of the folder and of the repository's files"
    )
    parser.add_argument(
        "--leave-out", action="append", default=[], metavar="NAME", help="a package not to pack"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write benchmarks/results/ from a run's file"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
