"""Imports without parts that take long and are not needed, and without looking for garbage between them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

#: packages that diffusers and peft import if they are installed: 200 MB and seconds, for what is not used through them
_QUANTIZERS = ("torchao", "bitsandbytes")


def import_diffusers() -> None:
    """diffusers without torch._dynamo, which takes as long as torch; diffusers has a fallback for its one use.

    Without packages that quantise, too: models/quantize_layers.py calls them itself.
    """
    with without_collecting(), _hidden("torch._dynamo"), without_quantizers():
        import_module("diffusers.utils.torch_utils")


@contextmanager
def without_collecting() -> Iterator[None]:
    """Collects no garbage inside: imports make a million objects, and none; a sixth of what torch takes to import."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def without_quantizers() -> Iterator[None]:
    """Imports inside find no torchao and no bitsandbytes, unless they were imported before."""
    with _hidden(*_QUANTIZERS):
        yield


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Imports inside do not find these packages, unless they were imported before."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)
