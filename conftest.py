"""What holds for the tests of every package."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ea_runtime import plugins


@pytest.fixture(autouse=True)
def _the_same_host_afterwards() -> Iterator[None]:
    """A test that runs a command, or makes a host with plugins of its own, leaves none of it to the next one."""
    before = plugins._host
    yield
    plugins._host = before
