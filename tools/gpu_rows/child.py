"""The process that measures: one row after another, until it is asked to stop or a row leaves it unusable."""

from __future__ import annotations

import sys
import time
import traceback
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

#: a CUDA error after which every further call in the process fails
_FATAL = ("CUDA error", "cuBLAS error", "CUBLAS_STATUS", "cudnn_status_execution", "device-side assert")


def serve(link: Connection, is_cpu: bool, work: str, reference: str | None, paths: list[str]) -> None:
    """Answers each request {"run", "arguments", "seconds_left", "facts"} with a record, on `link`.

    The first request is {"machine": True}. None ends it.
    """
    sys.path[:0] = [path for path in paths if path not in sys.path]
    import torch

    from gpu_rows import machine
    from gpu_rows.bench import Bench

    if is_cpu:
        torch.set_num_threads(1)
    bench = Bench(is_cpu, Path(work), None if reference is None else Path(reference))
    while (request := link.recv()) is not None:
        if "machine" in request:
            if not is_cpu and not torch.cuda.is_available():
                link.send({"error": "torch finds no CUDA device here; `--cpu` rehearses without one"})
                return
            link.send(machine.describe(bench))
            continue
        bench.facts, bench.seconds_left = request["facts"], request["seconds_left"]
        answer = answered(bench, request["run"], request["arguments"])
        link.send(answer)
        if answer.get("is_fatal"):
            return


def answered(bench: Any, run: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The record of one row: {"status": "measured", "result", "facts"}, or "skipped" or "failed" with a reason."""
    import torch

    from gpu_rows.bench import NotHere

    module, _, function = run.partition(":")
    started = time.perf_counter()
    answer: dict[str, Any]
    try:
        result = getattr(import_module(module), function)(bench, **arguments)
        answer = {"status": "measured", "facts": result.pop("facts", {}), "result": result}
    except NotHere as error:
        answer = {"status": "skipped", "reason": str(error)}
    except torch.OutOfMemoryError as error:
        answer = {"status": "failed", "reason": f"out of memory: {str(error).splitlines()[0][:300]}"}
    except Exception as error:  # of any kind: the next row runs all the same
        traceback.print_exc()
        text = f"{type(error).__name__}: {(str(error) or '-').splitlines()[0][:300]}"
        answer = {"status": "failed", "reason": text, "is_fatal": any(word in str(error) for word in _FATAL)}
    answer["row_s"] = round(time.perf_counter() - started, 3)
    if not answer.get("is_fatal"):
        try:
            bench.free()
        except Exception:
            answer["is_fatal"] = True
    return answer
