"""What holds for the tests of every package."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch is imported: processes side by side that each take every core hinder one another
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

from ea_runtime.plugins import host as plugins


@pytest.fixture(scope="session", autouse=True)
def _a_cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered about the machine: nothing at the start, and nothing in the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _the_same_host_afterwards() -> Iterator[None]:
    """A test that runs a command, or makes a host with plugins of its own, leaves none of it to the next one."""
    before = plugins._host
    yield
    plugins._host = before
