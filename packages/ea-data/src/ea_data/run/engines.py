"""The engines by name."""

from __future__ import annotations

from ea_data.run.engine import Limits, LocalEngine, TaskEngine
from ea_data.run.worker import Worker
from ea_runtime.errors import UserError


def make_engine(name: str, worker: Worker, limits: Limits) -> TaskEngine:
    """name: "local" or "ray". Raises UserError if it is neither, or if Ray is not installed."""
    if name == "local":
        return LocalEngine(worker, limits)
    if name == "ray":
        from ea_data.run.ray_engine import RayEngine

        return RayEngine(worker, limits)
    raise UserError(f"`--engine` must be local or ray, got {name!r}")
