"""The device of a plan and the memory that is free there, on machines that are made up."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ea_runtime.errors import UserError
from ea_runtime.planning import room
from ea_runtime.planning.room import Room, find_room, free_memory_of_host, parse_memory


def machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    cards: tuple[tuple[int, int], ...] = (),
    system: str = "linux",
    chip: str = "x86_64",
) -> None:
    """With 100 bytes of memory, and cards of these capabilities with 50 bytes each."""

    def find(index: int) -> Any:
        return room._Card(f"card {index}", 50, cards[index]) if index < len(cards) else None

    monkeypatch.setattr(room, "_find_card", find)
    monkeypatch.setattr(room, "free_memory_of_host", lambda: 100)
    monkeypatch.setattr(room.sys, "platform", system)
    monkeypatch.setattr(room.platform, "machine", lambda: chip)


def refused(*arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        find_room(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_card_it_is_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    own = Room("cpu", "x86_64", 100, 100, "float32")
    for device in (None, "auto", "cpu", "cpu:3"):
        assert find_room(device) == own
    assert find_room(None, 7) == Room("cpu", "x86_64", 7, 100, "float32")
    assert own.is_shared
    assert "`device` is 'cuda', but this machine has no such NVIDIA card; use cpu" in refused("cuda")
    assert "`device` is 'mps', but this machine has no Apple GPU; use cpu or leave it out" in refused("mps")
    assert find_room("mps", 9) == Room("mps", "x86_64", 9, 100, "float32")
    assert find_room("cuda", 9) == Room("cuda", "another machine's card", 9, 100, "bfloat16")
    with pytest.raises(AttributeError):
        own.free = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_card_comes_first_and_says_its_format(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, cards=((7, 5), (8, 0), (9, 0)))
    assert (
        find_room() == find_room("cuda") == find_room("cuda:0") == Room("cuda", "card 0", 50, 100, "float16")
    )
    assert find_room("cuda:1") == Room("cuda", "card 1", 50, 100, "bfloat16")
    assert find_room("cuda:2", 7) == Room("cuda", "card 2", 7, 100, "bfloat16")
    assert not find_room().is_shared
    assert find_room("cpu").kind == "cpu"
    assert find_room("mps", 9).kind == "mps"
    assert "no such NVIDIA card" in refused("cuda:3")


def test_a_mac_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, system="darwin", chip="arm64")
    assert find_room() == find_room("mps") == Room("mps", "arm64", 100, 100, "float32")
    assert find_room("cpu").kind == "cpu"
    for system, chip in (("darwin", "x86_64"), ("linux", "arm64")):
        machine(monkeypatch, system=system, chip=chip)
        assert find_room().kind == "cpu"


@pytest.mark.parametrize(
    "device", ["tpu", "", "cuda:", "cuda:1234", "cpu:x", "CPU", "cuda 0", "auto:1", "cpu\n"]
)
def test_devices_that_are_none(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    machine(monkeypatch)
    assert refused(device).startswith("`device` must be cpu, cuda, cuda:N or mps, got ")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 << 30),
        ("1KiB", 1 << 10),
        ("1MiB", 1 << 20),
        ("1TiB", 1 << 40),
        ("1kB", 1000),
        ("1MB", 1000**2),
        ("1GB", 1000**3),
        ("1TB", 1000**4),
        (" 1.5 gib ", 3 << 29),
        ("0.001KB", 1),
    ],
)
def test_sizes_in_words(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    "text", ["", "24", "GB", "0GB", "0.0001KB", "-1GB", "1e3GB", "1PB", "1GBB", "1 G B", "1.GB"]
)
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="`memory` must be a size such as 24GiB or 800MB, got"):
        parse_memory(text)


# --- a container ---------------------------------------------------------------------------------------------

NEW = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat")
OLD = (
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    "/sys/fs/cgroup/memory/memory.stat",
)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 1000),
        ({NEW[0]: "max\n", NEW[1]: "300\n"}, 1000),
        ({NEW[0]: "800\n", NEW[1]: "300\n"}, 500),
        ({NEW[0]: "800\n"}, 1000),
        ({NEW[0]: "800", NEW[1]: "300", NEW[2]: "anon 7\ninactive_file 100\nx 1\n"}, 600),
        ({NEW[0]: "800", NEW[1]: "300", NEW[2]: "anon 7\n"}, 500),
        ({NEW[0]: "800", NEW[1]: "900"}, 0),
        ({NEW[0]: "5000", NEW[1]: "300"}, 1000),
        ({NEW[0]: str(1 << 60), NEW[1]: "300"}, 1000),
        ({OLD[0]: "800", OLD[1]: "300"}, 500),
        ({OLD[0]: "800", OLD[1]: "300", OLD[2]: "total_inactive_file 50\n"}, 550),
        ({OLD[0]: "800", OLD[1]: "300", OLD[2]: "total_inactive_file 50 7\n"}, 500),
    ],
)
def test_free_memory_is_within_the_limits_of_a_container(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], free: int
) -> None:
    import psutil

    def read_text(path: Path, *_: Any, **__: Any) -> str:
        if str(path) in files:
            return files[str(path)]
        raise FileNotFoundError(str(path))

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr(Path, "read_text", read_text)
    assert free_memory_of_host() == free


# --- NVIDIA's library ----------------------------------------------------------------------------------------


class Library:
    """The functions of libnvidia-ml that are used; `fails`: those that say no."""

    def __init__(self, fails: tuple[str, ...] = ()) -> None:
        self.fails = fails
        self.asked: list[Any] = []
        self.is_open = False
        self.names: list[str] = []

    def nvmlInit_v2(self) -> int:
        self.is_open = "init" not in self.fails
        return int(not self.is_open)

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, card: Any) -> int:
        self.asked.append(index.value)
        return int("card" in self.fails)

    def nvmlDeviceGetHandleByUUID(self, name: bytes, card: Any) -> int:
        self.asked.append(name)
        return int("card" in self.fails)

    def nvmlDeviceGetMemoryInfo(self, card: Any, memory: Any) -> int:
        found = ctypes.cast(memory, ctypes.POINTER(room._MemoryInfo)).contents
        found.total, found.free, found.used = 100, 60, 40
        return int("memory" in self.fails)

    def nvmlDeviceGetName(self, card: Any, name: Any, size: int) -> None:
        assert size == ctypes.sizeof(name)  # what the driver may write
        name.value = b"a card"

    def nvmlDeviceGetCudaComputeCapability(self, card: Any, major: Any, minor: Any) -> None:
        for place, value in ((major, 9), (minor, 1)):
            ctypes.cast(place, ctypes.POINTER(ctypes.c_int)).contents.value = value


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setattr(room, "version", lambda name: "2.13.0")
    monkeypatch.setattr(room.ctypes, "CDLL", lambda name: found.names.append(name) or found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return found


@pytest.mark.parametrize(
    ("visible", "index", "asked"),
    [
        (None, 0, 0),
        (None, 3, 3),
        ("2, 5", 0, 2),
        ("2, 5", 1, 5),
        ("2, 5", 2, None),
        ("", 0, None),
        ("-1", 0, None),
        ("GPU-abc", 0, b"GPU-abc"),
    ],
)
def test_the_card_that_is_visible(
    library: Library, monkeypatch: pytest.MonkeyPatch, visible: str | None, index: int, asked: Any
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = room._find_card(index)
    assert found == (None if asked is None else room._Card("a card", 60, (9, 1)))
    assert library.asked == ([] if asked is None else [asked])
    assert not library.is_open


@pytest.mark.parametrize(("system", "name"), [("linux", "libnvidia-ml.so.1"), ("win32", "nvml.dll")])
def test_the_library_comes_with_the_driver(
    library: Library, monkeypatch: pytest.MonkeyPatch, system: str, name: str
) -> None:
    monkeypatch.setattr(room.sys, "platform", system)
    card = room._find_card(0)
    assert card is not None
    assert library.names == [name]
    with pytest.raises(AttributeError):
        card.free = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("fault", ["init", "card", "memory"])
def test_a_card_that_does_not_answer_is_none(library: Library, fault: str) -> None:
    library.fails = (fault,)
    assert room._find_card(0) is None
    assert not library.is_open


def test_a_torch_without_cuda_and_a_machine_without_a_driver(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "version", lambda name: "2.13.0+cpu")
    assert room._find_card(0) is None

    def fail(name: str) -> Any:
        raise OSError(name)

    def missing(name: str) -> Any:
        raise room.PackageNotFoundError(name)

    monkeypatch.setattr(room, "version", missing)
    assert room._find_card(0) is None
    monkeypatch.setattr(room, "version", lambda name: "2.13.0")
    monkeypatch.setattr(room.ctypes, "CDLL", fail)
    assert room._find_card(0) is None
