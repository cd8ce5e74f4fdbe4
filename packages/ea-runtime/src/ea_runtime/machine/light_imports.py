"""Imports without parts that take long and are not needed."""

from __future__ import annotations

import sys
from importlib import import_module


def import_diffusers() -> None:
    """diffusers without torch._dynamo, which takes as long as torch; diffusers has a fallback for its one use."""
    blocked = "torch._dynamo" not in sys.modules
    if blocked:
        sys.modules["torch._dynamo"] = None  # pyright: ignore[reportArgumentType]
    try:
        import_module("diffusers.utils.torch_utils")
    finally:
        if blocked:
            del sys.modules["torch._dynamo"]
