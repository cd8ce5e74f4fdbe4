"""Checks before anything is written: sizes of tensors, disk, memory, versions with known faults.

Each finding gives the count and its limit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.planning.room import free_memory_of_host

#: elements that a tensor may not reach: runtimes count them in 32 bits, and a build reports nothing
MAX_ELEMENTS = 1 << 31
#: memory of tracing and writing, whatever the model's size: 1.2 GB were measured (docs/export.md), plus some room
EXPORT_MEMORY = 1_500_000_000
#: a builder's own memory, and how many times the weights it holds (measured: 2.0 GB at 0.29 GB, 10.4 GB at 2.9 GB)
_BUILDER_MEMORY, _BUILDER_COPIES = 1_100_000_000, 3.3


@dataclass(frozen=True, slots=True)
class ShapeCheck:
    """Figures from a graph's own shapes. tensor, shape, elements: of the largest. without_shape: number of tensors.

    attention_scores: elements of the largest attention's scores, if an Attention node does not run fused.
    """

    tensor: str
    shape: list[int]
    elements: int
    without_shape: int
    attention_scores: int


def check_shapes(proto: Any, graph: str) -> ShapeCheck:
    """Infers every tensor's shape from the graph alone, without weights. Raises UserError for one that is too large."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto)
    shapes: dict[str, tuple[int, ...] | None] = {}
    for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info):
        shape = value.type.tensor_type.shape
        sizes = [dim.dim_value for dim in shape.dim]
        known = value.type.tensor_type.HasField("shape") and all(
            dim.HasField("dim_value") for dim in shape.dim
        )
        shapes[value.name] = tuple(sizes) if known else None
    for tensor in inferred.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    outputs = [name for node in inferred.graph.node for name in node.output if name]
    unknown = sum(shapes.get(name) is None for name in outputs)
    counted = [(name, shape, prod(shape)) for name, shape in shapes.items() if shape is not None]
    tensor, largest, elements = max(counted, key=lambda one: one[2], default=("", (), 0))
    if elements >= MAX_ELEMENTS:
        raise UserError(
            f"graph {graph} has the tensor {tensor} of shape {list(largest)}, {elements:,} elements; at most"
            f" {MAX_ELEMENTS - 1:,} can be counted in 32 bits; choose a smaller size, fewer frames, --batch 1, or a"
            " dtype whose attention stays one operator (fp16, bf16)"
        )
    scores = 0
    for node in inferred.graph.node:
        if node.op_type == "Attention" and node.domain in ("", "ai.onnx"):
            q, k = shapes.get(node.input[0]), shapes.get(node.input[1])
            if q is not None and k is not None and len(q) == 4:
                scores = max(scores, q[0] * q[1] * q[2] * k[2])
    return ShapeCheck(tensor, list(largest), elements, unknown, scores)


def check_disk(folder: Path, needed: int) -> None:
    """Raises UserError if the disk of `folder` has fewer bytes left."""
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), Path("."))
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise UserError(
            f"the disk of {str(folder)!r} has {_gb(free)} left, the bundle needs {_gb(needed)}; free some space or"
            " give another `--output`"
        )


def check_memory(needed: int) -> None:
    """Raises UserError if this machine has fewer bytes available; passes if that is unknown."""
    available = available_memory()
    if available is not None and available < needed:
        raise UserError(
            f"the export needs about {_gb(needed)} of memory, {_gb(available)} are available; close other programs,"
            " export parts one by one (--part), or set EA_EXPORT_ANYWAY=1 to try it"
        )


def builder_memory(weights: int) -> int:
    """Bytes that TensorRT's builder takes for a graph with `weights` bytes of weights."""
    return int(_BUILDER_MEMORY + _BUILDER_COPIES * weights)


def available_memory() -> int | None:
    """Bytes available without swapping, or None if unknown."""
    if os.environ.get("EA_EXPORT_ANYWAY") == "1":
        return None
    try:
        return free_memory_of_host()
    except OSError:
        return None


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of the packages that an export depends on."""
    import torch

    found = {"torch": str(torch.__version__)}
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    found |= {} if cudnn is None else {"cudnn": str(cudnn)}
    for name in ("onnx", "onnxscript", "onnx-ir", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def version_notes(found: Mapping[str, str]) -> list[str]:
    """Known faults of these versions, one line each."""
    notes = []
    cudnn = int(found.get("cudnn", "0"))
    if found.get("torch", "").startswith("2.9.0") and 0 < cudnn < 91500:
        notes.append("torch 2.9.0 with cuDNN before 9.15 has no conv3d kernels and takes 17 times the memory")
    if cudnn == 91002:
        notes.append(
            "cuDNN 9.10.2 computes large bf16 conv3d wrongly; look at the canaries of the parity report"
        )
    return notes


@dataclass
class Preflight:
    """Findings, for the report."""

    shapes: dict[str, ShapeCheck] = field(default_factory=dict)
    weights_bytes: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "largest_tensors": {name: asdict(one) for name, one in self.shapes.items()},
            "limit_elements": MAX_ELEMENTS,
            "weights_bytes": self.weights_bytes,
            "versions": self.versions,
            "notes": self.notes,
        }


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
