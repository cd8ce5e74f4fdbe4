"""Safetensors headers and the files of a part: each single fault is refused, and what is at a limit is not.

Files are made byte by byte, so that the writer of safetensors cannot refuse them first.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from ea_runtime.errors import UserError
from ea_runtime.models import weights
from ea_runtime.models.weights import (
    DTYPES,
    PartWeights,
    empty_tensors,
    find_weights,
    is_pickle,
    iter_tensors,
    read_header,
    read_weight_map,
)


def entry(begin: int = 0, end: int = 8, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    shape = list(shape) if isinstance(shape, tuple) else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: Any, data: bytes = bytes(8)) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def refused(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- one file ----------------------------------------------------------------------------------------------


def test_a_header_gives_each_tensor_its_place(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry(8, 10, "U8"),
        "a": entry(),
        "none": entry(8, 8, shape=(0, 3)),
    }
    path = write(tmp_path / "a.safetensors", header, bytes(10))
    start = path.stat().st_size - 10
    found = read_header(path)
    assert (found.files, found.metadata) == ((path,), {"format": "pt"})
    assert {name: (one.begin - start, one.end - start) for name, one in found.tensors.items()} == {
        "b": (8, 10),
        "a": (0, 8),
        "none": (8, 8),
    }
    assert found.shapes == {"b": (2,), "a": (2,), "none": (0, 3)}
    assert found.num_bytes == 10
    assert list(found.dtypes.items()) == [("U8", 2), ("F32", 2)]
    assert found.tensors["a"].file == path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {**entry(), "more": 1}}, "'a' must have dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "must have dtype, shape and data_offsets"),
        *(
            ({"a": item}, "must have dtype, shape and data_offsets")
            for item in (7, None, [1, 2, 3], list(entry()))
        ),
        ({"a": entry(dtype="F31")}, "has dtype 'F31', not one of F64, F32"),
        *(({"a": entry(dtype=dtype)}, "has dtype") for dtype in (["F32"], {}, None, 7)),
        ({"a": entry(shape=(-2,))}, "has shape"),
        ({"a": entry(shape=(True, 2))}, "has shape"),
        ({"a": entry(shape=(2.0,))}, "has shape"),
        *(({"a": entry(shape=shape, end=4)}, "has shape") for shape in ("2", "", 7, None, {})),
        ({"a": entry(shape=(*[1] * 16, 2))}, "has shape"),
        ({"a": entry(shape=(1 << 48, 0), end=0)}, "has shape"),
        ({"a": {**entry(), "data_offsets": [0, 8, 8]}}, "has data_offsets"),
        *(
            ({"a": {**entry(), "data_offsets": one}}, "has data_offsets")
            for one in ("08", 7, None, {"0": 0, "8": 8})
        ),
        ({"a": {**entry(), "data_offsets": [-8, 0]}}, "has data_offsets"),
        ({"a": {**entry(), "data_offsets": [False, 8]}}, "has data_offsets"),
        ({"a": entry(end=7)}, "takes 7 bytes, its shape needs 8"),
        ({"a": entry(end=4), "b": entry(4, 8)}, "takes 4 bytes, its shape needs 8"),
        ({"a": entry(), "b": entry()}, "overlap another's or leave a gap"),
        ({"a": entry(4, 8, shape=(1,))}, "'a' overlap another's or leave a gap"),
        ({"a": entry(0, 4, shape=(1,))}, "bytes, its tensors end at"),
        ({}, "bytes, its tensors end at"),
        ({"__metadata__": {"a": 1}, "a": entry()}, "its `__metadata__` must map text to text"),
        ({"__metadata__": ["a"], "a": entry()}, "its `__metadata__` must map text to text"),
        ([1], "it is no JSON object"),
        (b'{"a": 1, "a": 2}', "its header names a tensor twice"),
        (b"{]", "is damaged"),
        (b'{"\xff": 1}', "is damaged"),
        (b"[" * 100_000, "is damaged"),
    ],
)
def test_a_header_with_one_fault_is_refused(tmp_path: Path, header: Any, message: str) -> None:
    line = refused(read_header, write(tmp_path / "a.safetensors", header))
    assert line.startswith("safetensors file 'a.safetensors' is damaged: ")
    assert line.endswith("; download it again")
    assert message in line
    assert len(line) < 400


def test_sixteen_dimensions_and_the_largest_number_are_taken(tmp_path: Path) -> None:
    shapes = {"many": (*[1] * 15, 2), "wide": ((1 << 48) - 1, 0)}
    header = {"many": entry(shape=shapes["many"]), "wide": entry(8, 8, shape=shapes["wide"])}
    assert read_header(write(tmp_path / "a.safetensors", header)).shapes == shapes


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_is_torchs_and_has_its_size(tmp_path: Path, dtype: str) -> None:
    torch_name, size = DTYPES[dtype]
    values = torch.ones(3, dtype=getattr(torch, torch_name))
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"a": values}))
    found = read_header(path)
    assert (found.dtypes, found.num_bytes, values.element_size()) == ({dtype: 3}, 3 * size, size)
    (pair,) = iter_tensors(found, ["a"])
    assert pair[0] == "a"
    assert pair[1].dtype == values.dtype
    assert torch.equal(pair[1].view(torch.uint8), values.view(torch.uint8))
    (empty,) = empty_tensors(found, ["a"])
    assert (empty[1].dtype, empty[1].shape, empty[1].device.type) == (values.dtype, (3,), "meta")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(7),
        (2).to_bytes(8, "little") + b"{",
        (1).to_bytes(8, "little") + b"{}",
        (0).to_bytes(8, "little") + b"{}",
        (1 << 63).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "big") + b"{}",
    ],
)
def test_a_length_that_cannot_be(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw)
    line = refused(read_header, path)
    assert "is damaged or cut short: its header would have" in line
    assert f"the file has {len(raw)}; download it again" in line


def test_the_least_file_and_the_largest_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights.MAX_HEADER_BYTES == 64 << 20
    assert read_header(write(tmp_path / "a.safetensors", b"{}", b"")).tensors == {}
    monkeypatch.setattr(weights, "MAX_HEADER_BYTES", 8)
    read_header(write(tmp_path / "a.safetensors", b"{}" + b" " * 6, b""))
    assert "its header would have 9 bytes" in refused(
        read_header, write(tmp_path / "a.safetensors", b"{}" + b" " * 7, b"")
    )


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        assert "is missing or no regular file" in refused(read_header, path)
    assert "file 'vae/x.safetensors' is missing" in refused(read_header, tmp_path, "vae/x.safetensors")


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.safetensors", {"a": entry()})

    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", fail)
    assert refused(read_header, path) == "safetensors file 'a.safetensors' cannot be read: Permission denied"


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.bool]),
    cut=st.integers(1, 8),
)
def test_what_safetensors_writes_comes_back_and_a_shorter_file_never_does(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], dtype: torch.dtype, cut: int
) -> None:
    tensors = {
        str(n): torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
        for n, shape in enumerate(shapes)
    }
    raw = save(tensors)
    path = tmp_path_factory.mktemp("header") / "a.safetensors"
    path.write_bytes(raw)
    found = read_header(path)
    again = dict(iter_tensors(found, tensors.keys()))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    for damaged in (raw[:-cut], raw + bytes(cut)):
        path.write_bytes(damaged)
        refused(read_header, path)


# --- reading -----------------------------------------------------------------------------------------------


def stored(path: Path) -> tuple[PartWeights, dict[str, torch.Tensor]]:
    """Three tensors of unequal sizes, whose order in the file is not that of their names."""
    tensors = {"c": torch.arange(5.0), "a": torch.tensor([3, 4], dtype=torch.int16), "b": torch.ones(2, 2)}
    save_file(tensors, path)
    return read_header(path), tensors


@pytest.mark.parametrize("is_shared", [False, True])
def test_tensors_are_read_as_stored_in_the_order_of_their_bytes(tmp_path: Path, is_shared: bool) -> None:
    found, tensors = stored(tmp_path / "a.safetensors")
    begins = []
    places = set()
    for name, tensor in iter_tensors(found, ["a", "c", "stranger"], is_shared=is_shared):
        assert torch.equal(tensor, tensors[name])
        assert tensor.dtype == tensors[name].dtype
        begins.append(found.tensors[name].begin)
        places.add(tensor.data_ptr())
        assert tensor.untyped_storage().nbytes() == (20 if is_shared else tensor.nbytes)
    assert begins == sorted(begins)
    assert len(begins) == 2
    assert not is_shared or len(places) == 1  # one memory for all, of the largest's size
    assert [name for name, _ in empty_tensors(found, ["c"])] == ["c"]
    assert list(iter_tensors(found, [], is_shared=is_shared)) == []


def test_without_sharing_each_tensor_has_its_memory(tmp_path: Path) -> None:
    found, tensors = stored(tmp_path / "a.safetensors")
    kept = dict(iter_tensors(found, list(tensors)))
    assert all(torch.equal(kept[name], tensors[name]) for name in tensors)


def test_each_tensor_is_read_once_from_its_file(tmp_path: Path) -> None:
    """Shards whose tensors are at the same places."""
    tensors = {name: torch.full((2,), float(n)) for n, name in enumerate("abc")}
    for name, tensor in tensors.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    headers = [read_header(tmp_path / f"{name}.safetensors") for name in "bca"]
    files = tuple(header.files[0] for header in headers)
    found = PartWeights(files, {name: one for header in headers for name, one in header.tensors.items()})
    read = list(iter_tensors(found, ["a", "b", "c"]))
    assert [name for name, _ in read] == ["b", "c", "a"]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.files = ()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.tensors["a"].begin = 0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    found, _ = stored(path)
    path.write_bytes(path.read_bytes()[:-3])
    line = refused(lambda: dict(iter_tensors(found, ["a", "b", "c"])))
    assert line.endswith("of 'a.safetensors' ends early; download the file again")


def test_a_short_read_is_continued(tmp_path: Path) -> None:
    """A disk may give fewer bytes than were asked for."""

    class Slow:
        def __init__(self, raw: bytes) -> None:
            self.raw, self.at = raw, 0

        def seek(self, place: int) -> None:
            self.at = place

        def readinto(self, view: memoryview) -> int:
            part = self.raw[self.at : self.at + min(3, len(view))]
            view[: len(part)] = part
            self.at += len(part)
            return len(part)

    path = tmp_path / "a.safetensors"
    found, tensors = stored(path)
    file: Any = Slow(path.read_bytes())
    assert torch.equal(weights._read(file, "c", found.tensors["c"], None), tensors["c"])


def test_a_bool_byte_of_a_damaged_file_is_true(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"a": entry(0, 3, "BOOL", (3,))}, bytes([0, 1, 255]))
    (pair,) = iter_tensors(read_header(path), ["a"])
    assert pair[1].view(torch.uint8).tolist() == [0, 1, 1]


# --- a part's files ----------------------------------------------------------------------------------------

ONE, TWO = {"a": torch.ones(2)}, {"b": torch.zeros(3)}


def part(folder: Path, *names: str, of: str = "vae", index: dict[str, Any] | None = None) -> Path:
    """A model folder with these files in a part; safetensors hold ONE, those with "2" in their names TWO."""
    place = folder / of
    place.mkdir(parents=True)
    for name in names:
        if name.endswith(".safetensors"):
            save_file(TWO if "2" in name else ONE, place / name, {"from": name})
        else:
            (place / name).write_text(json.dumps(index) if name.endswith(".safetensors.index.json") else "x")
    return folder


SHARDS = {"weight_map": {"b": "s-2.safetensors", "a": "s-1.safetensors"}}
INDEX = ".safetensors.index.json"
BOTH = ["s-1.safetensors", "s-2.safetensors"]


@pytest.mark.parametrize(
    ("of", "names", "taken"),
    [
        ("vae", ["diffusion_pytorch_model.safetensors"], ["diffusion_pytorch_model.safetensors"]),
        ("vae", ["model.safetensors"], ["model.safetensors"]),
        ("vae", ["diffusion_pytorch_model.safetensors", "model.safetensors"], ["diffusion_pytorch_model.safetensors"]),
        ("vae", ["other.safetensors", "model.safetensors"], ["model.safetensors"]),
        ("vae", ["other.safetensors"], ["other.safetensors"]),
        ("vae", ["other.safetensors", "x.bin"], ["other.safetensors"]),
        ("text_encoder", ["model.safetensors"], ["model.safetensors"]),
        ("text_encoder", ["diffusion_pytorch_model.safetensors", "model.safetensors"], ["model.safetensors"]),
        ("vae", ["model" + INDEX, *BOTH], BOTH),
        ("vae", ["other" + INDEX, *BOTH], BOTH),
        ("text_encoder", ["model" + INDEX, *BOTH], BOTH),
        ("vae", ["model.safetensors", "model" + INDEX], ["model.safetensors"]),
        ("vae", ["diffusion_pytorch_model" + INDEX, "model.safetensors", *BOTH], BOTH),
    ],
)  # fmt: skip
def test_the_files_of_a_part(tmp_path: Path, of: str, names: list[str], taken: list[str]) -> None:
    found = find_weights(part(tmp_path, *names, of=of, index=SHARDS), of)
    assert [path.name for path in found.files] == taken
    assert list(found.tensors) == (["a"] if len(taken) == 1 else ["b", "a"])
    assert found.metadata == {"from": taken[0]}


@pytest.mark.parametrize(
    ("of", "names", "message"),
    [
        ("vae", [], "has no weights; expected vae/diffusion_pytorch_model.safetensors (or its shards"),
        ("vae", ["readme.txt"], "has no weights"),
        ("text_encoder", [], "expected text_encoder/model.safetensors (or its shards"),
        ("image_encoder", [], "expected image_encoder/model.safetensors (or its shards"),
        ("vae", ["a.safetensors", "b.safetensors"], "has weights under other names; expected vae/diffusion"),
        ("vae", ["a" + INDEX, "b" + INDEX], "has weights under other names"),
        ("vae", ["a" + INDEX, "b" + INDEX, "c.safetensors"], "has weights under other names"),
        ("text_encoder", ["diffusion_pytorch_model.safetensors"], "has weights under other names"),
        ("text_encoder", ["other" + INDEX], "has weights under other names"),
        ("vae", ["x.bin", "y.txt"], "holds its weights as a pickle ('x.bin'), which can run code"),
        ("vae", ["model.bin.index.json"], "holds its weights as a pickle ('model.bin.index.json')"),
    ],
)
def test_a_part_without_weights_that_can_be_read(
    tmp_path: Path, of: str, names: list[str], message: str
) -> None:
    assert message in refused(find_weights, part(tmp_path, *names, of=of, index=SHARDS), of)


def test_a_part_that_is_not_there_and_one_outside(tmp_path: Path) -> None:
    assert "has no weights" in refused(find_weights, tmp_path, "vae")
    assert "must be a relative path" in refused(find_weights, tmp_path, "../vae")


@pytest.mark.parametrize(
    "name", ["a.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl", "a.pickle", "A.BIN", "a.safetensors.bin"]
)
def test_names_that_torch_would_unpickle(name: str) -> None:
    assert is_pickle(name) is True
    assert is_pickle(f"{name}.safetensors") is False


def shards(folder: Path, index: Any) -> str:
    names = ("model" + INDEX, "s-1.safetensors", "s-2.safetensors")
    return refused(find_weights, part(folder, *names, index=index), "vae")


@pytest.mark.parametrize("table", [{}, [], None, "x", {"a": 1}])
def test_an_index_without_a_map(tmp_path: Path, table: Any) -> None:
    line = shards(tmp_path, {"weight_map": table})
    wanted = "must name weight files next to it, got 1" if table == {"a": 1} else "must have a `weight_map`"
    assert wanted in line


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a.safetensors", "b/a.safetensors", "b\\a.safetensors", "/a", None]
)
def test_an_index_that_leads_elsewhere(tmp_path: Path, name: Any) -> None:
    assert "must name weight files next to it, got" in shards(tmp_path, {"weight_map": {"a": name}})


def test_an_index_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    assert "names 'x.bin', which is no safetensors file; run `ea models convert" in shards(
        tmp_path, {"weight_map": {"a": "s-1.safetensors", "b": "x.bin"}}
    )
    line = shards(
        tmp_path / "more",
        {"weight_map": {"b": "s-1.safetensors", "c": "s-1.safetensors", "a": "s-1.safetensors"}},
    )
    assert "names 2 tensors that its files do not hold, first 'b'; download it again" in line


def test_an_index_names_a_thousand_files_at_most(tmp_path: Path) -> None:
    table = {str(n): f"{n}.safetensors" for n in range(1000)}
    part(tmp_path, "model" + INDEX, index={"weight_map": table})
    found, where = read_weight_map(tmp_path, "vae", "model" + INDEX)
    assert found == table
    assert where.startswith(f"'vae/model{INDEX}' in model folder")
    (tmp_path / "vae" / f"model{INDEX}").write_text(
        json.dumps({"weight_map": table | {"x": "x.safetensors"}})
    )
    assert "names 1,001 files, more than the 1,000 it may name" in refused(
        read_weight_map, tmp_path, "vae", "model" + INDEX
    )
