"""The rows, the most valuable first. Imports no torch.

A row's `case` is its name in benchmarks/results/ and in docs/performance.md; `step`, `chunk` and `video` rows have the
names of the benchmarks that they answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LARGE, MIDDLE, SMALL = "768x768x144", "512x512x144", "384x384x72"


@dataclass(frozen=True, slots=True)
class Row:
    """A measurement.

    name: unique. run: "module:function". seconds: expected on an H100 at most; with less time left the
    row is skipped, and after twice this it is ended. group: the benchmark that `case` belongs to. needs_cuda: cannot be
    rehearsed on a CPU.
    """

    name: str
    run: str
    seconds: float
    arguments: Mapping[str, Any] = field(default_factory=dict)
    group: str = "gpu_check"
    case: str = ""
    needs_cuda: bool = False


def _step(size: str, way: str, seconds: float, needs_cuda: bool = False) -> Row:
    name = f"step {size}, {way}"
    arguments = {"size": size, "way": way}
    if way == "ours":
        return Row(name, "gpu_rows.step:run", seconds, arguments, "dit_step", f"{size}, 28 blocks, bf16")
    return Row(name, "gpu_rows.step:run", seconds, arguments, case=name, needs_cuda=needs_cuda)


def _chunk(size: str, way: str, seconds: float, needs_cuda: bool = False) -> Row:
    edge = size.rsplit("x", 1)[0]
    name = f"chunk {edge}, {way}"
    arguments = {"size": size, "way": way}
    if way == "ours":
        return Row(name, "gpu_rows.chunk:run", seconds, arguments, "vae_decode", f"{edge} chunk, bf16")
    return Row(name, "gpu_rows.chunk:run", seconds, arguments, case=name, needs_cuda=needs_cuda)


def _video(way: str, seconds: float) -> Row:
    case = f"{LARGE} {way}, bf16"
    return Row(
        f"decoding {LARGE}, {way}", "gpu_rows.chunk:video", seconds, {"way": way}, "decode_video", case
    )


def _own(name: str, run: str, seconds: float, needs_cuda: bool = False, **arguments: Any) -> Row:
    return Row(name, run, seconds, arguments, case=name, needs_cuda=needs_cuda)


ROWS: tuple[Row, ...] = (
    _own("matrix rate", "gpu_rows.machine:matrix_rate", 20),
    _own("goldens, fp32", "gpu_rows.goldens:run", 15, dtype="float32"),
    _own("goldens, bf16", "gpu_rows.goldens:run", 10, dtype="bfloat16"),
    _step(LARGE, "ours", 30),
    _chunk(LARGE, "ours", 15),
    _step(MIDDLE, "ours", 12),
    _chunk(MIDDLE, "ours", 8),
    _step(SMALL, "ours", 8),
    _chunk(SMALL, "ours", 8),
    _step(LARGE, "compiled", 60),
    _own(f"whole run {LARGE}, 30 steps", "gpu_rows.video:whole", 60, size=LARGE, steps=30),
    _step(LARGE, "fp8", 20),
    _own(f"profile {LARGE}", "gpu_rows.profiles:run", 12, size=LARGE),
    _step(LARGE, "CUDA graphs", 45, needs_cuda=True),
    _own(f"plan {LARGE}", "gpu_rows.memory:plan", 20, size=LARGE),
    _own(f"plan {MIDDLE}", "gpu_rows.memory:plan", 10, size=MIDDLE),
    _own(f"plan {SMALL}", "gpu_rows.memory:plan", 8, size=SMALL),
    _own("group offload under 24 GB", "gpu_rows.memory:offload", 25, size=LARGE, cap=24e9),
    _own("group offload under 12 GB", "gpu_rows.memory:offload", 25, size=LARGE, cap=12e9),
    _own("fp8 storage", "gpu_rows.memory:fp8_storage", 15, size=LARGE),
    _own("flat decoding to 720 frames", "gpu_rows.memory:flat", 40, size=MIDDLE),
    _own("LoRA step at 512, low_vram, under 24 GB", "gpu_rows.lora:run", 60, cap=24e9),
    _step(LARGE, "fp8, compiled", 60),
    _chunk(LARGE, "compiled", 80),
    _chunk(LARGE, "CUDA graphs", 40, needs_cuda=True),
    _video("plain", 20),
    _step(MIDDLE, "compiled", 40),
    _step(MIDDLE, "CUDA graphs", 30, needs_cuda=True),
    _step(MIDDLE, "fp8", 10),
    _step(SMALL, "compiled", 35),
    _step(SMALL, "CUDA graphs", 25, needs_cuda=True),
    _step(SMALL, "fp8", 8),
    _video("smoothed", 40),
    _chunk(MIDDLE, "compiled", 60),
    _chunk(SMALL, "compiled", 60),
)
