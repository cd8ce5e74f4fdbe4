"""Compares a graph with PyTorch, output by output and block by block, on the same inputs.

Only a graph whose arithmetic a CPU can do is compared. Canaries are small networks, exported in the same way, that show
faults which a large one hides.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ea_runtime.export.parts import Graph, Input
from ea_runtime.export.trace import FakeNetwork, Traced, initializer_names, make_fake, trace
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

    @property
    def worst(self) -> float | None:
        """Largest relative error of the outputs, None if nothing was compared."""
        return max((one.relative for one in self.outputs), default=None)

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return asdict(self)


def error_of(name: str, got: Tensor, expected: Tensor) -> Error:
    """Differences in float64; a value that is not finite on one side only counts as infinite."""
    a, b = got.double(), expected.double()
    if not torch.isfinite(a).all() or not torch.isfinite(b).all():
        return Error(name, float("inf"), float("inf"), float("inf"))
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
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _args, out: seen.__setitem__(
            f"block:{name}", (out if isinstance(out, Tensor) else out[0]).detach()
        )

    handles = [graph.module.get_submodule(name).register_forward_hook(keep(name)) for name in graph.blocks]
    try:
        # watched: what a graph is compared with must be right
        with torch.no_grad(), PartFormats(logger.warning).watch(graph.module):
            out = graph.module(*inputs.values())
    finally:
        for handle in handles:
            handle.remove()
    outputs = (out,) if isinstance(out, Tensor) else tuple(out)
    return dict(zip(graph.outputs, outputs, strict=True)) | seen


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


def run_onnx(path: Path, inputs: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """All outputs of an .onnx by ONNX Runtime on the CPU."""
    from ea_runtime.export.onnx_session import OnnxSession

    return OnnxSession(path, ["CPUExecutionProvider"]).run(inputs)


def compare(traced: Traced, graph: Graph, folder: Path, dtype: torch.dtype, size: str) -> GraphParity:
    """Compares one traced graph, whose weights are in `folder`, with `graph.module`, which has the same weights."""
    path = folder / f".{graph.name}.parity.onnx"
    try:
        names = with_taps(traced.model, traced.taps, path)
        inputs = draw_inputs(graph, dtype)
        got = run_onnx(path, inputs, dtype)
        expected = torch_outputs(graph, inputs)
    finally:
        path.unlink(missing_ok=True)
    outputs = [error_of(name, got[name], expected[name]) for name in graph.outputs]
    blocks = [error_of(block, got[name], expected[f"block:{block}"]) for block, name in names.items()]
    return GraphParity(graph.name, "compared", size, outputs, blocks)


# -- canaries ------------------------------------------------------------------------------------------


class BiasCanary(nn.Module):
    """A linear layer whose bias outweighs its product: a dropped GEMM bias cannot be missed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 96)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class GroupNormCanary(nn.Module):
    """GroupNorm(32) over groups with means far apart: statistics over wrong groups cannot be missed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, 64, eps=1e-6)
        self.conv = nn.Conv3d(64, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


def canaries() -> dict[str, tuple[nn.Module, tuple[int, ...], Any]]:
    """Name -> network, its input's shape, and the input's offsets."""
    generator = torch.Generator().manual_seed(1)
    bias, norm = BiasCanary(), GroupNormCanary()
    for module in (bias, norm):
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    bias.linear.bias.data *= 100
    norm.norm.weight.data += 1
    offsets = torch.arange(64.0).reshape(1, 64, 1, 1, 1) / 8
    return {"gemm-bias": (bias, (2, 5, 64), 0.0), "group-norm-32": (norm, (1, 64, 3, 4, 4), offsets)}


def run_canaries(folder: Path, dtype: torch.dtype, opset: int) -> list[GraphParity]:
    """Exports each canary as a network is exported, and compares."""
    results = []
    for name, (module, shape, offset) in canaries().items():
        weights = {key: tensor.clone() for key, tensor in module.state_dict().items()}
        fake = make_fake(module, dtype)
        graph = Graph(
            f"canary-{name}", "canary", module, {"x": Input(shape)}, ("y",), (), _Offset(shape, offset)
        )
        traced = trace(graph, fake, opset)
        places = plan_places(
            initializer_names(traced), {key: tuple(t.shape) for key, t in weights.items()}, fake.kinds
        )
        file = folder / f".canary-{name}.weights"
        try:
            write_weights(file, places, weights.items())
            refer(traced.model, places, file.name, folder)
            real = canaries()[name][0].to(dtype)
            again = Graph(graph.name, graph.part, real, graph.inputs, graph.outputs, (), graph.draw)
            results.append(compare(traced, again, folder, dtype, "x".join(map(str, shape))))
        finally:
            file.unlink(missing_ok=True)
    return results


class _Offset:
    def __init__(self, shape: Sequence[int], offset: Any) -> None:
        self.shape, self.offset = tuple(shape), offset

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"x": torch.randn(self.shape, generator=generator) + self.offset}


@dataclass(frozen=True, slots=True)
class WeightsCheck:
    """The use that its graphs make of a part's weights.

    unused: names of the state dict in no graph, as queries and keys of attention through the time of a picture.
    dropped: biases among them whose module is in a graph otherwise: a fault.
    """

    used: int
    unused: tuple[str, ...]
    dropped: tuple[str, ...]
    biases: int
    norms: Mapping[str, int]


def check_weights_used(
    traced: Sequence[Traced], network: nn.Module, module_names: Sequence[str]
) -> WeightsCheck:
    """Checks which weights of the exported modules are in a graph, and the groups of its norms."""
    used = {name for one in traced for name in initializer_names(one)}
    expected = {
        name
        for name, _ in network.named_parameters()
        if any(name.startswith(prefix) for prefix in module_names)
    }
    groups: dict[str, int] = {}
    for node in (node for one in traced[:1] for node in one.model.graph):
        if node.op_type == "GroupNormalization":
            key = f"GroupNorm({node.attributes['num_groups'].value})"
            groups[key] = groups.get(key, 0) + 1
    biases = sum(name.endswith("bias") for name in used)
    unused = tuple(sorted(expected - used))
    dropped = tuple(n for n in unused if n.endswith(".bias") and f"{n.removesuffix('bias')}weight" in used)
    return WeightsCheck(len(used), unused, dropped, biases, groups)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Writes JSON; infinity becomes a string."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and value in (float("inf"), float("-inf")):
            return "infinite"
        if isinstance(value, Mapping):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return value

    path.write_text(json.dumps(plain(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
