"""Host of the ea packages: hooks, pipeline, samplers, training loop and the `ea` command.

Nothing here imports torch until it is asked for, so that `ea --help` answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ea_runtime.generation.pipeline import VideoPipeline
    from ea_runtime.hookspecs import hookimpl
    from ea_runtime.plugins.host import list_plugins

__all__ = ["VideoPipeline", "hookimpl", "list_plugins"]

_HOME = {
    "VideoPipeline": "ea_runtime.generation.pipeline",
    "hookimpl": "ea_runtime.hookspecs",
    "list_plugins": "ea_runtime.plugins.host",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ea-runtime")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ea_runtime' has no attribute {name!r}")
