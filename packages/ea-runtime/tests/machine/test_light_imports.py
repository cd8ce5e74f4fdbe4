"""Imports collect no garbage, and leave the collector as it was."""

from __future__ import annotations

import gc

import pytest

from ea_runtime.machine.light_imports import without_collecting


@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_is_as_it_was(is_on: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if is_on else gc.disable)()
        with without_collecting():
            assert not gc.isenabled()
        assert gc.isenabled() is is_on
    finally:
        (gc.enable if before else gc.disable)()
