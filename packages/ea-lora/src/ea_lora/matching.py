"""The module of a model for each layer of a LoRA file; everything is checked here, nothing is changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ea_lora.keys import PARTS, Part, find_targets, fits
from ea_lora.layer import FLOATS, MAX_PATH, Layer, LoraFile, count_parts
from ea_lora.places import Modules, find_places
from ea_runtime.engines.base import exported_weights
from ea_runtime.errors import UserError, nearest
from ea_runtime.files.safe import quote
from ea_runtime.machine.computing import hook_of


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A layer and the module that it changes, at `path` of its network."""

    layer: Layer
    path: str
    module: nn.Module

    @property
    def weight(self) -> torch.Tensor:
        return self.module.get_parameter("weight")

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs, inputs and 1 for each direction of a convolution, whatever form the weight is kept in."""
        module = self.module
        is_linear = isinstance(module, nn.Linear)
        return (module.out_features, module.in_features) if is_linear else tuple(self.weight.shape)

    @property
    def dtype(self) -> torch.dtype:
        """The format that the module computes in, whatever its weight is stored in."""
        own = getattr(self.module, "compute_dtype", None)  # of layers of 4 bits, and of GGUF's
        if isinstance(own, torch.dtype):
            return own
        hook = hook_of(self.module, "layerwise_casting")
        return self.weight.dtype if hook is None else hook.compute_dtype


@dataclass(frozen=True, slots=True, eq=False)
class Matching:
    """The fit of a file to a model. ignored: layers without a module in it. left_out: layers that were excluded."""

    file: LoraFile
    matches: tuple[Match, ...]
    ignored: tuple[Layer, ...]
    left_out: tuple[Layer, ...]

    def names(self) -> dict[str, tuple[str, ...]]:
        """Names of the layers in the file, under "matched", "ignored" and "left_out"."""
        matched = tuple(match.layer for match in self.matches)
        found = {"matched": matched, "ignored": self.ignored, "left_out": self.left_out}
        return {kind: tuple(layer.name for layer in layers) for kind, layers in found.items()}

    def summary(self) -> str:
        """One line: counts, and the first ignored names."""
        counts = f"{len(self.matches)} layers matched, {len(self.ignored)} ignored"
        line = f"LoRA {quote(str(self.file.path), MAX_PATH)}: {counts}"
        if self.left_out:
            line += f", {len(self.left_out)} excluded"
        if self.ignored:
            shown = ", ".join(quote(layer.name)[1:-1] for layer in self.ignored[:3])
            line += f" (the model has no {shown}{', ...' if len(self.ignored) > 3 else ''})"
        return line


def networks_of(pipe: Any) -> dict[Part, nn.Module | None]:
    """The networks of a pipeline that LoRA can adapt; a bare module is taken as a denoiser.

    Raises UserError for anything else.
    """
    held = exported_weights(pipe)
    if held:  # another engine runs them; their modules, without weights, give names and shapes
        return {part: held[part].network if part in held else None for part in PARTS}
    if hasattr(pipe, "denoiser"):
        denoiser, text = pipe.denoiser, getattr(pipe, "text", None)
    else:
        denoiser, text = pipe, None
    if not isinstance(denoiser, nn.Module):
        raise UserError(f"`pipe` must be a VideoPipeline or a torch module, got {quote(type(pipe).__name__)}")
    if not isinstance(text, nn.Module):
        text = getattr(text, "model", None)  # our TextEncoder holds its T5 there
    return {"denoiser": denoiser, "text": text if isinstance(text, nn.Module) else None}


def match_lora(
    file: LoraFile,
    networks: Mapping[Part, nn.Module | None],
    parts: Collection[str] = PARTS,
    exclude: Sequence[str] = (),
) -> Matching:
    """Find the module of each layer and check that it fits. Nothing is changed; modules may be on the meta
    device.

    parts: networks to adapt. exclude: shell patterns over module paths to leave alone ("*attn_temporal*").

    Raises UserError: layers for a missing text encoder, no layer that fits, a layer of another
    shape, two layers for one module.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(
                f"`parts` may hold {', '.join(PARTS)}, got {quote(part)}{nearest(str(part), PARTS)}"
            )
    label = f"LoRA file {quote(str(file.path), MAX_PATH)}"
    targets: dict[Part, dict[str, nn.Module]] = {
        part: find_targets(module) for part, module in networks.items() if module is not None
    }
    placed, elsewhere = place_layers(
        file.layers, {part: Modules(paths) for part, paths in targets.items()}, label
    )
    matches: dict[tuple[Part, str], Match] = {}
    ignored: list[Layer] = []
    left_out: list[Layer] = []
    for layer, path in placed:
        if layer.part not in parts or (path is not None and fits(path, exclude)):
            left_out.append(layer)
        elif path is None:
            ignored.append(layer)
        else:
            match = Match(layer, path, targets[layer.part][path])
            _check_fit(match, label)
            if (layer.part, path) in matches:
                first = matches[layer.part, path].layer.name
                raise UserError(f"{label} has two layers for {path}: {quote(first)} and {quote(layer.name)}")
            matches[layer.part, path] = match
    _require_text(ignored, networks, label)
    if not matches:
        raise UserError(_no_match(targets, ignored, left_out, elsewhere, label))
    if elsewhere is not None:
        prefix, count = elsewhere
        raise UserError(
            f"{label} has {len(matches)} layers under the names of this model, and {count} under them only without "
            f"the prefix {quote(prefix)}; give a file with one kind of names"
        )
    return Matching(file, tuple(matches.values()), tuple(ignored), tuple(left_out))


def place_layers(
    layers: Sequence[Layer], networks: Mapping[Part, Modules], label: str
) -> tuple[list[tuple[Layer, str | None]], tuple[str, int] | None]:
    """Each layer, now of the network that it is for, with the path of its module there or None; and the prefix that
    would give more layers a place, with their number, or None (see `find_places`).

    Raises UserError for a name that can mean several modules.
    """
    text = [layer.part == "text" for layer in layers]
    places = find_places([layer.name for layer in layers], text, networks)
    placed: list[tuple[Layer, str | None]] = []
    for number, layer in enumerate(layers):
        part, paths = places.found.get(number, (layer.part, ()))
        if len(paths) > 1:
            raise UserError(f"{label}: {quote(layer.name)} can mean {' and '.join(paths)}; name it with dots")
        placed.append((replace(layer, part=part), next(iter(paths), None)))
    return placed, places.also


def _require_text(ignored: Sequence[Layer], networks: Mapping[Part, nn.Module | None], label: str) -> None:
    count = sum(layer.part == "text" for layer in ignored)
    if count and networks.get("text") is None:
        raise UserError(
            f"{label} has {count} layers for a text encoder, which this model lacks; load the model "
            "with its text encoder, or give parts=('denoiser',) (--no-text) to leave them out"
        )


def _check_fit(match: Match, label: str) -> None:
    layer = match.layer
    outputs, inputs = match.shape[:2]
    if (layer.num_outputs, layer.num_inputs) != (outputs, inputs):
        raise UserError(
            f"{label}: {quote(layer.name)} is for {layer.num_inputs} -> {layer.num_outputs} channels, "
            f"{match.path} has {inputs} -> {outputs}; it was trained on another model"
        )
    if match.dtype not in FLOATS:
        raise UserError(
            f"{match.path} has weights of {str(match.dtype)[6:]}; LoRA needs 16-bit floats or wider"
        )


def _no_match(
    targets: Mapping[Part, Mapping[str, Any]],
    ignored: list[Layer],
    left_out: list[Layer],
    elsewhere: tuple[str, int] | None,
    label: str,
) -> str:
    counts = count_parts([*ignored, *left_out]).items()
    has = " and ".join(f"{count} for the {part}" for part, count in counts)
    could = " and ".join(f"{len(names)} in the {part}" for part, names in targets.items())
    if not ignored:
        return f"{label} has {has}, and `parts` and `exclude` leave all {len(left_out)} out; leave out less"
    almost = ""
    if elsewhere is not None:
        prefix, count = elsewhere
        almost = f"; {count} would match without the prefix {quote(prefix)}, which the others do not have"
    return (
        f"{label} has layers that fit nothing here: {has} (first {quote(ignored[0].name)}), 0 match "
        f"the modules of this model ({could}){almost}; it was trained on another model"
    )
