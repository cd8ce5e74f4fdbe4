"""Helpers for tests of plugins: a host with a plugin in it, and small fakes for the parts of a model.

    from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae, host_with

    def test_my_sampler():
        with host_with(my_plugin):
            pipe = VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder())
            frames = pipe("a red circle", 9, height=32, width=32, num_inference_steps=2, sampler="mine").frames

Importing this module loads no torch; the Fake classes load it when they are first named.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ea_runtime.testing.hosts import host_with, write_package

if TYPE_CHECKING:
    from ea_runtime.testing.fakes import FakeDenoiser, FakeTextEncoder, FakeVae

__all__ = ["FakeDenoiser", "FakeTextEncoder", "FakeVae", "host_with", "write_package"]


def __getattr__(name: str) -> Any:
    if name.startswith("Fake") and name in __all__:
        return getattr(import_module("ea_runtime.testing.fakes"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
