"""The device of a run and the memory that is free there, found without torch."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ea_runtime.errors import UserError

_UNITS = {"K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"\s*(\d{1,12}(?:\.\d{1,6})?)\s*([KMGT])(i?)B\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Room:
    """Where a run would compute.

    kind: "cpu", "cuda" or "mps". free: bytes for this program on the device; on a CPU, and on a Mac, the machine's own
    memory. host_free: of the machine. dtype: the number format that suits the device.
    """

    kind: str
    name: str
    free: int
    host_free: int
    dtype: str

    @property
    def is_shared(self) -> bool:
        """True if the device uses the machine's own memory."""
        return self.kind != "cuda"


def find_room(device: str | None = None, memory: int | None = None) -> Room:
    """The device asked for, or the best one here, as `ea generate` chooses it.

    memory: bytes to count as free on it. Raises UserError for a device that is not here.
    """
    host = free_memory_of_host()
    if device is not None and not re.fullmatch(r"auto|(cpu|mps|cuda)(:\d{1,3})?", device):
        raise UserError(f"`device` must be cpu, cuda, cuda:N or mps, got {device[:40]!r}")
    asked, _, number = ("" if device == "auto" else device or "").partition(":")
    card = None if asked in ("cpu", "mps") else _find_card(int(number or 0))
    if asked == "cuda" and card is None:
        if memory is None:
            raise UserError(
                f"`device` is {device!r}, but this machine has no such NVIDIA card; use cpu, or plan for "
                "another machine with `ea plan --memory 24GiB`"
            )
        card = _Card("another machine's card", memory, (8, 0))
    if card is not None:
        dtype = "bfloat16" if card.capability >= (8, 0) else "float16"
        return Room("cuda", card.name, card.free if memory is None else memory, host, dtype)
    is_mac = sys.platform == "darwin" and platform.machine() == "arm64"
    kind = asked or ("mps" if is_mac else "cpu")
    if kind == "mps" and not is_mac and memory is None:
        raise UserError("`device` is 'mps', but this machine has no Apple GPU; use cpu or leave it out")
    return Room(kind, platform.machine(), host if memory is None else memory, host, "float32")


def parse_memory(text: str) -> int:
    """Bytes of "24GiB" or "24GB". Raises UserError."""
    match = _SIZE.fullmatch(text)
    size = 0 if match is None else int(float(match[1]) * (_BINARY if match[3] else _UNITS)[match[2].upper()])
    if size < 1:
        raise UserError(f"`memory` must be a size such as 24GiB or 800MB, got {text[:40]!r}")
    return size


def free_memory_of_host() -> int:
    """Bytes that this program can take without swapping, within the limits of its container."""
    import psutil

    free = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        most, now = _number(limit), _number(used)
        if most is not None and now is not None:
            free = min(free, max(most - now + _reclaimable(), 0))
    return free


def _reclaimable() -> int:
    """Bytes of files in memory that count as used in a container, and give way."""
    for path in ("/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat"):
        try:
            found = re.search(r"^(?:total_)?inactive_file (\d+)$", Path(path).read_text(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


@dataclass(frozen=True, slots=True)
class _Card:
    name: str
    free: int
    capability: tuple[int, int]


class _MemoryInfo(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _find_card(index: int) -> _Card | None:
    """An NVIDIA card by NVIDIA's own library, which comes with the driver; None if there is no such card."""
    try:
        if "+cpu" in version("torch"):
            return None
        library = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except (OSError, PackageNotFoundError):
        return None
    visible = [one.strip() for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        if index >= len(visible) or visible[index] in ("", "-1"):
            return None
        place = visible[index]
    else:
        place = str(index)
    if library.nvmlInit_v2():
        return None
    try:
        card = ctypes.c_void_p()
        by_index = place.isdigit()
        find = library.nvmlDeviceGetHandleByIndex_v2 if by_index else library.nvmlDeviceGetHandleByUUID
        if find(ctypes.c_uint(int(place)) if by_index else place.encode(), ctypes.byref(card)):
            return None
        memory, name = _MemoryInfo(), ctypes.create_string_buffer(96)
        major, minor = ctypes.c_int(), ctypes.c_int()
        if library.nvmlDeviceGetMemoryInfo(card, ctypes.byref(memory)):
            return None
        library.nvmlDeviceGetName(card, name, 96)
        library.nvmlDeviceGetCudaComputeCapability(card, ctypes.byref(major), ctypes.byref(minor))
        return _Card(name.value.decode(errors="replace"), memory.free, (major.value, minor.value))
    finally:
        library.nvmlShutdown()
