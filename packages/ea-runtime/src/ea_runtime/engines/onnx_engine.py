"""The engine "onnx": ONNX Runtime on a CPU or an NVIDIA GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ea_runtime.engines.base import ExportedEngine, Session
from ea_runtime.errors import UserError
from ea_runtime.export.bundle import GraphInfo
from ea_runtime.export.onnx_session import OnnxSession, require_onnxruntime

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxEngine(ExportedEngine):
    """device: "cpu"; "cuda" (or "cuda:N"), which is then required; None takes CUDA if it works."""

    target = "onnx"

    def __init__(self, model: str | os.PathLike[str], *, device: Any = None, **settings: Any) -> None:
        require_onnxruntime()
        super().__init__(model, device=device, **settings)
        self.providers = _providers(device)
        self.seen: list[str] = []

    def open_graph(self, info: GraphInfo, overrides: Mapping[str, Tensor]) -> Session:
        """See ExportedEngine."""
        session = OnnxSession(self.bundle.folder / info.file, self.providers, overrides)
        self.seen = session.providers
        if self.providers[0] != _CPU and self.device is not None and _CUDA not in self.seen:
            raise UserError(
                f"`device` is {str(self.device)!r}, but the session of ONNX Runtime has {', '.join(self.seen)}; install"
                " the CUDA libraries that onnxruntime-gpu asks for, or use cpu"
            )
        return session.run

    def describe(self) -> str:
        """The providers of a real session; one is opened if there is none yet."""
        if not self.seen:
            smallest = min(self.bundle.graphs, key=lambda g: (self.bundle.folder / g.weights).stat().st_size)
            self.open_graph(smallest, {})
        return f"ONNX Runtime ({', '.join(self.seen)})"


def _providers(device: Any) -> list[str]:
    """The providers to ask for. Raises UserError for a device that ONNX Runtime has none for."""
    import torch

    from ea_runtime.machine.device import choose_device

    if device is None or device == "auto":
        has = torch.cuda.is_available() and _CUDA in require_onnxruntime().get_available_providers()
        return [_CUDA, _CPU] if has else [_CPU]
    chosen = choose_device(device)
    if chosen.type == "cpu":
        return [_CPU]
    if chosen.type != "cuda" or _CUDA not in require_onnxruntime().get_available_providers():
        raise UserError(f"engine 'onnx' runs on cpu or cuda here, got `device` {str(chosen)!r}; use cpu")
    return [_CUDA, _CPU]
