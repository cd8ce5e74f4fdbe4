"""Watch over a run that computes in a reduced number format: each operation is tried before it is first computed.

What the canary finds wrong is computed in float32 from then on; if only a gradient is wrong, only that.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ea_runtime.errors import UserError
from ea_runtime.machine.canary import (
    REDUCED,
    Canary,
    Spec,
    Trial,
    Verdict,
    attention,
    canary_file,
    dtype_name,
    spec_of,
    to_float32,
)
from ea_runtime.machine.computing import compute_device, compute_dtype
from ea_runtime.machine.places import RunningModules

_aten = torch.ops.aten
#: Operations that autocast computes in its reduced format.
_PRODUCTS = {
    getattr(_aten, name).default
    for name in ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm")
}
#: Operations that are tried. All others work value by value and have one kernel for all shapes.
_CHECKED = _PRODUCTS | {
    getattr(_aten, f"{name}{end}").default
    for name, backward in (("native_layer_norm", ""), ("native_group_norm", ""), ("_softmax", "_data"))
    for end in ("", f"_backward{backward}")
}
_NAMES_SHOWN = 6


class Formats:
    """Findings of a run in a reduced format about its operations.

    device, dtype: what it computes on and in. say: receives one line for what is computed in float32 instead.
    assume: on tensors without values, the format that float32 products count as: that of autocast.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        say: Callable[[str], None],
        canary: Canary | None,
        assume: torch.dtype | None = None,
    ) -> None:
        self.device, self.dtype, self.say, self.canary, self.assume = device, dtype, say, canary, assume
        self.flops = 0.0
        self.wrong_flops = 0.0
        self._told: set[tuple[str, Any]] = set()
        self._untried: set[str] = set()
        self._found: list[tuple[Trial, int, Any]] = []
        self._sound: set[Hashable] = set()
        self.places = RunningModules()

    def watch(self, key: Hashable = None) -> AbstractContextManager[Any]:
        """Within the block operations in a reduced format are tried before they are first computed.

        key: of what is computed, if its operations and their shapes are always the same: once all were found sound,
        a block of that key is no longer watched.
        """
        if self.canary is None or self.dtype not in REDUCED or (key is not None and key in self._sound):
            return nullcontext()
        return _Watch(self, key)

    @property
    def share_wrong(self) -> float:
        """The share of the products' arithmetic so far that would have to be done in float32."""
        return self.wrong_flops / self.flops if self.flops else 0.0

    def note(self, trial: Trial, verdict: Verdict, work: Any) -> None:
        """Keeps the verdict on an operation. work: identifies its modules."""
        if verdict.reason:
            if trial.key not in self._untried:
                self._untried.add(trial.key)
                self.say(
                    f"{trial.name} of {trial.shapes} could not be checked in {self._format}: {verdict.reason}"
                )
            return
        for index in verdict.wrong:
            what = trial.outputs[index], work
            if what not in self._told:
                self._told.add(what)
                self._found.append((trial, index, work))

    def report(self, key: Hashable, is_sound: bool) -> None:
        """Reports what is new, in one line, and saves the canary's findings."""
        if key is not None and is_sound:
            self._sound.add(key)
        if self.canary is not None:
            self.canary.save()
        found, self._found = self._found, []
        if found:
            names = [
                f"{one.outputs[index]} of {self.places.of(work) or one.name}" for one, index, work in found
            ]
            more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
            self.say(
                f"{self._format} is wrong here for {', '.join(names[:_NAMES_SHOWN])}{more}; computed in fp32 instead "
                "(`ea doctor` shows more)"
            )

    @property
    def _format(self) -> str:
        return f"{dtype_name(self.dtype)} on {self.device.type}"


class PartFormats:
    """`Formats` for ready networks, each by the device and the format of its weights."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._formats: dict[tuple[torch.device, torch.dtype], Formats] = {}

    def watch(self, network: Any, *key: Hashable) -> AbstractContextManager[Any]:
        """As `Formats.watch`; without a key it is always watched.

        network: anything; one without torch weights, or with compiled blocks, is not watched.
        """
        if not isinstance(network, torch.nn.Module) or compute_dtype(network) not in REDUCED:
            return nullcontext()
        modules = list(network.modules())
        if any(module._compiled_call_impl is not None for module in modules):
            return nullcontext()
        where = compute_device(network), compute_dtype(network)
        if where not in self._formats:
            self._formats[where] = Formats(*where, self.say, Canary(where[0], canary_file()))
        whole = (type(network).__name__, len(modules), *key)  # adapters add modules
        return self._formats[where].watch(whole if key else None)


class _Watch(TorchDispatchMode):
    """Looks at every operation on its way to its kernel."""

    def __init__(self, formats: Formats, key: Hashable) -> None:
        super().__init__()
        self.formats, self.key = formats, key
        self.is_sound = True
        assert formats.canary is not None
        self.canary = formats.canary
        self.attention_in_float32: set[Any] = set()

    def __enter__(self) -> Any:
        self.formats.places.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.formats.places.__exit__(*error)
        self.formats.report(self.key, self.is_sound and error[0] is None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CHECKED:
            trial = self._trial(func, args, kwargs)
            return func(*args, **kwargs) if trial is None else self._checked(trial, func, args, kwargs)
        if "_scaled_dot_product_" in func._schema.name:
            return self._attention(func, args, kwargs)
        if torch.is_inference_mode_enabled():  # there operations arrive whole that consist of others
            TorchDispatchMode.__enter__(self)
            try:
                out = func.decompose(*args, **kwargs)
            finally:
                TorchDispatchMode.__exit__(self, None, None, None)
            if out is not NotImplemented:
                return out
        return func(*args, **kwargs)

    def _trial(self, func: Any, args: Any, kwargs: Any) -> Trial | None:
        """The operation, if it computes in a reduced format."""
        tensors = [value for value in args if isinstance(value, Tensor)]
        if any(tensor.dtype in REDUCED for tensor in tensors):
            return Trial(func, spec_of(args), tuple((k, spec_of(v)) for k, v in kwargs.items()))
        assume = self.formats.assume if func in _PRODUCTS else None
        if assume is None or any(tensor.dtype != torch.float32 for tensor in tensors):
            return None
        return Trial(func, spec_of(args, assume), tuple((k, spec_of(v, assume)) for k, v in kwargs.items()))

    def _checked(self, trial: Trial, func: Any, args: Any, kwargs: Any) -> Any:
        verdict = self._verdict(trial)
        if not verdict.wrong or self.formats.assume is not None:
            out = func(*args, **kwargs)
        elif func is _aten.convolution_backward.default:
            out = _some_in_float32(func, args, verdict.wrong)
        else:
            out = _in_float32(func, args, kwargs)
        if self.formats.assume is not None:
            self._count(func, args, kwargs, out, len(verdict.wrong))
        return out

    def _verdict(self, trial: Trial) -> Verdict:
        verdict = self.canary.verdict(trial)
        work = _work(trial)
        self.formats.places.note(work)
        if verdict.wrong or verdict.reason:
            self.is_sound = False
            self.formats.note(trial, verdict, work)
        return verdict

    def _attention(self, func: Any, args: Any, kwargs: Any) -> Any:
        is_backward = func._schema.name.endswith("_backward")
        query, key, value = args[1:4] if is_backward else args[:3]
        if query.dtype not in REDUCED:
            return func(*args, **kwargs)
        shapes = spec_of((query, key, value))
        if not is_backward:
            named = _named(func, args, kwargs)
            mask = spec_of(named.get("attn_mask", named.get("attn_bias")))
            rest = mask, bool(named.get("is_causal", False)), named.get("scale"), torch.is_grad_enabled()
            trial = Trial(attention, (*shapes, *rest))
            if self._verdict(trial).wrong:
                self.attention_in_float32.add(tuple(spec.shape for spec in shapes))
        if tuple(spec.shape for spec in shapes) in self.attention_in_float32:
            return _in_float32(func, args, kwargs)
        return func(*args, **kwargs)

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, wrong: int) -> None:
        from torch.utils.flop_counter import flop_registry  # here, because it imports Triton

        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            flops = formula(*args, **kwargs, out_val=out)
            self.formats.flops += flops
            given = sum(isinstance(one, Tensor) for one in (out if isinstance(out, tuple) else (out,)))
            self.formats.wrong_flops += flops * min(1.0, wrong / max(1, min(given, 2)))


def _work(trial: Trial) -> Any:
    """A key that the forward and the backward operations of a layer share."""
    if trial.op is _aten.convolution_backward.default:
        return trial.args[1].shape, trial.args[2].shape
    if trial.op is _aten.convolution.default:
        return trial.args[0].shape, trial.args[1].shape
    shapes = [one.shape for one in trial.args if isinstance(one, Spec) and len(one.shape) > 1]
    if trial.op in _PRODUCTS:  # x (M, K) by weight (K, N): the gradients are products of the same three sizes
        return "product", tuple(sorted({*shapes[-2], shapes[-1][-1]})), shapes[-1][:-2]
    return trial.name, shapes[0]


def _in_float32(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation in float32, its outputs cast to the formats that it would give."""
    formats = _output_formats(func, args, kwargs)
    args, kwargs = to_float32((args, kwargs))
    try:
        out = func(*args, **kwargs)
    except (RuntimeError, NotImplementedError) as error:
        raise UserError(
            f"{func._schema.name.removeprefix('aten::')} is wrong in the reduced format here and has no float32 form "
            f"({' '.join(str(error).split())[:80]}); set the dtype to float32"
        ) from error
    if isinstance(out, Tensor):
        return out.to(formats[0])
    return tuple(
        one.to(dtype) if isinstance(one, Tensor) and dtype is not None else one
        for one, dtype in zip(out, formats, strict=True)
    )


def _some_in_float32(func: Any, args: Any, wrong: Any) -> Any:
    """A convolution's gradients: the wrong ones in float32, the others as computed."""
    *rest, mask = args
    good = [bool(wanted) and index not in wrong for index, wanted in enumerate(mask)]
    bad = [bool(wanted) and index in wrong for index, wanted in enumerate(mask)]
    kept = func(*rest, good) if any(good) else (None, None, None)
    redone = _in_float32(func, (*rest, bad), {}) if any(bad) else (None, None, None)
    return tuple(b if is_bad else a for a, b, is_bad in zip(kept, redone, bad, strict=True))


def _output_formats(func: Any, args: Any, kwargs: Any) -> list[torch.dtype | None]:
    """The formats of an operation's outputs, found on tensors without values."""
    args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    out = func(*args, **kwargs)
    outs = (out,) if isinstance(out, Tensor) else out
    return [one.dtype if isinstance(one, Tensor) else None for one in outs]


def _named(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by their names in the operation's schema."""
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False)) | kwargs
