"""Traces a network without weights into an ONNX graph: names of the state dict, static shapes, nothing folded away.

Tracing runs on fake tensors, so its memory does not depend on the weights. Those that the graph needs are written
afterwards, tensor by tensor (weights_file.py).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ea_runtime.errors import UserError
from ea_runtime.export.parts import Graph
from ea_runtime.machine.casting import dtype_of

#: dtype names of `--dtype`
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class FakeNetwork:
    """A network whose tensors are shapes only.

    names: id of each parameter and buffer -> its name in the state dict (of a tied one, the first). kinds: that name
    -> dtype. computed: values of buffers that no file holds.
    """

    network: nn.Module
    mode: FakeTensorMode
    dtype: torch.dtype
    names: dict[int, str] = field(default_factory=dict)
    kinds: dict[str, torch.dtype] = field(default_factory=dict)
    computed: dict[str, Tensor] = field(default_factory=dict)


def make_fake(network: nn.Module, dtype: torch.dtype) -> FakeNetwork:
    """Replaces every parameter and buffer of `network` (weights on the meta device) by a fake one of `dtype`."""
    fake = FakeNetwork(network.eval(), FakeTensorMode(allow_non_fake_inputs=True), dtype)
    made: dict[int, Any] = {}
    for prefix, module in network.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            full = f"{prefix}.{name}" if prefix else name
            if id(parameter) not in made:
                kind = dtype_of(network, full, dtype)
                with fake.mode:
                    empty = torch.empty(parameter.shape, dtype=kind)
                made[id(parameter)] = nn.Parameter(empty, requires_grad=False)
                fake.names[id(made[id(parameter)])] = full
                fake.kinds[full] = kind
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is None:
                continue
            full = f"{prefix}.{name}" if prefix else name
            kind = dtype if buffer.is_floating_point() else buffer.dtype
            with fake.mode:
                module._buffers[name] = torch.empty(buffer.shape, dtype=kind)
            fake.names[id(module._buffers[name])] = full
            fake.kinds[full] = kind
            if name in module._non_persistent_buffers_set:
                fake.computed[full] = buffer.to(kind)
    return fake


def run_tapped(module: nn.Module, blocks: Iterable[str], inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The module's outputs, and after them those of some of its blocks (of several the first)."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _args, out: seen.__setitem__(name, out if isinstance(out, Tensor) else out[0])

    handles = [module.get_submodule(name).register_forward_hook(keep(name)) for name in blocks]
    try:
        out = module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    outputs = (out,) if isinstance(out, Tensor) else tuple(out)
    return (*outputs, *(seen[name] for name in blocks))


class _Tapped(nn.Module):
    def __init__(self, inner: nn.Module, blocks: tuple[str, ...]) -> None:
        super().__init__()
        self.inner = inner
        self.blocks = blocks

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return run_tapped(self.inner, self.blocks, inputs)


@dataclass
class Traced:
    """A graph in onnx_ir's form. model: outputs are the graph's own. taps: block -> its output value."""

    graph: Graph
    model: Any
    taps: dict[str, Any]


def trace(graph: Graph, fake: FakeNetwork, opset: int) -> Traced:
    """Exports one graph. Raises UserError if torch cannot."""
    with fake.mode:
        example = tuple(
            torch.zeros(one.shape, dtype=one.dtype or fake.dtype) for one in graph.inputs.values()
        )
    tapped = _Tapped(graph.module, graph.blocks).eval()
    held = (*tapped.named_parameters(remove_duplicate=False), *tapped.named_buffers(remove_duplicate=False))
    own = {name: fake.names[id(tensor)] for name, tensor in held if id(tensor) in fake.names}
    try:
        with torch.no_grad(), _quiet():
            with fake.mode:
                program = torch.export.export(tapped, example, strict=False)
            found = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                optimize=False,
                verbose=False,
                input_names=list(graph.inputs),
                output_names=[*graph.outputs, *(f"block:{name}" for name in graph.blocks)],
            )
    except UserError:
        raise
    except Exception as error:  # whatever torch's exporter raises for a network
        raise UserError(
            f"graph {graph.name} cannot be exported at opset {opset}: {type(error).__name__}: {str(error)[:300]}"
        ) from error
    assert found is not None
    model = found.model
    _name_weights(model, own, fake, graph)
    with _quiet():
        _simplify(model)
    _widen_masks(model)
    outputs = list(model.graph.outputs)
    del model.graph.outputs[len(graph.outputs) :]
    taps = dict(zip(graph.blocks, outputs[len(graph.outputs) :], strict=True))
    return Traced(graph, model, taps)


def _name_weights(model: Any, own: Mapping[str, str], fake: FakeNetwork, graph: Graph) -> None:
    """Names initializers as in the state dict; their values come later."""
    initializers = model.graph.initializers
    for name, value in list(initializers.items()):
        if name in own:
            value.const_value = None  # a fake tensor: nothing may be folded from it
            if own[name] != name:
                del initializers[name]
                value.name = own[name]
                if own[name] not in initializers:
                    initializers[own[name]] = value
                else:  # tied
                    value.replace_all_uses_with(initializers[own[name]])
        elif isinstance(getattr(value.const_value, "raw", None), FakeTensor):
            raise UserError(
                f"graph {graph.name} holds the constant {name!r} whose value is not known; make it a buffer"
            )


def _simplify(model: Any) -> None:
    """Folds what follows from shapes and constants; weights have no value here and stay whole."""
    from onnx_ir.passes.common import (
        CommonSubexpressionEliminationPass,
        IdentityEliminationPass,
        InlinePass,
        RemoveUnusedFunctionsPass,
        RemoveUnusedNodesPass,
        RemoveUnusedOpsetsPass,
    )
    from onnxscript.optimizer import fold_constants

    held = dict(model.graph.initializers)
    InlinePass()(model)
    RemoveUnusedFunctionsPass()(model)
    fold_constants(model, onnx_shape_inference=False, input_size_limit=1 << 16, output_size_limit=1 << 22)
    CommonSubexpressionEliminationPass()(model)
    IdentityEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    for name in list(model.graph.initializers):
        value = model.graph.initializers[name]
        if name in held and not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]


def _widen_masks(model: Any) -> None:
    """Expands masks of one row to a row per query, which ONNX Runtime's Attention needs."""
    import onnx_ir as ir

    wide: dict[tuple[str, int], Any] = {}
    for node in list(model.graph):
        if node.op_type != "Attention" or len(node.inputs) < 4 or node.inputs[3] is None:
            continue
        mask, queries = node.inputs[3], int(node.inputs[0].shape[-2])
        if mask.shape is None or int(mask.shape[-2]) == queries:
            continue
        key = (mask.name, queries)
        if key not in wide:
            shape = [int(n) for n in mask.shape]
            shape[-2] = queries
            sizes = ir.node("Constant", [], {"value": ir.tensor(shape, dtype=ir.DataType.INT64)})
            expand = ir.node("Expand", [mask, sizes.outputs[0]])
            numbers, wide[key] = sizes.outputs[0], expand.outputs[0]
            numbers.name, wide[key].name = f"{mask.name}_sizes_{queries}", f"{mask.name}_{queries}"
            numbers.shape, numbers.dtype = ir.Shape([len(shape)]), ir.DataType.INT64
            wide[key].shape, wide[key].dtype = ir.Shape(shape), mask.dtype
            model.graph.insert_before(node, [sizes, expand])
        node.replace_input_with(3, wide[key])


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's warnings about packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):
            yield  # T5's buckets take log(0) and mask it
    finally:
        logger.setLevel(level)


def initializer_names(traced: Traced) -> list[str]:
    """Weights of the state dict that the graph uses; other initializers are constants with values."""
    return [name for name, value in traced.model.graph.initializers.items() if value.const_value is None]
