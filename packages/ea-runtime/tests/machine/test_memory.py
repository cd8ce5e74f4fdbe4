"""Peak memory counts this process only."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = "from ea_runtime.machine.memory import peak_rss; held = bytearray({}); print(peak_rss())"


def peak_of_a_child(holding: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(holding)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_what_a_process_holds_counts():
    small, large = peak_of_a_child(0), peak_of_a_child(200_000_000)
    assert 195_000_000 < large - small < 205_000_000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the kernel counts the parent too")
def test_what_the_parent_holds_does_not():
    small = peak_of_a_child(0)
    held = bytearray(300_000_000)
    assert peak_of_a_child(0) < small + 50_000_000
    assert len(held) == 300_000_000
