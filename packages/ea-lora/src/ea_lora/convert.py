"""A LoRA from one layout to another; there and back loses nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ea_lora.folder import load_networks
from ea_lora.io import as_file, write_lora
from ea_lora.keys import Layout, Part, Spelling, find_targets
from ea_lora.layer import Layer, LoraFile
from ea_lora.layouts import check_layout
from ea_lora.matching import place_layers
from ea_lora.places import Modules
from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote
from ea_runtime.models.layout import resolve_folder


@dataclass(frozen=True, slots=True)
class Converted:
    """The written file (or peft's folder), the layouts, and the number of layers."""

    path: Path
    source: Spelling
    target: Layout
    num_layers: int


def convert_lora(
    src: str | os.PathLike[str] | LoraFile,
    dst: str | os.PathLike[str],
    to: str,
    *,
    model: str | os.PathLike[str] = "tiny",
) -> Converted:
    """Write the LoRA `src` in another layout as `dst`: "kohya", "diffusers", "peft" (a folder) or "comfyui".

    The matrices are copied byte by byte; rank, alpha and metadata are kept, so that the way back gives the same
    tensors. model: kohya's names have no dots, and those of other trainers may have any prefix; the names of this
    model's modules tell. Its size does not matter (numbers are free), its architecture does.

    Raises UserError, with nothing written: all that `read_lora` refuses, an unknown layout, an existing `dst`, a name
    that the model lacks.
    """
    target = check_layout(to)
    file = as_file(src)
    out = Path(dst)
    if os.path.lexists(out) and (target != "peft" or not out.is_dir() or any(out.iterdir())):
        raise UserError(f"`dst` {quote(str(out))} exists already; give another name")
    if target != "peft" and out.suffix != ".safetensors":
        raise UserError(f"`dst` must end in .safetensors, got {quote(out.name)}")
    layers = list(file.layers)
    if file.layout == "other" or (file.layout == "kohya" and target != "kohya"):
        layers = dotted_layers(layers, _module_paths(model, {layer.part for layer in layers}))
    write_lora(out, layers, file.metadata, target)
    return Converted(out, file.layout, target, len(layers))


def dotted_layers(layers: Sequence[Layer], names: Mapping[Part, Iterable[str]]) -> list[Layer]:
    """The layers with paths as modules are called, with dots. names: module paths of a model, by network.

    A number stands for any number, so a model of 6 blocks gives the names of one of 28.
    Raises UserError for a layer without a fitting name.
    """
    modules: dict[Part, Modules] = {part: Modules(paths, any_number=True) for part, paths in names.items()}
    placed, _ = place_layers(layers, modules, "the LoRA")
    for layer, path in placed:
        if path is None:
            raise UserError(
                f"{quote(layer.name)} fits the name of no module of the model; give the model that the LoRA was made "
                "for (--model)"
            )
    return [replace(layer, path=path) for layer, path in placed if path is not None]


def _module_paths(model: str | os.PathLike[str], parts: Iterable[Part]) -> dict[Part, list[str]]:
    networks = load_networks(resolve_folder(model), set(parts))
    return {part: list(find_targets(net)) for part, net in networks.items() if net is not None}
