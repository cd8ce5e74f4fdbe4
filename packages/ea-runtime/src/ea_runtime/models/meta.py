"""Models without weights, and weights put into them: the memory of loading is one copy of the weights.

A model whose tensors all come from files is built on torch's meta device (shapes only). If its constructor computes
something that no file holds, such as a position table kept as an attribute, it is built once more with only its
parameters on the meta device, so that what it computes is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ea_runtime.errors import UserError
from ea_runtime.files.safe import plain
from ea_runtime.machine.casting import dtype_of
from ea_runtime.models.quantize_layers import PutLayer
from ea_runtime.models.weights import DTYPES, PartWeights, empty_tensors, iter_tensors

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty`, which torch's layers allocate parameters with, goes to meta; the rest is real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build_without_weights(build: Callable[[], ModuleT]) -> ModuleT:
    """`build()` with parameters and saved buffers on the meta device and everything else real.

    The global random state does not change. A model that computes with memory from `torch.empty` is built the usual
    way instead: slower, never wrong.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            # published transformers compute 1 GB of position tables that are in their file too: not here
            with torch.device("meta"):
                model = build()
            if not any(_computed(model)):
                return model
        except Exception:  # a constructor that reads a value (`.item()`), or a wrong config: tried again
            pass
        with _EmptyOnMeta():
            model = build()
        if any(tensor.is_meta for tensor in _computed(model)):
            model = build()
    _drop_values(model)
    return model


def build_shapes(build: Callable[[], ModuleT]) -> ModuleT:
    """`build()` for its names and shapes alone: all on the meta device if the constructor allows that."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build()
        except Exception:  # as above
            return build_without_weights(build)


@dataclass(frozen=True)
class Comparison:
    """The match between a file's tensors and a model. Names are sorted; `wrong_shape` holds (name, expected, got)."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return not self.missing and not self.wrong_shape


def compare(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Comparison:
    """Compares names and shapes with those of `model.state_dict()`.

    A parameter that has several names in the model (tied embeddings) may be in the file under any of them: `shared`
    maps each missing name to the one that is there.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shared: dict[str, str] = {}
    for names in _tied(model):
        present = [name for name in names if name in shapes]
        if present:
            shared.update({name: present[0] for name in names if name not in shapes})
    wrong = [
        (name, shape, shapes[name])
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    return Comparison(
        missing=tuple(sorted(name for name in expected if name not in shapes and name not in shared)),
        unexpected=tuple(sorted(name for name in shapes if name not in expected)),
        wrong_shape=tuple(sorted(wrong)),
        shared=shared,
    )


def fill(
    model: ModuleT,
    weights: PartWeights,
    comparison: Comparison,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    put_layer: PutLayer | None = None,
    held: Mapping[str, Tensor] | None = None,
) -> ModuleT:
    """Reads `weights` straight into `model` and moves the rest (computed buffers) to `device` and `dtype`.

    device: "meta" reads nothing and gives a model of shapes.
    dtype: of all floating-point parameters and buffers; None keeps what each tensor has in the file.
    put_layer: gives layers their weights in another form (quantize_layers.py).
    held: tensors that are taken as they are, and not read.
    Raises UserError if a file ends early or holds whole numbers for weights; `comparison` must fit (the caller
    checks).
    """
    assert comparison.fits
    built = model.state_dict()
    names = set(built) - set(held or ())
    tied = _tied(model)
    # where the device or the dtype is another, a copy of each is made anyway: read all into the same memory
    stored = {getattr(torch, DTYPES[name][0]) for name in weights.dtypes}
    kind = torch.device(device).type
    is_copied = kind != "cpu" or (dtype is not None and stored != {dtype})
    if kind == "meta":
        tensors = empty_tensors(weights, names)
    else:
        tensors = iter_tensors(weights, names, is_shared=is_copied)
    state: dict[str, Tensor] = dict(held or {})
    put: set[str] = set()
    for name, tensor in tensors:
        if tensor.is_floating_point() != built[name].is_floating_point():
            raise UserError(
                f"tensor {plain(name)} must be of the kind {built[name].dtype}, is {tensor.dtype} in the file"
            )
        target = tensor.dtype
        if dtype is not None and tensor.is_floating_point():
            target = dtype_of(model, name, dtype)
        weight = tensor.to(device=device, dtype=target, copy=is_copied)
        if put_layer is not None and put_layer(model, name, weight):
            put.add(name)
        else:
            state[name] = weight
    tied_names = comparison.shared.items()
    state.update(
        {name: state[source] for name, source in tied_names if name not in state and source in state}
    )
    left = model.load_state_dict(state, strict=not put, assign=True)
    # what is in another form may have further entries in the state dict
    assert all(any(name.startswith(one) for one in put) for name in left.missing_keys)
    del state
    for group in tied:
        _tie(model, group)
    for name, buffer in _unsaved_buffers(model):
        module, leaf = _owner(model, name)
        target = dtype if dtype is not None and buffer.is_floating_point() else buffer.dtype
        module._buffers[leaf] = buffer.to(device=device, dtype=target)
    return model.eval()


def require_fit(comparison: Comparison, label: str) -> None:
    """Raises UserError, with counts and the first few names, if tensors are missing or shapes differ."""
    if comparison.fits:
        return
    faults = []
    if comparison.missing:
        faults.append(f"{len(comparison.missing)} tensors are missing ({_first(comparison.missing)})")
    if comparison.wrong_shape:
        shown = [f"{plain(n)} must be {list(e)}, is {list(g)}" for n, e, g in comparison.wrong_shape[:3]]
        more = ", ..." if len(comparison.wrong_shape) > 3 else ""
        faults.append(f"{len(comparison.wrong_shape)} have another shape ({', '.join(shown)}{more})")
    if comparison.unexpected:
        faults.append(
            f"{len(comparison.unexpected)} are not part of this model ({_first(comparison.unexpected)})"
        )
    raise UserError(f"{label} does not fit its config.json: {'; '.join(faults)}; `ea models check` lists all")


def describe_unexpected(comparison: Comparison, label: str) -> str | None:
    """One line about tensors that the model has no place for, or None."""
    if not comparison.unexpected:
        return None
    names = _first(comparison.unexpected)
    return f"{label}: {len(comparison.unexpected)} tensors that its class does not know are ignored ({names})"


def _first(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    shown = ", ".join(plain(name) for name in names[:count])
    return f"{shown}, ..." if len(names) > count else shown


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that no file holds: unsaved buffers, and plain attributes in lists and dicts too."""
    for _, buffer in _unsaved_buffers(model):
        yield buffer
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                yield from _tensors_in(value, 3)


def _tensors_in(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, set, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(item, depth - 1)


def _drop_values(model: nn.Module) -> None:
    """Moves parameters and saved buffers that have values to the meta device."""
    moved: dict[int, nn.Parameter] = {}  # a tied parameter stays one object
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                empty = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved.setdefault(id(parameter), empty)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                module._buffers[name] = buffer.to("meta")


def _unsaved_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (f"{prefix}.{name}" if prefix else name, buffer)
        for prefix, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and name in module._non_persistent_buffers_set
    ]


def _tied(model: nn.Module) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _tie(model: nn.Module, names: list[str]) -> None:
    first_module, first_leaf = _owner(model, names[0])
    for name in names[1:]:
        module, leaf = _owner(model, name)
        module._parameters[leaf] = first_module._parameters[first_leaf]


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    prefix, _, leaf = name.rpartition(".")
    return model.get_submodule(prefix), leaf
