"""Adapters, such as LoRA files, as they are asked for, recorded and put on a pipeline. Imports no torch.

What puts one on comes from a plugin (hook `ea_adapters`); `--lora` asks for the one called "lora".
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.files.safe import quote, quote_path

#: as trained
DEFAULT_WEIGHT = 1.0
MAX_WEIGHT = 100.0
MAX_ADAPTERS = 64


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """A file and its strength. sha256: what the file held when it was recorded; None: not recorded."""

    path: str
    weight: float = DEFAULT_WEIGHT
    sha256: str | None = None


def check_weight(value: Any) -> float:
    """A strength as a float. Raises UserError for what is no number or beyond -100..100."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or abs(float(value)) > MAX_WEIGHT:
        raise UserError(
            f"`weight` of a LoRA must be a number from -100 to 100, got {quote(value)}; 1 is as trained"
        )
    return float(value)


def parse_spec(text: str) -> tuple[str, float]:
    """`FILE` or `FILE:WEIGHT` -> (file, weight); 1 without one. A file whose whole name is `text` wins.

    Raises UserError for a weight that is no number or out of range.
    """
    name, colon, number = text.rpartition(":")
    if not colon or not name or "/" in number or "\\" in number or Path(text).exists():
        return text, DEFAULT_WEIGHT
    try:
        weight: Any = float(number)
    except ValueError:
        weight = number
    return name, check_weight(weight)


def plan_adapters(
    texts: Sequence[str] | None, recorded: Sequence[Mapping[str, Any]] = ()
) -> list[AdapterChoice]:
    """The adapters that `--lora` asks for, or if it asks for none those of a sidecar.

    Raises UserError: a file that is not there, a wrong weight, no package that can put one on.
    """
    if texts:
        choices = [AdapterChoice(*parse_spec(text)) for text in texts]
    else:
        choices = [AdapterChoice(one["file"], check_weight(one["weight"]), one["sha256"]) for one in recorded]
    return check_adapters(choices)


def check_adapters(choices: Sequence[AdapterChoice]) -> list[AdapterChoice]:
    """The adapters as a list. Raises UserError as `plan_adapters` does."""
    if len(choices) > MAX_ADAPTERS:
        raise UserError(f"at most {MAX_ADAPTERS} LoRAs can be on at once, got {len(choices)}")
    for choice in choices:
        if not os.path.lexists(choice.path):
            hint = "give its place with --lora" if choice.sha256 else "give the path of a .safetensors file"
            raise UserError(f"there is no LoRA file {quote_path(choice.path)}; {hint}")
    if choices:
        adapter_record()
    return list(choices)


def adapter_record(name: str = "lora") -> Any:
    """The plugin's record. Raises MissingPackageError where none is installed."""
    from ea_runtime.plugins.host import get_host

    host = get_host()
    if name not in host.records("adapters"):
        raise MissingPackageError(
            f"--lora needs a package with the adapter {name!r}; run `pip install ea-lora`"
        )
    return host.get("adapters", name)


def put_on(pipeline: Any, choices: Sequence[AdapterChoice]) -> list[Any]:
    """Put them all on, in order, and return their handles (`summary`, `weight`, `unload()`).

    Where one is refused, those before it are taken off again. Raises what the adapter raises (UserError).
    """
    handles: list[Any] = []
    try:
        if choices:
            load = adapter_record().build()
            for choice in choices:
                handles.append(load(pipeline, choice.path, choice.weight))
    except BaseException:
        for handle in reversed(handles):
            handle.unload()
        raise
    return handles


def describe_adapters(choices: Sequence[AdapterChoice], handles: Sequence[Any]) -> list[dict[str, Any]]:
    """For the sidecar: place, content, strength and what matched."""
    from ea_runtime.files.hashes import content_hash

    return [
        {
            "file": os.path.abspath(choice.path),
            "sha256": content_hash(Path(choice.path)),
            "weight": handle.weight,
            "summary": handle.summary,
        }
        for choice, handle in zip(choices, handles, strict=True)
    ]
