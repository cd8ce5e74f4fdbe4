"""State of any object as JSON and tensors, without pickle: what a sampler or a step cache remembers between steps.

Values: None, bool, int, float, str, tensors, NumPy arrays and numbers, and lists, tuples and dicts of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: attributes of diffusers' schedulers that hold their config, which the request settles
_CONFIG = frozenset({"_internal_dict"})


class UnpackableError(TypeError):
    """A value of a type that cannot be saved; the message names where it is and its type."""


def pack(value: Any, tensors: dict[str, Tensor], name: str = "state") -> Any:
    """`value` as JSON has it; its tensors are put into `tensors`, on the CPU, and named in their place.

    name: of the value, in the tensors' names and in errors. Raises UnpackableError.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        key = f"t{len(tensors)}"
        # a copy: the run changes its tensors in place, and safetensors wants separate memory
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": key, "on_cpu": value.device.type == "cpu"}
    if isinstance(value, np.ndarray | np.generic):
        key = f"t{len(tensors)}"
        tensors[key] = torch.from_numpy(np.array(value))
        return {"array": key, "is_number": isinstance(value, np.generic)}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [pack(one, tensors, f"{name}[{i}]") for i, one in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: pack(one, tensors, f"{name}.{key}") for key, one in value.items()}}
    raise UnpackableError(f"{name} is a {type(value).__name__}")


def unpack(tree: Any, tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """The packed value; tensors that were not on the CPU go to `device`. Raises KeyError, TypeError, ValueError."""
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if not isinstance(tree, dict) or not tree:
        raise TypeError(f"{type(tree).__name__} is no packed value")
    kind, content = next(iter(tree.items()))
    if kind == "tensor":
        found = tensors[content].clone()
        return found if tree["on_cpu"] else found.to(device)
    if kind == "array":
        array = tensors[content].clone().numpy()
        return array[()] if tree["is_number"] else array
    if kind in ("list", "tuple"):
        items = [unpack(one, tensors, device) for one in content]
        return items if kind == "list" else tuple(items)
    if kind == "dict":
        return {key: unpack(one, tensors, device) for key, one in content.items()}
    raise ValueError(f"{kind!r} is no kind of packed value")


def attributes(thing: Any) -> dict[str, Any]:
    """The attributes of an object, without a scheduler's config. Raises UnpackableError."""
    if not hasattr(thing, "__dict__"):
        raise UnpackableError(f"{type(thing).__name__} does not show its attributes")
    return {name: value for name, value in vars(thing).items() if name not in _CONFIG}


def set_attributes(thing: Any, values: Mapping[str, Any]) -> None:
    """The opposite of `attributes`."""
    for name, value in values.items():
        object.__setattr__(thing, name, value)
