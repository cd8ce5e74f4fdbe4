"""The engines "trt" and "trt-rtx": run what their builders wrote, on an NVIDIA GPU.

Not yet run on a GPU. Loading, the build record and every refusal are tested; what follows
`deserialize_cuda_engine` is written from the packages' documentation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ea_runtime.engines.base import ExportedEngine, PartRun, Session
from ea_runtime.engines.weights import ExportedWeights
from ea_runtime.errors import UserError
from ea_runtime.export.bundle import GraphInfo
from ea_runtime.export.tensorrt_api import load_api

_DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "int64", "int32")}


class TensorRtEngine(ExportedEngine):
    """Engines of a bundle on a CUDA device."""

    def __init__(
        self, model: str | os.PathLike[str], *, target: str, device: Any = None, **settings: Any
    ) -> None:
        self.target = target
        self.api = load_api(target)
        self.cuda = _require_cuda(target, device)
        super().__init__(model, device=self.cuda, **settings)
        self.logger = self.api.module.Logger(self.api.module.Logger.WARNING)
        self.runtime = self.api.module.Runtime(self.logger)

    def describe(self) -> str:
        """The library and the card."""
        name = "TensorRT-RTX" if self.api.is_rtx else "TensorRT"
        return f"{name} {self.api.version} on {self.cuda} ({torch.cuda.get_device_name(self.cuda)})"

    def open_graph(self, info: GraphInfo, overrides: Mapping[str, Tensor]) -> Session:
        """See ExportedEngine. A refit sets every weight that differs, in an engine that was just deserialised."""
        assert info.engine is not None
        path = self.bundle.folder / info.engine
        engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise UserError(
                f"{self.target} {self.api.version} cannot load {path.name} on {torch.cuda.get_device_name(self.cuda)};"
                f" export it again with this version, for this card"
            )
        if overrides:
            _refit(self.api.module, engine, self.logger, info, overrides)
        return EngineSession(self.api.module, engine, info, self.cuda).run

    def _run(self, part: str, weights: ExportedWeights | None) -> PartRun:
        if weights is not None and not self.bundle.settings.get("refittable"):
            weights.refusal = (
                f"this {self.target} bundle cannot take a LoRA (it was built with --no-refit); run `ea lora merge` and"
                " export the merged model, or export with --refit on a machine with a GPU"
            )
        return super()._run(part, weights)


class EngineSession:
    """An execution context with its own memory for inputs and outputs."""

    def __init__(self, module: Any, engine: Any, info: GraphInfo, device: torch.device) -> None:
        self.engine = engine
        self.context = engine.create_execution_context()
        if self.context is None:
            raise UserError(f"there is not enough memory on {device} for {info.name}; export a smaller size")
        self.stream = torch.cuda.Stream(device)
        self.inputs = {
            one.name: torch.empty(one.shape, dtype=_DTYPES[one.dtype], device=device) for one in info.inputs
        }
        self.outputs = {
            one.name: torch.empty(one.shape, dtype=_DTYPES[one.dtype], device=device) for one in info.outputs
        }
        for name, tensor in {**self.inputs, **self.outputs}.items():
            self.context.set_tensor_address(name, tensor.data_ptr())

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, float32 on the CPU."""
        with torch.cuda.stream(self.stream):
            for name, held in self.inputs.items():
                held.copy_(inputs[name])
            if not self.context.execute_async_v3(self.stream.cuda_stream):
                raise RuntimeError("the engine did not run; its log says why")
            found = {name: held.float().cpu() for name, held in self.outputs.items()}
        self.stream.synchronize()
        return found


def _refit(module: Any, engine: Any, logger: Any, info: GraphInfo, overrides: Mapping[str, Tensor]) -> None:
    """Sets weights by their names in the graph, those of the state dict. Raises UserError for another name."""
    refitter = module.Refitter(engine, logger)
    known = set(refitter.get_all_weights())
    missing = sorted(set(overrides) - known)
    if missing:
        raise UserError(
            f"engine {info.name} has no refittable weight {missing[0]!r}; export it again with --refit"
        )
    held = []
    for name, tensor in overrides.items():
        tensor = tensor.contiguous()
        held.append(tensor)  # read when the refit runs
        weights = module.Weights(_data_type(module, tensor.dtype), tensor.data_ptr(), tensor.numel())
        if not refitter.set_named_weights(name, weights):
            raise UserError(f"engine {info.name} does not take other numbers for {name!r}; export it again")
    if not refitter.refit_cuda_engine():
        raise UserError(
            f"engine {info.name} could not be refitted ({len(refitter.get_missing_weights())} are missing)"
        )


def _data_type(module: Any, dtype: torch.dtype) -> Any:
    names = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16"}
    return getattr(module.DataType, names[dtype])


def _require_cuda(target: str, device: Any) -> torch.device:
    from ea_runtime.machine.device import choose_device

    if not torch.cuda.is_available():
        raise UserError(
            f"engine {target!r} needs an NVIDIA GPU, and this machine has none that torch can use; engine 'onnx' runs"
            " an `ea export --onnx` bundle on a CPU"
        )
    chosen = choose_device(device or "cuda")
    if chosen.type != "cuda":
        raise UserError(f"engine {target!r} runs on cuda, got `device` {str(chosen)!r}; leave it out")
    return chosen
