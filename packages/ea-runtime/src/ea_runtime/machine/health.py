"""Checks of a machine: torch, processor, number formats, devices, codecs, memory, disk, installed extras."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ea_runtime.machine.processor import instruction_sets, limits, processor_name

State = Literal["ok", "note", "broken"]

#: Below this much free disk a checkpoint of a small model does not fit.
LOW_DISK = 2 * 10**9
#: Codecs that the writers need, and those of people's footage.
ENCODERS = ("libx264",)
DECODERS = ("h264", "hevc", "vp9", "av1", "mpeg4", "prores", "mjpeg")
#: Instruction sets that matrix arithmetic is chosen by.
_MATRIX = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "neon", "bf16")
_PACKAGES = ("ea-runtime", "ea-vae", "ea-dit", "ea-data", "ea-lora")


class Check(NamedTuple):
    """A line of the report. broken: something would fail or be wrong; note: worth knowing."""

    name: str
    state: State
    text: str


def checks() -> Iterator[Check]:
    """All checks, in the order in which they are shown; those of number formats compute for some seconds."""
    for check in (_torch, _processor, _number_formats, _devices, _video, _memory, _disk, _packages):
        try:
            yield from check()
        except Exception as error:  # broken parts are what this looks for: none may end the report
            name = check.__name__.strip("_").replace("_", " ")
            yield Check(name, "broken", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _torch() -> Iterator[Check]:
    import torch

    yield Check(
        "torch", "ok", f"{torch.__version__}, Python {platform.python_version()}, {platform.platform()}"
    )


def _processor() -> Iterator[Check]:
    import torch

    parts = [processor_name(), f"{os.cpu_count()} cores", f"{torch.get_num_threads()} threads"]
    sets = [one for one in instruction_sets() if one in _MATRIX or one.startswith(("amx", "sve"))]
    parts += [" ".join(sets)] * bool(sets)
    yield Check("processor", "ok", ", ".join(parts))
    if limits():
        yield Check("processor", "note", f"limited by {', '.join(limits())}")


def _number_formats() -> Iterator[Check]:
    import torch

    from ea_runtime.machine.canary import dtype_name
    from ea_runtime.machine.device import has_bf16, has_fp16

    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices:
        for dtype, has_it in ((torch.bfloat16, has_bf16(device)), (torch.float16, has_fp16(device))):
            name = f"{dtype_name(dtype)} on {device}"
            if has_it:
                yield from _canaries(name, torch.device(device), dtype)
            else:
                yield Check(name, "note", "no arithmetic for it here: emulated, many times slower than fp32")


def _canaries(name: str, device: Any, dtype: Any) -> Iterator[Check]:
    from ea_runtime.machine.canary import Canary
    from ea_runtime.machine.trials import trials

    canary = Canary(device, None)
    wrong, count = [], 0
    for trial in trials(dtype):
        verdict, count = canary.verdict(trial), count + 1
        if verdict.reason:
            yield Check(name, "note", f"{trial.name} of {trial.shapes} could not be tried: {verdict.reason}")
        wrong += [
            f"{trial.outputs[index]} of {trial.name} {trial.shapes} (relative error {error:.2g})"
            for index, error in verdict.wrong.items()
        ]
    if not wrong:
        yield Check(name, "ok", f"right in {count} trials against fp32")
        return
    yield Check(
        name, "broken", f"wrong in {len(wrong)} of {count} trials; runs compute these in fp32 instead"
    )
    yield from (Check(name, "broken", line) for line in wrong)


def _devices() -> Iterator[Check]:
    import torch

    if torch.backends.mps.is_available():
        yield Check("devices", "ok", "mps (Apple GPU)")
    if not torch.cuda.is_available():
        has_cuda = torch.version.cuda is not None
        built = "this torch has CUDA, but no device that it can use" if has_cuda else "a torch without CUDA"
        yield Check("devices", "note", f"no CUDA device: {built}")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = f"cuda:{index} {torch.cuda.get_device_name(index)}"
        yield Check("devices", "ok", f"{name}, {_gb(free)} of {_gb(total)} free")
    cudnn = torch.backends.cudnn.version() or 0
    if torch.__version__.startswith("2.9.0") and cudnn < 91500:
        fault = f"torch 2.9.0 with cuDNN {cudnn} takes 17 times the memory for 3-D convolutions"
        yield Check("devices", "broken", f"{fault}; install cuDNN 9.15 or newer")


def _video() -> Iterator[Check]:
    import av

    missing = [name for name in ENCODERS if not _has_codec(name, "w")]
    lacking = [name for name in DECODERS if not _has_codec(name, "r")]
    where = f"PyAV {av.__version__}, ffmpeg {av.ffmpeg_version_info}"
    if missing:
        yield Check(
            "video", "broken", f"{where} cannot write {', '.join(missing)}: reinstall av from its wheel"
        )
    else:
        yield Check("video", "ok", f"{where}; writes {', '.join(ENCODERS)}")
    if lacking:
        yield Check("video", "note", f"cannot read {', '.join(lacking)}")


def _has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    import av

    try:
        av.Codec(name, mode)
    except ValueError:  # av raises a kind of it
        return False
    return True


def _memory() -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory()
    yield Check("memory", "ok", f"{_gb(memory.available)} of {_gb(memory.total)} free")


def _disk() -> Iterator[Check]:
    from ea_runtime.machine.canary import canary_file

    free = shutil.disk_usage(Path.cwd()).free
    yield Check("disk", "ok" if free > LOW_DISK else "broken", f"{_gb(free)} free in this folder")
    cache = canary_file().parent
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        yield Check(
            "disk", "note", f"the cache {cache} cannot be written: what is found about a machine is not kept"
        )


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    installed, lacking = [], []
    for package in _PACKAGES:
        try:
            found = importlib.metadata.metadata(package)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(package)
            continue
        installed.append(f"{package} {found['Version']}")
        for extra in found.get_all("Provides-Extra") or []:
            wanted = [Requirement(line) for line in importlib.metadata.requires(package) or []]
            own = [one for one in wanted if one.marker and _is_of_extra(one, extra)]
            (installed if all(map(_is_installed, own)) else lacking).append(f"{package}[{extra}]")
    yield Check("packages", "ok", ", ".join(installed))
    if lacking:
        yield Check("packages", "note", f"not installed: {', '.join(lacking)}")


def _is_of_extra(requirement: Any, extra: str) -> bool:
    return requirement.marker.evaluate({"extra": extra}) and not requirement.marker.evaluate({"extra": ""})


def _is_installed(requirement: Any) -> bool:
    try:
        return requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
