"""Linear layers whose weights are in fewer bits: made one by one while a part is loaded, so that the part is never
whole in memory in its own format."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.files.safe import plain
from ea_runtime.models.fp8 import is_narrow, narrow
from ea_runtime.models.quantize import UNSCALED, Quantize, check_packages, takes

#: gives a module its weight; True if it did, False to leave the tensor to whoever loads the rest
PutLayer = Callable[[nn.Module, str, Tensor], bool]


def layer_maker(quantize: Quantize | None, part: str, dtype: torch.dtype | None = None) -> PutLayer | None:
    """A function that gives the layers of a part their weights in another form; None if the part keeps its format.

    dtype: the network's. The callable takes the network, a tensor's name in its state dict, and the tensor, on its
    device and in the number format that the layer computes in. Raises UserError if a package is missing.
    """
    kind = None if quantize is None else quantize.kinds.get(part)
    if quantize is None or kind is None:
        return None
    check_packages(quantize)
    make = _make_nf4() if kind == "nf4" else narrow if kind == UNSCALED else _make_torchao(kind)

    def put(network: nn.Module, name: str, weight: Tensor) -> bool:
        if not takes(part, name, tuple(weight.shape), is_half=dtype == torch.float16):
            return False
        path = name.removesuffix(".weight")
        layer = network.get_submodule(path)
        if not isinstance(layer, nn.Linear):
            return False
        make(network, path, layer, weight)
        return True

    return put


def _make_torchao(kind: str) -> Callable[[nn.Module, str, nn.Linear, Tensor], None]:
    with quiet_imports():
        from torchao.quantization import (  # pyright: ignore[reportMissingImports]
            Float8WeightOnlyConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )

    options: dict[str, Any] = {"set_inductor_config": False}
    if kind == "int8":
        config = Int8WeightOnlyConfig(**options, version=2)
    else:
        config = Float8WeightOnlyConfig(**options)

    def make(network: nn.Module, path: str, layer: nn.Linear, weight: Tensor) -> None:
        layer.weight = nn.Parameter(weight, requires_grad=False)
        quantize_(layer, config)

    return make


def _make_nf4() -> Callable[[nn.Module, str, nn.Linear, Tensor], None]:
    with quiet_imports():
        import bitsandbytes  # pyright: ignore[reportMissingImports]

    library: Any = bitsandbytes.nn

    class Linear4bit(library.Linear4bit):
        """bitsandbytes' layer, with the channels of a token next to each other, as its kernels for the CPU want."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.contiguous())

    def make(network: nn.Module, path: str, layer: nn.Linear, weight: Tensor) -> None:
        has_bias = layer.bias is not None
        made = Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=has_bias,
            compute_dtype=weight.dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        values = library.Params4bit(
            weight.contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=True, module=made
        )
        made.weight = values.to(weight.device)
        # else the first pass on a CPU with bfloat16 lays the weights out anew, and all compute in bfloat16
        made.support_avx512bf16_for_cpu = False
        network.set_submodule(path, made)

    return make


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Imports that fetch nothing and say nothing: bitsandbytes asks the package `kernels` for code from a server, if it
    is installed, and both warn of parts that nobody uses here."""
    hidden = "kernels" not in sys.modules
    if hidden:
        sys.modules["kernels"] = None  # pyright: ignore[reportArgumentType]
    before, logging.root.manager.disable = logging.root.manager.disable, logging.WARNING
    try:
        yield
    except Exception as error:
        raise UserError(
            f"a package that `quantize` needs cannot be imported ({plain(error, 200)}); install it again"
        ) from error
    finally:
        logging.root.manager.disable = before
        if hidden:
            del sys.modules["kernels"]


def count_quantized(network: nn.Module) -> int:
    """The linear layers of a network whose weights are in fewer bits."""
    return sum(is_quantized(module) for module in network.modules())


def is_quantized(module: nn.Module) -> bool:
    """True for a linear layer whose weight is not a plain tensor of numbers, or one of 8 bits."""
    if not isinstance(module, nn.Linear):
        return False
    return type(module.weight) is not nn.Parameter or is_narrow(module)


def weight_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers as they are in memory, scales included."""
    tensors = {id(t): t for kind in ("parameters", "buffers") for t in getattr(network, kind)()}
    return sum(_bytes(tensor) for tensor in tensors.values())


def _bytes(tensor: Tensor) -> int:
    state = getattr(tensor, "quant_state", None)
    if state is not None:  # bitsandbytes
        parts = [tensor.data, state.absmax, state.code]
        parts += [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
        return sum(part.numel() * part.element_size() for part in parts)
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:  # torchao
        return sum(_bytes(getattr(tensor, name)) for name in flatten()[0])
    return tensor.numel() * tensor.element_size()
