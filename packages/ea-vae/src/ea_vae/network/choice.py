"""The form of a convolution (rewrites.py) that runs, for each shape.

    rule     the default: a fixed function of device and shape, from measurements (docs/performance.md)
    measure  each shape is timed once, in all its forms, on this machine; the fastest is remembered, also on disk
    always   every rewrite, whatever the shape
    plain    none

The forms differ in the last bits. So the default never looks at a clock: the same command must give the same bytes,
also in another process and after the memory on disk is lost. `measure` is asked for, with EA_VAE_REWRITES=measure or
`AutoencoderKLMagvit.set_rewrites`; its choices hold as long as the file does.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

CHOICES = ("rule", "measure", "always", "plain")
VARIABLE = "EA_VAE_REWRITES"

# Found on a CPU with AVX2 (float32, one thread, oneDNN): below these a form loses what its sums of weights and its
# extra calls cost. POSITIONS are T * H * W of the input; weights above SMALL elements leave the processor's cache.
_SMALL_WEIGHT = 1 << 18
_MIN_WORK = {"summed": 130_000_000, "phase": 150_000_000}  # multiply-adds of the plain form
_MIN_POSITIONS = {"summed": (192, 512), "phase": (192, 768), "picture": (4, 64)}  # small weights, others
# Winograd's form (winograd.py) has transforms besides: of each tile, which wide layers pay for, and of the taps.
_WINOGRAD = {"channels": 64, "image": 1024, "positions": 3072}  # enlarging: 4 times the channels
_MIN_WORK_CUDA = 1_000_000_000  # counted, not measured: below this a kernel takes less than its launch


def current(own: str | None) -> str:
    """The choice in force: a network's own, else the environment's, else "rule". Raises ValueError for others."""
    if own is not None:
        return own
    if torch.compiler.is_compiling():
        return "rule"
    return check(os.environ.get(VARIABLE) or "rule", VARIABLE)


def check(value: str, name: str) -> str:
    """`value`; raises ValueError for anything but a choice."""
    if value not in CHOICES:
        raise ValueError(
            f"`{name}` must be one of {', '.join(CHOICES)}, got {value!r}; leave it out for 'rule'"
        )
    return value


def by_rule(x: Tensor, weight: Tensor, *, causal: bool, enlarges: bool, has_tiles: bool = False) -> str:
    """The form for this shape: "direct", "summed", "phase", "both" or "winograd".

    has_tiles: Winograd's form can compute it.
    """
    positions = x.shape[2] * x.shape[3] * x.shape[4]
    work = x.shape[0] * positions * weight.numel() * (4 if enlarges else 1)
    if x.device.type == "cuda":
        if work < _MIN_WORK_CUDA:
            return "direct"
        return ("both" if causal else "phase") if enlarges else "summed"
    if x.device.type != "cpu":
        return "direct"
    if has_tiles and _is_for_winograd(x, weight, enlarges):
        return "winograd"
    large = int(weight.numel() > _SMALL_WEIGHT)
    if enlarges:
        if positions >= _MIN_POSITIONS["phase"][large] and work >= _MIN_WORK["phase"]:
            return "both" if causal else "phase"
        positions *= 4
    if x.shape[2] == 1:
        # one frame: a picture's convolution, a third of the work
        return "summed" if positions >= _MIN_POSITIONS["picture"][large] else "direct"
    if not causal:
        return "summed"  # only who pads differs
    pays = positions >= _MIN_POSITIONS["summed"][large] and work >= _MIN_WORK["summed"]
    return "summed" if pays else "direct"


def _is_for_winograd(x: Tensor, weight: Tensor, enlarges: bool) -> bool:
    image = x.shape[3] * x.shape[4] * (4 if enlarges else 1)
    frames = 3 if x.shape[2] == 1 else x.shape[2]  # a picture has one set of taps to transform, not five
    return (
        min(weight.shape[:2]) >= _WINOGRAD["channels"] * (4 if enlarges else 1)
        and image >= _WINOGRAD["image"]
        and image * frames >= _WINOGRAD["positions"]
    )


class Memory:
    """The fastest form by machine and shape: in this process, and in a JSON file that may be lost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, str] | None = None

    def choose(self, key: str, forms: Mapping[str, Callable[[], Tensor]]) -> str:
        """The remembered form of `key`, or the fastest of `forms`, each run once to warm up and three times timed."""
        if self.found is None:
            self.found = self._stored()
        if self.found.get(key) not in forms:
            self.found[key] = self._add(key, fastest(forms))
        return self.found[key]

    def _stored(self) -> dict[str, str]:
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {k: v for k, v in stored.items() if isinstance(v, str)} if isinstance(stored, dict) else {}

    def _add(self, key: str, form: str) -> str:
        """Adds one choice to the file; choices that other processes wrote meanwhile stay, and win."""
        stored = self._stored()
        form = stored.setdefault(key, form)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(stored, file, indent=1, sort_keys=True)
            os.replace(name, self.path)
        except OSError as error:
            logger.warning("%s cannot be written (%s): this measurement will be made again", self.path, error)
        return form


def fastest(forms: Mapping[str, Callable[[], Tensor]]) -> str:
    """The name of the form whose best of three runs is shortest; the runs are interleaved."""
    best = dict.fromkeys(forms, float("inf"))
    for turn in range(4):
        for name, run in forms.items():
            started = time.perf_counter()
            out = run()
            if out.is_cuda:
                torch.cuda.synchronize(out.device)
            if turn:  # the first is the warm-up
                best[name] = min(best[name], time.perf_counter() - started)
    return min(best, key=best.__getitem__)


def describe_key(x: Tensor, weight: Tensor, stride: tuple[int, ...], mode: str, enlarges: bool) -> str:
    """Everything that a measurement depends on: machine, torch, threads, number format and shapes."""
    if x.is_cuda:
        machine = torch.cuda.get_device_name(x.device)
    else:
        machine = f"{platform.machine()} {processor()} {torch.get_num_threads()} threads"
    shape = "x".join(str(size) for size in (*x.shape, *weight.shape))
    kind = f"{'enlarging ' if enlarges else ''}{mode} stride {stride[0]},{stride[1]}"
    return f"{machine} | torch {torch.__version__} | {str(x.dtype).removeprefix('torch.')} | {kind} | {shape}"


def processor() -> str:
    """The processor's name, or "" if the system has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def cache_file() -> Path:
    """$EA_CACHE or the user's cache folder, in it vae-rewrites.json."""
    given = os.environ.get("EA_CACHE")
    folder = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ea"
    return folder / "vae-rewrites.json"


@lru_cache
def memory(path: Path) -> Memory:
    """The process's memory of measurements."""
    return Memory(path)
