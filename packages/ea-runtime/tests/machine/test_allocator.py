from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: Frees blocks of growing size first, which makes glibc keep the later ones.
_CHILD = """
import sys
from pathlib import Path
from ea_runtime.machine.allocator import tune_allocator
if sys.argv[1] == "on":
    assert tune_allocator()
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
for size in (1 << 20, 8 << 20, 31 << 20):
    libc.free(libc.malloc(size))
blocks = [libc.malloc(8 << 20) for _ in range(20)]
for block in blocks:
    ctypes.memset(block, 1, 8 << 20)
for block in blocks[:-1]:  # the last one keeps the heap from shrinking
    libc.free(block)
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
"""
#: blocks that stay in the heap, of which the last one keeps it from shrinking
_HEAP = """
import ctypes, sys
from pathlib import Path
from ea_runtime.machine.allocator import return_free_memory, tune_allocator
if sys.argv[1] == "on":
    assert tune_allocator()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.mallopt(-3, 4 << 20)
blocks = [libc.malloc(1 << 20) for _ in range(200)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
for block in blocks[:-1]:
    libc.free(block)
before = resident()
return_free_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_blocks_leave_the_process() -> None:
    sizes = {}
    for mode in ("on", "off"):
        words = [sys.executable, "-c", _CHILD, mode]
        sizes[mode] = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert sizes["off"] - sizes["on"] > 100 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
@pytest.mark.parametrize(("mode", "is_returned"), [("on", True), ("off", False)])
def test_free_pages_inside_the_heap_are_returned_by_a_tuned_program_alone(
    mode: str, is_returned: bool
) -> None:
    done = subprocess.run([sys.executable, "-c", _HEAP, mode], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 150 << 20) == is_returned
