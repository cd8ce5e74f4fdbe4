"""Models on one device: loaded once, and kept while they fit; the one used longest ago goes first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ea_runtime.files.safe import inside, is_file, read_json
from ea_runtime.generation.making import ModelHash
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.windows import windows_of
from ea_runtime.machine.device import choose_device, choose_dtype
from ea_runtime.machine.memory import free_memory
from ea_runtime.models.geometry import Geometry
from ea_runtime.models.hash import hashed_files
from ea_runtime.models.layout import IMAGE_ENCODER, PARTS, resolve_folder
from ea_runtime.models.memory.estimates import estimate_decode, estimate_denoise
from ea_runtime.models.weights import find_weights
from ea_runtime.planning.room import free_memory_of_host
from ea_runtime.serve.catalogue import ModelEntry
from ea_runtime.serve.worker.loras import Loras
from ea_runtime.serve.worker.preview import Previewer

logger = logging.getLogger("ea.serve")

_SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
#: memory that stays free beyond the estimates, which leave out libraries and the allocator
_SPARE = 0.1


@dataclass(slots=True)
class LoadedModel:
    """A model on the device. sha256: its hash when it is called. stamp: sizes and times of its files."""

    pipe: VideoPipeline
    sha256: Callable[[], str]
    loras: Loras
    previewer: Previewer
    stamp: list[Any]


class Models:
    """The models of one worker.

    device: as `VideoPipeline.from_pretrained` takes it. free: bytes that are free on the device, for tests.
    """

    def __init__(self, device: str | None, free: Callable[[torch.device], int] | None = None) -> None:
        self.device = choose_device(device)
        self.dtype = choose_dtype(self.device)
        self._free = free or free_bytes
        self._loaded: dict[str, LoadedModel] = {}  # the one used last comes last

    def get(self, entry: ModelEntry, request: ModelRequest) -> tuple[LoadedModel, float]:
        """The model of a request, and the seconds that it took to load, 0 if it was there.

        Others make room where the estimate says so. Raises UserError for one that cannot be loaded.
        """
        folder = resolve_folder(entry.folder)
        stamp = _stamp(folder)
        model = self._loaded.pop(entry.folder, None)
        if model is not None and model.stamp != stamp:
            logger.warning("the files of model %s changed: it is loaded again", entry.name)
            model = None
        self._make_room(self._needed(folder, request, with_weights=model is None))
        start = time.perf_counter()
        if model is None:
            free_memory()  # a replaced one
            pipe = VideoPipeline.from_pretrained(entry.folder, device=str(self.device))
            model = LoadedModel(
                pipe, ModelHash(entry.folder), Loras(pipe), Previewer(pipe, entry.folder), stamp
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

    def _needed(self, folder: Path, request: ModelRequest, *, with_weights: bool) -> int:
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
        weights = _weight_bytes(folder, self.dtype, self.device) if with_weights else 0
        return int((max(steps) + weights) * (1 + _SPARE))

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


def _stamp(folder: Path) -> list[Any]:
    """Sizes and times of all files that loading reads."""
    stats = {name: (folder / name).stat() for name in hashed_files(folder)}
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats.items()]
