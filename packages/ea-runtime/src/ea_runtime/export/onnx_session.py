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
        #: of the outputs; our graphs have one shape
        self.shapes = {one.name: tuple(one.shape) for one in self.session.get_outputs()}
        for name, shape in self.shapes.items():
            if not all(isinstance(side, int) for side in shape):
                raise UserError(
                    f"ONNX Runtime cannot run {path.name}: its output {plain(name, 60)!r} has no fixed shape; export "
                    "the model again with `ea export --onnx`"
                )

    @property
    def providers(self) -> list[str]:
        """The providers that the session really runs on, not those that the library was built with."""
        return list(self.session.get_providers())

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, float32 (or whole numbers) on the CPU.

        Inputs are read where they are, and outputs written into new tensors (IO binding): nothing is copied that is on
        the CPU, contiguous and in the graph's format.
        """
        binding = self.session.io_binding()
        held = []  # until the run is done
        for name, dtype in self.inputs.items():
            tensor = inputs[name].detach().to("cpu", dtype).contiguous()
            held.append(tensor)
            binding.bind_input(name, "cpu", 0, _element_type(dtype), tuple(tensor.shape), tensor.data_ptr())
        outputs = {}
        for name, dtype in self.outputs.items():
            tensor = torch.empty(self.shapes[name], dtype=dtype)
            outputs[name] = tensor
            binding.bind_output(name, "cpu", 0, _element_type(dtype), tuple(tensor.shape), tensor.data_ptr())
        self.session.run_with_iobinding(binding)
        return {name: one.float() if one.is_floating_point() else one for name, one in outputs.items()}


def _element_type(dtype: torch.dtype) -> Any:
    """The type of a bound tensor's elements as ONNX Runtime takes it: numpy's, or ONNX's number for bfloat16."""
    if dtype == torch.bfloat16:
        import onnx

        return int(onnx.TensorProto.BFLOAT16)
    return torch.empty(0, dtype=dtype).numpy().dtype.type


def _ort_value(runtime: Any, tensor: Tensor) -> tuple[Any, np.ndarray]:
    """An OrtValue over a copy of the tensor, and the memory that it reads."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        import onnx

        array = tensor.view(torch.int16).numpy().copy()
        return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, onnx.TensorProto.BFLOAT16), array
    array = tensor.numpy().copy()
    return runtime.OrtValue.ortvalue_from_numpy(array), array
