"""Weights of exported graphs: one raw file per part, shared by its graphs, written tensor by tensor.

A graph names offsets in that file (ONNX external data), so weights beyond protobuf's 2 GB are no special case and the
peak of memory is one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 4096  # whole pages, so that runtimes can map them


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's place in the file."""

    offset: int
    length: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def plan_places(
    names: Iterable[str], shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, torch.dtype]
) -> dict[str, Place]:
    """Offsets of these tensors, in the order of their names."""
    places: dict[str, Place] = {}
    offset = 0
    for name in sorted(names):
        length = torch.Size(shapes[name]).numel() * kinds[name].itemsize
        places[name] = Place(offset, length, tuple(shapes[name]), kinds[name])
        offset += -(-length // ALIGNMENT) * ALIGNMENT
    return places


def total_bytes(places: Mapping[str, Place]) -> int:
    """Size of the file."""
    return max((place.offset + place.length for place in places.values()), default=0)


def write_weights(path: Path, places: Mapping[str, Place], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Writes each tensor at its place, cast to its dtype. `tensors` must contain all of `places`."""
    left = set(places)
    with path.open("wb") as file:
        file.truncate(total_bytes(places))
        for name, tensor in tensors:
            if name not in left:
                continue
            place = places[name]
            assert tuple(tensor.shape) == place.shape, name
            file.seek(place.offset)
            file.write(raw_bytes(tensor.to(place.dtype)))
            left.discard(name)
    assert not left, f"no values for {sorted(left)[:3]}"


def raw_bytes(tensor: Tensor) -> memoryview:
    """The tensor's bytes, little endian as ONNX stores them."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def refer(model: Any, places: Mapping[str, Place], location: str, folder: Path) -> None:
    """Makes the initializers of an onnx_ir model that have no value point into the file."""
    import onnx_ir as ir
    from onnx_ir.tensor_adapters import from_torch_dtype

    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            place = places[name]
            value.const_value = ir.ExternalTensor(
                location,
                place.offset,
                place.length,
                from_torch_dtype(place.dtype),
                shape=ir.Shape(place.shape),
                name=name,
                base_dir=str(folder),
            )
