"""Compares a graph with PyTorch, output by output and block by block, on the same inputs.

Only a graph whose arithmetic a CPU can do is compared. Canaries are small networks, exported in the same way, that show
faults which a large one hides.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.export.onnx_session import OnnxSession
from ea_runtime.export.parts import Graph, Input
from ea_runtime.export.trace import FakeNetwork, Traced, initializer_names, make_fake, run_tapped, trace
from ea_runtime.export.weights_file import plan_places, refer, write_weights
from ea_runtime.machine.formats import PartFormats

logger = logging.getLogger("ea")

#: multiply-adds that a parity check may take
MAX_MACS = 4 << 38
#: largest relative error in fp32, and what 16 bits can hold over a whole network
LIMITS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}


@dataclass(frozen=True, slots=True)
class Error:
    """Errors of one tensor: the largest difference, absolute and relative to PyTorch's largest value."""

    name: str
    max_abs: float
    relative: float
    mean_relative: float


@dataclass
class GraphParity:
    """Errors of one graph. size: what was compared, in words. state: "compared", or why not."""

    graph: str
    state: str
    size: str = ""
    outputs: list[Error] = field(default_factory=list)
    blocks: list[Error] = field(default_factory=list)


def error_of(name: str, got: Tensor, expected: Tensor) -> Error:
    """Differences in float64; a value that is not finite on one side only counts as infinite."""
    a, b = got.double(), expected.double()
    if not torch.isfinite(a).all() or not torch.isfinite(b).all():
        return Error(name, math.inf, math.inf, math.inf)
    difference = (a - b).abs()
    scale = max(float(b.abs().max()), 1e-30)
    mean = float(difference.mean()) / max(float(b.abs().mean()), 1e-30)
    return Error(name, float(difference.max()), float(difference.max()) / scale, mean)


def draw_inputs(graph: Graph, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Inputs for a comparison, in the graph's dtypes."""
    generator = torch.Generator().manual_seed(seed)
    if graph.draw is not None:
        drawn = graph.draw(generator)
    else:
        drawn = {name: torch.randn(one.shape, generator=generator) for name, one in graph.inputs.items()}
    return {name: drawn[name].to(one.dtype or dtype) for name, one in graph.inputs.items()}


def torch_outputs(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PyTorch's results: outputs by name, and blocks as "block:NAME". `graph.module` has weights."""
    names = [*graph.outputs, *(f"block:{name}" for name in graph.blocks)]
    # watched: what a graph is compared with must be right
    with torch.no_grad(), PartFormats(logger.warning).watch(graph.module):
        return dict(zip(names, run_tapped(graph.module, graph.blocks, inputs.values()), strict=True))


def count_macs(graph: Graph, fake: FakeNetwork) -> int:
    """Multiply-adds of a graph, counted on shapes."""
    from torch.utils.flop_counter import FlopCounterMode

    # with gradients networks run as they are defined, which is what a graph holds
    with fake.mode, torch.enable_grad(), FlopCounterMode(display=False) as counter:
        graph.module(
            *(torch.empty(one.shape, dtype=one.dtype or fake.dtype) for one in graph.inputs.values())
        )
    return counter.get_total_flops() // 2


def with_taps(model: Any, taps: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Writes the graph with its blocks' values as outputs; returns block -> the output's name."""
    import onnx_ir as ir

    count = len(model.graph.outputs)
    present = {value.name for value in model.graph.outputs}
    names = {}
    for block, value in taps.items():
        names[block] = value.name
        if value.name not in present:
            present.add(value.name)
            model.graph.outputs.append(value)
    try:
        ir.save(model, path)
    finally:
        del model.graph.outputs[count:]
    return names


def compare(traced: Traced, graph: Graph, folder: Path, dtype: torch.dtype, size: str) -> GraphParity:
    """Compares one traced graph, whose weights are in `folder`, with `graph.module`, which has the same weights."""
    path = folder / f".{graph.name}.parity.onnx"
    try:
        names = with_taps(traced.model, traced.taps, path)
        inputs = draw_inputs(graph, dtype)
        got = OnnxSession(path, ["CPUExecutionProvider"]).run(inputs)
        expected = torch_outputs(graph, inputs)
    finally:
        path.unlink(missing_ok=True)
    outputs = [error_of(name, got[name], expected[name]) for name in graph.outputs]
    blocks = [error_of(block, got[name], expected[f"block:{block}"]) for block, name in names.items()]
    return GraphParity(graph.name, "compared", size, outputs, blocks)


# -- canaries ------------------------------------------------------------------------------------------


def canaries() -> dict[str, tuple[nn.Sequential, tuple[int, ...], Any]]:
    """Name -> network, its input's shape, and the input's offsets.

    gemm-bias: the bias outweighs the product, so a dropped one cannot be missed. group-norm-32: the groups' means are
    far apart, so statistics over wrong groups cannot be missed.
    """
    generator = torch.Generator().manual_seed(1)
    linear, groups = nn.Linear(64, 96), nn.GroupNorm(32, 64, eps=1e-6)
    bias, norm = nn.Sequential(linear), nn.Sequential(groups, nn.Conv3d(64, 8, 1))
    for parameter in (*bias.parameters(), *norm.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    linear.bias.data *= 100
    groups.weight.data += 1
    offsets = torch.arange(64.0).reshape(1, 64, 1, 1, 1) / 8
    return {"gemm-bias": (bias, (2, 5, 64), 0.0), "group-norm-32": (norm, (1, 64, 3, 4, 4), offsets)}


def run_canaries(folder: Path, dtype: torch.dtype, opset: int) -> list[GraphParity]:
    """Exports each canary as a network is exported, and compares."""
    results = []
    for name, (module, shape, offset) in canaries().items():
        weights = {key: tensor.clone() for key, tensor in module.state_dict().items()}
        fake = make_fake(module, dtype)

        def draw(generator: torch.Generator, shape: Any = shape, offset: Any = offset) -> dict[str, Tensor]:
            return {"x": torch.randn(shape, generator=generator) + offset}

        graph = Graph(f"canary-{name}", "canary", module, {"x": Input(shape)}, ("y",), draw=draw)
        traced = trace(graph, fake, opset)
        places = plan_places(
            initializer_names(traced), {key: tuple(t.shape) for key, t in weights.items()}, fake.kinds
        )
        file = folder / f".canary-{name}.weights"
        try:
            write_weights(file, places, weights.items())
            refer(traced.model, places, file.name, folder)
            real = canaries()[name][0].to(dtype)
            again = replace(graph, module=real)
            results.append(compare(traced, again, folder, dtype, "x".join(map(str, shape))))
        finally:
            file.unlink(missing_ok=True)
    return results


@dataclass(frozen=True, slots=True)
class WeightsCheck:
    """The use that its graphs make of a part's weights.

    norms: how many of each kind. unused: names of the state dict in no graph, as queries and keys of attention through
    the time of a picture.
    """

    used: int
    biases: int
    norms: Mapping[str, int]
    unused: list[str]


def check_weights_used(part: str, traced: Sequence[Traced], expected: set[str]) -> WeightsCheck:
    """Checks which of the `expected` weights are in a graph, and the groups of its norms.

    Raises UserError for a bias in no graph though its module is in one: a fault of the exporter.
    """
    used = {name for one in traced for name in initializer_names(one)}
    unused = sorted(expected - used)
    for name in unused:
        if name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in used:
            raise UserError(f"part {part}: {name} is in no graph, but its weight is: a fault of the exporter")
    norms = Counter(
        f"GroupNorm({node.attributes['num_groups'].value})"
        for node in traced[0].model.graph
        if node.op_type == "GroupNormalization"
    )
    return WeightsCheck(len(used), sum(name.endswith("bias") for name in used), dict(norms), unused)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Writes JSON; infinity becomes a string."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and math.isinf(value):
            return "infinite"
        if isinstance(value, Mapping):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return value

    path.write_text(json.dumps(plain(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
