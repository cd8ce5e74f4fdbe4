"""Builds one engine in a separate process: `python -m ea_runtime.export.tensorrt_worker JOB.json`.

A builder can crash on a graph, and it keeps its memory: neither may affect the calling program. Writes the engine
and prints one JSON object as the last line. Imports no torch.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from ea_runtime.files.atomic import atomic_file
from ea_runtime.machine.memory import peak_rss

_MEMORY = re.compile(r"Total Activation Memory:\s*([0-9]+)")
_WEIGHTS = re.compile(r"Total Weights Memory:\s*([0-9]+)")


def make_logger(module: Any) -> Any:
    """A logger that keeps the builder's errors, warnings and figures."""

    class Log(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.activation: list[int] = []
            self.weights: list[int] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == module.ILogger.Severity.WARNING:
                self.warnings.append(message)
            self.activation += [int(found) for found in _MEMORY.findall(message)]
            self.weights += [int(found) for found in _WEIGHTS.findall(message)]

    return Log()


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Parses, builds, writes. Returns the figures, or `error` if it failed."""
    from ea_runtime.export.tensorrt_api import load_api

    start = time.perf_counter()
    api = load_api(job["target"])
    module = api.module
    log = make_logger(module)
    builder = module.Builder(log)
    network = builder.create_network(api.network_flags())
    parser = module.OnnxParser(network, log)
    if not parser.parse_from_file(job["graph"]):
        errors = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        return {"error": f"the parser refused the graph: {'; '.join(errors[:2] or log.errors[:2])}"}
    config = builder.create_builder_config()
    api.set_capabilities(config, job["capabilities"])
    if job["memory_limit"]:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, job["memory_limit"])
    config.max_aux_streams = 0  # parallel kernels would need their memory at the same time
    if job["refittable"]:
        config.set_flag(module.BuilderFlag.REFIT)
    cache_file = Path(job["timing_cache"]) if job["timing_cache"] else None
    if cache_file is not None:
        held = cache_file.read_bytes() if cache_file.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(held), ignore_mismatch=False)
    layers = network.num_layers
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"error": f"the builder gave up: {'; '.join(log.errors[-2:])}"}
    with Path(job["engine"]).open("wb") as file:
        file.write(memoryview(plan))
    if cache_file is not None:
        with atomic_file(cache_file) as partial:
            partial.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return {
        "version": api.version,
        "layers": layers,
        "engine_bytes": Path(job["engine"]).stat().st_size,
        "activation_bytes": max(log.activation, default=None),
        "weights_bytes": max(log.weights, default=None),
        "seconds": round(time.perf_counter() - start, 2),
        "peak_bytes": peak_rss(),
        "warnings": list(dict.fromkeys(log.warnings))[:20],
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(build(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))) + "\n")
