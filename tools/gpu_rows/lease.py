"""Rows run within a lease: in a child process, each within its own time and that of all; each result is on disk.

One child runs all rows, since a new one costs a torch import, a CUDA context and the networks. If a row takes twice its
time, or its process dies, the next row gets a new child.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_rows.child import serve
from gpu_rows.rows import Row

#: seconds that a new child may take until it has imported torch and found the card
_START = 90.0
#: seconds at the end that no row is given
_END = 4.0


@dataclass
class Lease:
    """seconds: for all rows, from now on. results: JSON lines, appended. paths: for the children's sys.path."""

    results: Path
    seconds: float
    is_cpu: bool
    work: Path
    reference: Path | None
    paths: list[str]
    began: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)
    _child: Any = None
    _link: Any = None

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)

    def run(self, rows: Iterable[Row]) -> list[dict[str, Any]]:
        """Measures the rows in order and returns their records, which are in the file as well.

        Raises RuntimeError with one line if no child can measure here.
        """
        records: list[dict[str, Any]] = [{"machine": self._start()}]
        self._write(records[0])
        try:
            for row in rows:
                record = {"row": row.name, "group": row.group, "case": row.case, **self._one(row)}
                record["at_s"] = round(self.seconds - self.left, 1)
                self._write(record)
                records.append(record)
        finally:
            self._stop()
        return records

    def _one(self, row: Row) -> dict[str, Any]:
        if row.needs_cuda and self.is_cpu:
            return {"status": "skipped", "reason": "needs CUDA"}
        left = self.left - _END
        if left < row.seconds and not self.is_cpu:
            return {
                "status": "skipped",
                "reason": f"it may take {row.seconds:.0f} s, {max(left, 0):.0f} s are left",
            }
        if self._child is None:
            try:
                self._start()
            except RuntimeError as error:
                return {"status": "failed", "reason": str(error)}
        request = {
            "run": row.run,
            "arguments": dict(row.arguments),
            "facts": self.facts,
            "seconds_left": left,
        }
        # what a row takes on a CPU says nothing: only the whole rehearsal is bounded
        limit = max(left, 1) if self.is_cpu else min(2 * row.seconds, max(left, 1))
        try:
            self._link.send(request)
            if not self._link.poll(limit):
                self._stop(at_once=True)
                return {"status": "failed", "reason": f"it was ended after {limit:.0f} s"}
            answer = self._link.recv()
        except (EOFError, OSError):
            code = self._stop(at_once=True)
            return {"status": "failed", "reason": f"its process died (exit code {code})"}
        if answer.pop("is_fatal", False):
            self._stop(at_once=True)
        self.facts |= answer.get("facts", {})
        return answer

    def _start(self) -> dict[str, Any]:
        context = multiprocessing.get_context("spawn")
        self._link, other = context.Pipe()
        reference = None if self.reference is None else str(self.reference)
        arguments = (other, self.is_cpu, str(self.work), reference, self.paths)
        self._child = context.Process(target=serve, args=arguments, daemon=False)
        self._child.start()
        other.close()  # so that the end of the child is noticed
        try:
            self._link.send({"machine": True})
            if self._link.poll(min(_START, max(self.left, 1))):
                answer = self._link.recv()
                if "error" not in answer:
                    return answer
                self._stop(at_once=True)
                raise RuntimeError(answer["error"])
        except (EOFError, OSError):
            pass
        code = self._stop(at_once=True)
        raise RuntimeError(f"the process that measures did not start (exit code {code}); its lines are above")

    def _stop(self, at_once: bool = False) -> int | None:
        """Ends the child; its exit code."""
        child, self._child = self._child, None
        if child is None:
            return None
        try:
            if not at_once:
                self._link.send(None)
        except OSError:
            pass
        child.join(1 if at_once else 10)
        code = child.exitcode
        if child.is_alive():
            child.kill()
            child.join(10)
        self._link.close()
        return code

    def _write(self, record: dict[str, Any]) -> None:
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        status = record.get("status")
        if status is not None:
            sys.stderr.write(
                f"{record['at_s']:6.1f} s  {record['row']}: {status} {record.get('reason', '')}\n"
            )
            sys.stderr.flush()
