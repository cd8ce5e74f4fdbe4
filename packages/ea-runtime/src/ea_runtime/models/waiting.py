"""Weights that wait in their files: each block of a network reads its own when it runs, and drops them afterwards.

Group offloading for a machine without a GPU. Nothing is written, and nothing is read twice into memory: the model's
own safetensors files are where the weights wait. What is no block of a list, and small, stays in memory. Every group is
read into fresh, aligned memory, so that results are bit-exact with those of resident weights.

While weights wait, parameters have their shape and format, but each number is NaN: code that reads them without
calling their module gives NaN, never something that looks like a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.machine.casting import dtype_of
from ea_runtime.models.meta import Comparison, fill
from ea_runtime.models.weights import DTYPES, PartWeights, iter_tensors

ModuleT = TypeVar("ModuleT", bound=nn.Module)

#: a module outside of lists waits if its weights have this many bytes
_LARGE = 1 << 20
#: attribute of a module whose weights wait; read by networks that need them outside `forward` (ea_dit: waiting.py)
ATTRIBUTE = "ea_waiting"


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor of a group: its place in a module, its name in the file, and the format that it gets."""

    owner: nn.Module
    leaf: str
    name: str
    dtype: torch.dtype

    @property
    def tensor(self) -> Tensor:
        """The parameter or buffer."""
        return getattr(self.owner, self.leaf)


class WaitingGroup:
    """The tensors of one module and of all modules in it."""

    #: a hook that leaves the output as it is: the text's linears may be folded (ea_dit: text_groups.py)
    is_idle = True

    def __init__(self, slots: tuple[Slot, ...], weights: PartWeights, label: str) -> None:
        wanted = {slot.name for slot in slots}
        entries = {name: entry for name, entry in weights.tensors.items() if name in wanted}
        files = tuple(file for file in weights.files if any(one.file == file for one in entries.values()))
        self.slots = slots
        self.weights = replace(weights, files=files, tensors=entries)
        self.label = label
        self._stamps = self._now()

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in memory, once they are read."""
        return sum(slot.tensor.numel() * slot.dtype.itemsize for slot in self.slots)

    def pre_forward(self, module: nn.Module) -> None:
        """Read the tensors. Raises UserError if a file was changed or removed meanwhile."""
        if self._now() != self._stamps:
            raise UserError(f"the files of {self.label} were changed while they were in use; start again")
        by_name: dict[str, list[Slot]] = {}
        for slot in self.slots:
            by_name.setdefault(slot.name, []).append(slot)
        # tensors made in inference mode could never be used outside it
        with torch.inference_mode(False), torch.no_grad():
            stored = {
                slot.name: getattr(torch, DTYPES[self.weights.tensors[slot.name].dtype][0])
                for slot in self.slots
            }
            is_cast = any(slot.dtype != stored[slot.name] for slot in self.slots)
            for name, tensor in iter_tensors(self.weights, by_name, is_shared=is_cast):
                for slot in by_name[name]:
                    slot.tensor.data = tensor.to(slot.dtype, copy=is_cast)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """Drop the tensors."""
        for slot in self.slots:
            slot.tensor.data = _placeholder(slot.tensor, slot.dtype)
        return output

    def _now(self) -> list[tuple[int, int] | None]:
        found: list[tuple[int, int] | None] = []
        for file in self.weights.files:
            try:
                stat = file.stat()
            except OSError:
                found.append(None)
                continue
            found.append((stat.st_size, stat.st_mtime_ns))
        return found


def let_wait(
    model: ModuleT,
    weights: PartWeights,
    comparison: Comparison,
    label: str,
    *,
    dtype: torch.dtype | None = None,
) -> ModuleT:
    """`meta.fill` on the CPU, where the weights of blocks stay in their files until they run.

    model: from `meta.build_without_weights`. label: its name in errors.
    """
    names = _names(model)
    held: dict[str, Tensor] = {}
    made: list[tuple[nn.Module, WaitingGroup]] = []
    for path, module in groups_of(model):
        slots = tuple(_slots(model, path, module, weights, comparison, dtype))
        if slots:
            made.append((module, WaitingGroup(slots, weights, label)))
        for slot in slots:
            held |= dict.fromkeys(names[id(slot.tensor)], _placeholder(slot.tensor, slot.dtype))
    fill(model, weights, comparison, dtype=dtype, held=held)
    for module, group in made:
        vars(module)[ATTRIBUTE] = group
        module.register_forward_pre_hook(_Load(group))
        module.register_forward_hook(_Drop(group), always_call=True)
    model.register_state_dict_pre_hook(_refuse_saving)
    return model


def _names(model: nn.Module) -> dict[int, list[str]]:
    """All names of each tensor: a tied one has several."""
    found: dict[int, list[str]] = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            found.setdefault(id(tensor), []).append(name)
    return found


def groups_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules whose weights wait, each once, by path: items of lists, and other layers that are large."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for path, module in _candidates(model, ""):
        found.setdefault(id(module), (path, module))
    return list(found.values())


def _candidates(model: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in model.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from ((f"{path}.{number}", item) for number, item in enumerate(child))
        elif any(True for _ in child.children()):
            yield from _candidates(child, path)
        elif sum(p.numel() * p.element_size() for p in child.parameters()) >= _LARGE:
            yield path, child


def waiting_groups(network: Any) -> list[WaitingGroup]:
    """The groups of a network whose weights wait; none for others."""
    modules = network.modules() if hasattr(network, "modules") else ()
    return [vars(module)[ATTRIBUTE] for module in modules if ATTRIBUTE in vars(module)]


class _Load:
    """Before `forward`."""

    is_idle = True

    def __init__(self, group: WaitingGroup) -> None:
        self.group = group

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.group.pre_forward(module)


class _Drop(_Load):
    """After `forward`, also after an error."""

    def __call__(self, module: nn.Module, args: Any, output: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.group.post_forward(module, output)


def _slots(
    model: nn.Module,
    prefix: str,
    module: nn.Module,
    weights: PartWeights,
    comparison: Comparison,
    dtype: torch.dtype | None,
) -> Iterator[Slot]:
    for path, owner in module.named_modules(prefix=prefix):
        for leaf, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            name = f"{path}.{leaf}"
            source = comparison.shared.get(name, name)
            if tensor is None or source not in weights.tensors:
                continue  # a computed buffer
            stored = getattr(torch, DTYPES[weights.tensors[source].dtype][0])
            wanted = stored if dtype is None or not stored.is_floating_point else dtype_of(model, name, dtype)
            yield Slot(owner, leaf, source, wanted)


def _placeholder(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """NaN in the shape of a tensor, in the memory of one number."""
    with torch.inference_mode(False):
        value = float("nan") if dtype.is_floating_point else 0
        return torch.full((), value, dtype=dtype).expand(tensor.shape)


def _refuse_saving(module: nn.Module, *_: Any) -> None:
    raise UserError(
        "the weights of this network wait in their files, so its state dict holds none; load it without offload"
    )
