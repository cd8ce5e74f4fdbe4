"""All differences between TensorRT and TensorRT-RTX; everything else is shared code.

| | trt (package tensorrt) | trt-rtx (package tensorrt-rtx) |
|---|---|---|
| module | `tensorrt` | `tensorrt_rtx` |
| builds for | this machine's GPU, on which it measures kernels | any `ComputeCapability` named, without a GPU |
| timing cache | kept, keyed by version, GPU and graph | none: nothing is timed when building |
| kernels | chosen while building | compiled when an engine first runs; kept in a runtime cache |
| TF32, sparsity | default flags | the same |

Imports neither torch nor a TensorRT until one is needed. Only trt-rtx has been run.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ea_runtime.errors import MissingPackageError, UserError

_MODULES = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}
_PACKAGES = {"trt": "tensorrt", "trt-rtx": "tensorrt-rtx"}


@dataclass(frozen=True, slots=True)
class Api:
    """One of the two. module: the Python module, which has the same names in both."""

    target: str
    module: Any
    version: str

    @property
    def is_rtx(self) -> bool:
        """Builds ahead of time."""
        return self.target == "trt-rtx"

    def capabilities(self) -> list[str]:
        """Names that `--capability` takes: "sm89"."""
        if not self.is_rtx:
            return []
        names = [name for name in dir(self.module.ComputeCapability) if name.startswith("SM")]
        return sorted((name.lower() for name in names), key=lambda name: int(name[2:]))

    def set_capabilities(self, config: Any, names: Sequence[str]) -> None:
        """Sets what to build for (trt-rtx); trt builds for this machine's GPU."""
        if self.is_rtx:
            config.num_compute_capabilities = len(names)
            for index, name in enumerate(names):
                config.set_compute_capability(getattr(self.module.ComputeCapability, name.upper()), index)

    def network_flags(self) -> int:
        """Strongly typed: tensors have the graph's dtypes. TensorRT 11 has no other mode and may drop the flag."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def timing_cache(self, graph: Path, gpu: str) -> Path | None:
        """The file for timings of this version, GPU and graph; None if nothing is timed."""
        if self.is_rtx:
            return None
        from ea_runtime.export.build_record import place

        key = hashlib.sha256(f"{self.version}\n{gpu}\n".encode() + graph.read_bytes()).hexdigest()[:32]
        return place().parent / "timing" / f"{self.target}-{key}.cache"


def load_api(target: str) -> Api:
    """The module of a target. Raises MissingPackageError with the command, UserError if it does not load."""
    name = _MODULES[target]
    if find_spec(name) is None:
        hint = (
            "" if target == "trt-rtx" else "; without an NVIDIA GPU, --trt-rtx and --onnx can be built here"
        )
        raise MissingPackageError(
            f"--{target} needs the package {_PACKAGES[target]}; run `pip install 'ea-runtime[onnx,{target}]'`{hint}"
        )
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a missing driver or library raises many kinds
        raise UserError(
            f"the package {_PACKAGES[target]} does not load here ({str(error)[:150]}); --onnx needs none of it"
        ) from error
    try:
        found = version(_PACKAGES[target])
    except PackageNotFoundError:
        found = str(getattr(module, "__version__", "unknown"))
    return Api(target, module, found)


def require_device(target: str) -> str:
    """The GPU's name. Raises UserError, with what to do instead, if there is none."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"--{target} needs an NVIDIA GPU, and this machine has none that torch can use; here you can build"
            " --trt-rtx (ahead of time, for a card named by --capability) and --onnx"
        )
    return torch.cuda.get_device_name()
