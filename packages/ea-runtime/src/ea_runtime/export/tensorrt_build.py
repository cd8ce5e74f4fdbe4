"""Builds a bundle's graph into an engine, by TensorRT or TensorRT-RTX (tensorrt_api.py has their differences)."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ea_runtime.errors import UserError, nearest
from ea_runtime.export.tensorrt_api import load_api, require_device
from ea_runtime.files.safe import plain

DEFAULT_CAPABILITIES = ("sm89",)


@dataclass(frozen=True, slots=True)
class Built:
    """The builder's figures. activation_bytes: "Total Activation Memory" of its log, None if not logged."""

    version: str
    layers: int
    engine_bytes: int
    activation_bytes: int | None
    weights_bytes: int | None
    seconds: float
    peak_bytes: int
    capabilities: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)


def check(target: str, capabilities: Sequence[str], refittable: bool | None) -> bool:
    """True if engines will be refittable. Raises UserError, before any work, if this machine cannot build so."""
    import torch

    api = load_api(target)
    if not api.is_rtx:
        require_device(target)
        return refittable is not False
    known = api.capabilities()
    for name in capabilities:
        if name not in known:
            hint = "; TensorRT-RTX builds for no data-centre card, use --trt there" if name == "sm90" else ""
            raise UserError(
                f"`capability` must be one of {', '.join(known)}, got {name!r}{nearest(name, known)}{hint}"
            )
    has_gpu = torch.cuda.is_available()
    if refittable and not has_gpu:
        raise UserError(
            "`refit` needs a GPU with TensorRT-RTX 1.7 (its builder compiles refit kernels on one), and none is here;"
            " use --no-refit, and for a LoRA `ea lora merge` before the export"
        )
    return has_gpu if refittable is None else refittable


def build(
    target: str,
    graph: Path,
    engine: Path,
    *,
    capabilities: Sequence[str] = (),
    memory_limit: int | None = None,
    refittable: bool = True,
) -> Built:
    """Builds `graph` into the file `engine`, in a child process. Raises UserError with the builder's message."""
    api = load_api(target)
    gpu = "" if api.is_rtx else require_device(target)
    chosen = tuple(capabilities) or (DEFAULT_CAPABILITIES if api.is_rtx else ())
    cache = api.timing_cache(graph, gpu)
    job = {
        "target": target,
        "graph": str(graph),
        "engine": str(engine),
        "capabilities": list(chosen),
        "memory_limit": memory_limit,
        "refittable": refittable,
        "timing_cache": None if cache is None else str(cache),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", "ea_runtime.export.tensorrt_worker", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        last = plain((done.stderr.strip().splitlines() or [""])[-1], 200)
        raise UserError(f"the builder of {target} ended with {how} on {graph.name}: {last}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise UserError(f"{target} cannot build {graph.name}: {plain(answer['error'], 400)}")
    return Built(**answer, capabilities=chosen)
