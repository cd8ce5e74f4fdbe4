"""Canary of a number format: does an operation in bfloat16 or float16 give what it gives in float32?

Libraries have shipped kernels that are wrong at single shapes: oneDNN's weight gradient of some 3-D convolutions is NaN
in bfloat16 on CPUs with AMX, and cuDNN 9.10.2 gave wrong large convolutions in bfloat16. So each operation that a run
computes in a reduced format is tried once at its own shape, on drawn numbers, against the same operation in float32.
The results are kept for the machine, its torch and its threads.

Rounding alone gives relative errors of about 0.002 in bfloat16. An output counts as wrong if it is not finite, if the
norm of its error exceeds TOLERANCE of its own norm, or if a single value is off by more than OUTLIER times the root
mean square.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from platformdirs import user_cache_path
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from ea_runtime.files.atomic import write_atomic
from ea_runtime.machine.processor import limits, processor_name

logger = logging.getLogger("ea")

_aten = torch.ops.aten
REDUCED = (torch.bfloat16, torch.float16)
TOLERANCE = 0.05
OUTLIER = 0.5
_GRADIENTS = ("input gradient", "weight gradient", "bias gradient")
_ATTENTION = ("output", "query gradient", "key gradient", "value gradient")
#: Version of the file's contents: a file of another version counts as empty.
_VERSION = 1


class Spec(NamedTuple):
    """A tensor argument without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        layout = "" if self.stride == _contiguous(self.shape) else f"/{'.'.join(map(str, self.stride))}"
        return f"{dtype_name(self.dtype)}[{'x'.join(map(str, self.shape))}{layout}]"


class Trial(NamedTuple):
    """An operation with its arguments: tensors as `Spec`, lists as tuples.

    op: of torch.ops.aten, or `attention` below, whose gradients are tried with it.
    """

    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The operation's name for people."""
        return _name(self.op).removesuffix("_backward").replace("native_", "").replace("_", " ")

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of its outputs."""
        if self.op is attention:
            return _ATTENTION
        return _GRADIENTS if _name(self.op).endswith("_backward") else ("output",)

    @property
    def key(self) -> str:
        """The trial as text, for the file."""
        parts = [_words(value) for value in self.args]
        return " ".join([_name(self.op), *parts, *(f"{k}={_words(v)}" for k, v in self.kwargs)])

    @property
    def shapes(self) -> str:
        """Its tensors' shapes, for people."""
        leaves = tree_leaves(self.args, is_leaf=lambda value: isinstance(value, Spec))
        return ", ".join("x".join(map(str, one.shape)) for one in leaves if isinstance(one, Spec))


class Verdict(NamedTuple):
    """Outputs of a trial that are wrong: index -> relative error. reason: why it could not be tried, else ""."""

    wrong: Mapping[int, float] = {}
    reason: str = ""


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: Any, gradients: bool
) -> tuple[Tensor, ...]:
    """Attention and, with `gradients`, those of query, key and value for an output gradient of a fixed draw."""
    leaves = [tensor.requires_grad_(gradients) for tensor in (query, key, value)]
    with torch.set_grad_enabled(gradients):
        out = F.scaled_dot_product_attention(*leaves, attn_mask=mask, is_causal=causal, scale=scale)
    if not gradients:
        return (out,)
    weight = _drawn(Spec(tuple(out.shape), _contiguous(tuple(out.shape)), out.dtype), out.device, 1)
    return (out.detach(), *torch.autograd.grad(out, leaves, weight))


class Canary:
    """Tries operations on one device and remembers the results, in this process and in a file.

    path: the file; None keeps nothing. A damaged file counts as empty, and one that cannot be written only costs time.
    """

    def __init__(self, device: torch.device, path: Path | None) -> None:
        self.device = device
        self.path = path
        self.machine = describe_machine(device)
        self._verdicts: dict[Trial, Verdict] = {}
        self._stored: dict[str, Verdict] | None = None
        self._new: dict[str, Verdict] = {}

    def verdict(self, trial: Trial) -> Verdict:
        """The verdict on a trial, which is made if there is none yet."""
        if trial not in self._verdicts:
            same = as_computed(trial, self.device)
            if same not in self._verdicts:
                self._verdicts[same] = self._settle(same)
            self._verdicts[trial] = self._verdicts[same]
        return self._verdicts[trial]

    def _settle(self, trial: Trial) -> Verdict:
        if self._stored is None:
            self._stored = self._read()
        found = self._stored.get(trial.key)
        if found is None:
            found = self._try(trial)
            if not found.reason:
                self._new[trial.key] = found
        return found

    def save(self) -> None:
        """Adds the new verdicts to the file. What other processes wrote meanwhile stays."""
        if self.path is None or not self._new:
            return
        tables = _read_tables(self.path)
        table = tables.setdefault(self.machine, {})
        for key, verdict in self._new.items():
            # infinity, which JSON lacks, as text
            table[key] = [[i, e if math.isfinite(e) else "inf"] for i, e in verdict.wrong.items()]
        self._new.clear()
        try:
            write_atomic(self.path, json.dumps({"version": _VERSION, "machines": tables}))
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s): number formats are checked again next time", self.path, error
            )

    def _read(self) -> dict[str, Verdict]:
        table = {} if self.path is None else _read_tables(self.path).get(self.machine, {})
        try:
            return {key: Verdict({int(i): float(error) for i, error in rows}) for key, rows in table.items()}
        except (TypeError, ValueError, AttributeError):
            return {}

    def _try(self, trial: Trial) -> Verdict:
        """Makes a trial in a separate thread, where no autocast, inference mode or dispatch mode is active."""
        with ThreadPoolExecutor(1, "canary") as thread:
            return thread.submit(self._tried, trial).result()

    def _tried(self, trial: Trial) -> Verdict:
        try:
            if self.device.type == "cuda" and self.device.index is not None:
                torch.cuda.set_device(self.device)
            with torch.no_grad():
                return Verdict(self._compare(trial))
        except (RuntimeError, MemoryError) as error:  # too little memory, or no float32 form of the kernel
            return Verdict(reason=" ".join(str(error).split())[:120] or type(error).__name__)

    def _compare(self, trial: Trial) -> dict[int, float]:
        seeds = itertools.count(1)

        def draw(value: Any) -> Any:
            if isinstance(value, Spec):
                return _drawn(value, self.device, next(seeds))
            return tuple(draw(one) for one in value) if isinstance(value, tuple) else value

        args = [draw(value) for value in trial.args]
        kwargs = {name: draw(value) for name, value in trial.kwargs}
        low = _tuple(trial.op(*args, **kwargs))
        args, kwargs = to_float32((args, kwargs))
        high = _tuple(trial.op(*args, **kwargs))
        errors: dict[int, float] = {}
        # later outputs (statistics of a norm, sums of an attention) are intermediate values
        for index in range(min(len(trial.outputs), len(low))):
            if isinstance(low[index], Tensor) and low[index].numel():
                error, is_wrong = compare(low[index], high[index])
                if is_wrong:
                    errors[index] = error
        return errors


def as_computed(trial: Trial, device: torch.device) -> Trial:
    """The trial as the kernel gets it, so that equal work is tried once.

    A convolution lays its input out as its weight is. On a CPU it takes sample by sample: two stand for a batch.
    """
    if trial.op not in (_aten.convolution.default, _aten.convolution_backward.default):
        return trial
    args = list(trial.args)
    place = 1 if trial.op is _aten.convolution.default else 2
    weight = args[place]
    for index in range(place):  # the input, and before it the output's gradient
        shape = args[index].shape
        if device.type == "cpu":
            shape = (min(shape[0], 2), *shape[1:])
        is_last = weight.stride == _channels_last(weight.shape)
        args[index] = Spec(shape, _channels_last(shape) if is_last else _contiguous(shape), args[index].dtype)
    return trial._replace(args=tuple(args))


def compare(low: Tensor, high: Tensor) -> tuple[float, bool]:
    """Relative error of `low` against `high` in float32; True if it counts as wrong."""
    difference = (low.detach().float() - high.detach()).abs()
    scale = float(high.detach().square().mean().sqrt())
    error = float(difference.square().mean().sqrt()) / max(scale, 1e-20)
    largest = float(difference.max()) / max(scale, 1e-20)
    if not math.isfinite(error):
        return math.inf, True
    return error, error > TOLERANCE or largest > OUTLIER


def spec_of(value: Any, assume: torch.dtype | None = None) -> Any:
    """A tensor as `Spec`, lists as tuples, anything else unchanged. assume: what float32 tensors count as."""
    if isinstance(value, Tensor):
        dtype = assume if assume is not None and value.dtype == torch.float32 else value.dtype
        return Spec(tuple(value.shape), tuple(value.stride()), dtype)
    return tuple(spec_of(one, assume) for one in value) if isinstance(value, (list, tuple)) else value


def to_float32(values: Any) -> Any:
    """Arguments with tensors of a reduced format, and the formats themselves, as float32."""

    def convert(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return torch.float32 if value in REDUCED else value
        return value.float() if isinstance(value, Tensor) and value.dtype in REDUCED else value

    return tree_map(convert, values)


def dtype_name(dtype: torch.dtype) -> str:
    """As in `train.dtype`: bf16, fp16; others by torch's name."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}.get(
        dtype, str(dtype).removeprefix("torch.")
    )


def describe_machine(device: torch.device) -> str:
    """The machine that a verdict is valid for: processor or GPU, its libraries, and what limits them."""
    parts = [f"torch {torch.__version__}"]
    if device.type == "cuda":
        parts += [
            torch.cuda.get_device_name(device),
            f"cuda {torch.version.cuda}",
            f"cudnn {torch.backends.cudnn.version()}",
        ]
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        parts += [device.type, processor_name(), capability, f"{torch.get_num_threads()} threads", *limits()]
    return ", ".join(parts)


def canary_file() -> Path:
    """canaries.json in $EA_CACHE, else in `ea` in the user's cache folder."""
    return Path(os.environ.get("EA_CACHE") or user_cache_path("ea", appauthor=False)) / "canaries.json"


def _drawn(spec: Spec, device: torch.device, seed: int) -> Tensor:
    """Unit normal numbers of this shape and layout; ones for whole-number formats."""
    if not spec.dtype.is_floating_point:
        return torch.ones(spec.shape, dtype=spec.dtype, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    # a dimension of stride 0 repeats one value
    shape = [1 if step == 0 else size for size, step in zip(spec.shape, spec.stride, strict=True)]
    out = torch.empty_strided(shape, spec.stride, dtype=spec.dtype, device=device)
    out.copy_(torch.randn(shape, generator=generator, device=device))
    return out.expand(spec.shape)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    batch, channels, *sizes = shape
    return torch.empty((batch, *sizes, channels), device="meta").movedim(-1, 1).stride()


def _read_tables(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return (
            found["machines"] if found["version"] == _VERSION and isinstance(found["machines"], dict) else {}
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _name(op: Any) -> str:
    return op.__name__ if op is attention else op._schema.name.removeprefix("aten::")


def _words(value: Any) -> str:
    return "(" + ",".join(map(_words, value)) + ")" if type(value) is tuple else str(value)


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
