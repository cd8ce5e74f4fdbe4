"""One ONNX Runtime session with torch tensors in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.files.safe import plain

_TO_TORCH = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}


def require_onnxruntime() -> Any:
    """The module. Raises MissingPackageError with the command that installs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            "engine 'onnx' needs ONNX Runtime; run `pip install 'ea-runtime[onnx]'`"
        ) from error
    return onnxruntime


class OnnxSession:
    """A session over one .onnx file. overrides: initializers in place of those of the file."""

    def __init__(
        self, path: Path, providers: Sequence[str], overrides: Mapping[str, Tensor] | None = None
    ) -> None:
        runtime = require_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.held: list[Any] = []  # ONNX Runtime reads these in place
        values = {name: _ort_value(runtime, tensor) for name, tensor in (overrides or {}).items()}
        if values:
            self.held += values.values()
            # not `add_initializer`: its values come after the file's were folded into the graph
            options.add_external_initializers(list(values), [value for value, _ in values.values()])
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=list(providers))
        except Exception as error:  # ONNX Runtime's own kinds share no base
            text = plain(str(error).replace("\n", " "), 250)
            hint = "; bf16 runs on a GPU only, export fp32" if "bfloat16" in str(error) else ""
            raise UserError(f"ONNX Runtime cannot load {path.name}: {text}{hint}") from error
        self.inputs = {one.name: _TO_TORCH[one.type] for one in self.session.get_inputs()}
        self.outputs = {one.name: _TO_TORCH[one.type] for one in self.session.get_outputs()}

    @property
    def providers(self) -> list[str]:
        """The providers that the session really runs on, not those that the library was built with."""
        return list(self.session.get_providers())

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, float32 (or whole numbers) on the CPU."""
        runtime = require_onnxruntime()
        values = {}
        held = []
        for name, dtype in self.inputs.items():
            value, memory = _ort_value(runtime, inputs[name].detach().cpu().to(dtype))
            values[name] = value
            held.append(memory)
        found = self.session.run_with_ort_values(list(self.outputs), values)
        return {
            name: _tensor(value, dtype)
            for (name, dtype), value in zip(self.outputs.items(), found, strict=True)
        }


def _ort_value(runtime: Any, tensor: Tensor) -> tuple[Any, np.ndarray]:
    """An OrtValue over a copy of the tensor, and the memory that it reads."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        import onnx

        array = tensor.view(torch.int16).numpy().copy()
        return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, onnx.TensorProto.BFLOAT16), array
    array = tensor.numpy().copy()
    return runtime.OrtValue.ortvalue_from_numpy(array), array


def _tensor(value: Any, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bfloat16:
        return torch.from_dlpack(value._ortvalue.to_dlpack()).float()
    tensor = torch.from_numpy(np.array(value.numpy()))
    return tensor.float() if tensor.is_floating_point() else tensor
