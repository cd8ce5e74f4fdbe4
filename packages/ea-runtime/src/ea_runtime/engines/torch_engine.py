"""The engine "torch": the model folder itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from ea_runtime.errors import UserError
from ea_runtime.machine.device import choose_device, choose_dtype, describe
from ea_runtime.models.loading import Parts, load_parts
from ea_runtime.models.quantize import Quantize


class TorchEngine:
    """Loads modules; with float16 the VAE runs in float32, as in V2."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        bundle: Any = None,
        device: Any = None,
        dtype: Any = None,
        quantize: Quantize | None = None,
    ) -> None:
        if bundle is not None:
            raise UserError(
                "engine 'torch' runs no bundle; leave `bundle` out, or give engine 'onnx', 'trt' or 'trt-rtx'"
            )
        self.model = model
        self.device = choose_device(device)
        self.dtype = choose_dtype(self.device, dtype)
        self.quantize = quantize
        #: one of generation/offload.py's modes; set before `load`
        self.offload = "none"

    def load(self, parts: Iterable[str]) -> Parts:
        """See Engine."""
        wanted = tuple(parts)
        waits = self.offload == "group" and self.device.type == "cpu"
        device = self.device if self.offload == "none" else "cpu"
        if self.dtype != torch.float16 or "vae" not in wanted:
            return load_parts(
                self.model, device, self.dtype, parts=wanted, waits=waits, quantize=self.quantize
            )
        rest = tuple(part for part in wanted if part != "vae")
        vae = load_parts(self.model, device, torch.float32, parts=("vae",), waits=waits)
        others = load_parts(self.model, device, self.dtype, parts=rest, waits=waits, quantize=self.quantize)
        return replace(others, vae=vae.vae, notes=(*vae.notes, *others.notes))

    def describe(self) -> str:
        """See Engine."""
        return describe(self.device)

    def check(self, num_frames: int, height: int, width: int) -> None:
        """Any size that the model takes."""
