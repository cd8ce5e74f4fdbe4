"""Models on one device: loaded once, and kept while they fit; the one used longest ago goes first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ea_runtime.errors import UserError
from ea_runtime.files.safe import inside, is_file, read_json
from ea_runtime.generation.adapters import AdapterChoice
from ea_runtime.generation.forecasts import forecast_request
from ea_runtime.generation.making import ModelHash
from ea_runtime.generation.offload_modes import AUTO
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.windows import windows_of
from ea_runtime.machine.device import choose_device, choose_dtype, dtype_name
from ea_runtime.machine.memory import current_rss, free_memory
from ea_runtime.models.geometry import Geometry
from ea_runtime.models.hash import hashed_files
from ea_runtime.models.layout import IMAGE_ENCODER, PARTS, resolve_folder
from ea_runtime.models.memory.estimates import estimate_decode, estimate_denoise
from ea_runtime.models.quantize import parse_quantize
from ea_runtime.models.weights import find_weights
from ea_runtime.planning.calibration import Calibration
from ea_runtime.planning.forecast import Way
from ea_runtime.planning.parts import read_parts
from ea_runtime.planning.phases import CUDA_CONTEXT, Planner
from ea_runtime.planning.room import free_memory_of_host
from ea_runtime.serve.catalogue import ModelEntry
from ea_runtime.serve.crew import Loading
from ea_runtime.serve.worker.loras import Loras
from ea_runtime.serve.worker.preview import Previewer

logger = logging.getLogger("ea.serve")

_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
#: memory that stays free beyond the estimates, which leave out libraries and the allocator
_SPARE = 0.1


@dataclass(slots=True)
class LoadedModel:
    """A model on the device. sha256: its hash when it is called. stamp: sizes and times of its files. offload: where
    weights wait that are not in use."""

    pipe: VideoPipeline
    sha256: Callable[[], str]
    loras: Loras
    previewer: Previewer
    stamp: list[Any]
    offload: str = "none"


class Models:
    """The models of one worker.

    device: as `VideoPipeline.from_pretrained` takes it. free: bytes that are free on the device, for tests. loading:
    the form in which they are held.
    """

    def __init__(
        self,
        device: str | None,
        free: Callable[[torch.device], int] | None = None,
        loading: Loading | None = None,
    ) -> None:
        self.loading = loading or Loading()
        self._forms = parse_quantize(self.loading.quantize)
        self.device = choose_device(device)
        self.dtype = choose_dtype(self.device)
        self._free = free or free_bytes
        self._loaded: dict[str, LoadedModel] = {}  # the one used last comes last

    def get(
        self, entry: ModelEntry, request: ModelRequest, adapters: Sequence[AdapterChoice] = ()
    ) -> tuple[LoadedModel, float]:
        """The model of a request, and the seconds that it took to load, 0 if it was there.

        Others make room where the estimate says so. adapters: LoRAs that it will have. Raises UserError for one that
        cannot be loaded.
        """
        folder = resolve_folder(entry.folder)
        stamp = self._stamp(folder)
        offload = self._offload(folder, request, adapters)
        model = self._loaded.pop(entry.folder, None)
        if model is not None and model.stamp != stamp:
            logger.warning("the files of model %s changed: it is loaded again", entry.name)
            model = None
        if model is not None and model.offload != offload:
            logger.info("model %s is loaded again, with offload %s", entry.name, offload)
            model = None
        self._make_room(self._needed(folder, request, with_weights=model is None, offload=offload))
        start = time.perf_counter()
        if model is None:
            free_memory()  # a replaced one
            pipe = VideoPipeline.from_pretrained(
                entry.folder, device=str(self.device), quantize=self._forms, offload=offload
            )
            model = LoadedModel(
                pipe, ModelHash(entry.folder), Loras(pipe), Previewer(pipe, entry.folder), stamp, offload
            )
            seconds = time.perf_counter() - start
        else:
            seconds = 0.0
        self._loaded[entry.folder] = model
        return model, seconds

    def drop_others(self, entry: ModelEntry) -> bool:
        """Drops all models but one; False if there is no other."""
        others = [folder for folder in self._loaded if folder != entry.folder]
        for folder in others:
            del self._loaded[folder]
        free_memory()
        return bool(others)

    def drop(self, folder: str) -> None:
        """Drops a model if it is loaded."""
        if self._loaded.pop(folder, None) is not None:
            free_memory()

    @property
    def folders(self) -> list[str]:
        """Folders of the loaded models, the one used last at the end."""
        return list(self._loaded)

    def _make_room(self, needed: int) -> None:
        while self._loaded and self._free(self.device) < needed:
            oldest = next(iter(self._loaded))
            logger.warning("model %s makes room for the next job", Path(oldest).name)
            del self._loaded[oldest]
            free_memory()

    def _offload(self, folder: Path, request: ModelRequest, adapters: Sequence[AdapterChoice]) -> str:
        """Where the weights of a job's model wait: as asked for, or the cheapest way that fits."""
        if self.loading.offload != AUTO:
            return self.loading.offload
        asked = replace(request, device=str(self.device), dtype=dtype_name(self.dtype), offload=AUTO)
        kind = "png" if request.num_frames == 1 else "mp4"
        try:
            forecast = forecast_request(
                asked,
                folder,
                adapters=adapters,
                memory=self._whole_room(),
                kind=kind,
                is_last=False,
                is_exact=True,
            )
        except UserError:  # a network of an unknown class, or loading says more
            return "none"
        return forecast.way.offload

    def _whole_room(self) -> int:
        """Bytes on the device that this process has or can have, without other models."""
        free = self._free(self.device)
        if self.device.type == "cuda":
            return free + torch.cuda.memory_allocated(self.device) + CUDA_CONTEXT
        return free + current_rss()

    def _needed(
        self, folder: Path, request: ModelRequest, *, with_weights: bool, offload: str = "none"
    ) -> int:
        """Bytes that a job takes, by estimate: activations, and weights that are not loaded."""
        configs = {part: _config(folder, PARTS[part].folder) for part in ("vae", "denoiser")}
        size = {"height": request.height, "width": request.width}
        steps = [estimate_decode(configs["vae"], **size).bytes_by_dtype[_SHORT[torch.float32]]]
        denoising = estimate_denoise(
            configs["denoiser"],
            configs["vae"],
            **size,
            num_frames=self._denoised_frames(request, configs),
            batch=2 if request.has_guidance else 1,
        )
        steps.append(denoising.bytes_by_dtype[_SHORT.get(self.dtype, "fp32")])
        weights = self._weight_bytes(folder, offload) if with_weights else 0
        return int((max(steps) + weights) * (1 + _SPARE))

    def _weight_bytes(self, folder: Path, offload: str) -> int:
        """Bytes of a model's weights on the device in the form in which they are held."""
        if self._forms is None and offload == "none":
            return _weight_bytes(folder, self.dtype, self.device)
        try:
            parts = read_parts(folder)
        except UserError:  # of an unknown class
            return _weight_bytes(folder, self.dtype, self.device)
        geometry = Geometry.from_configs(parts["vae"].config, parts["denoiser"].config)
        dtype, kind = dtype_name(self.dtype), self.device.type
        planner, way = (
            Planner(parts, geometry, kind, dtype, Calibration(), self._forms),
            Way("", offload=offload),
        )
        encoder = parts.get(IMAGE_ENCODER)
        held = max(planner.held(phase, way) for phase in ("text", "denoising", "decoding"))
        return held + (4 * encoder.elements if encoder is not None and kind == "cpu" else 0)

    def _stamp(self, folder: Path) -> list[Any]:
        """Sizes and times of all files that loading reads."""
        files = [folder / name for name in hashed_files(folder)]
        files += [] if self._forms is None or self._forms.gguf is None else [self._forms.gguf]
        stats = [(file, file.stat()) for file in files]
        return [(str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino) for file, stat in stats]

    @staticmethod
    def _denoised_frames(request: ModelRequest, configs: dict[str, dict[str, Any]]) -> int:
        """Frames that are denoised together: of a long video one window."""
        geometry = Geometry.from_configs(configs["vae"], configs["denoiser"])
        return windows_of(request.settings, geometry).longest


def free_bytes(device: torch.device) -> int:
    """Bytes that are free for this process on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_memory_of_host()


def _weight_bytes(folder: Path, dtype: torch.dtype, device: torch.device) -> int:
    total = 0
    if device.type == "cpu" and inside(folder, IMAGE_ENCODER).is_dir():
        # it is on the CPU and in float32 whatever the device
        total += 4 * sum(entry.count for entry in find_weights(folder, IMAGE_ENCODER).tensors.values())
    for spec in PARTS.values():
        if is_file(inside(folder, f"{spec.folder}/config.json")):
            elements = sum(entry.count for entry in find_weights(folder, spec.folder).tensors.values())
            half_vae = spec.name == "vae" and dtype == torch.float16  # runs in float32
            total += elements * (4 if half_vae else dtype.itemsize)
    return total


def _config(folder: Path, part: str) -> dict[str, Any]:
    name = f"{part}/config.json"
    return read_json(folder, name) if is_file(inside(folder, name)) else {}
