"""The layouts that LoRA files are written in: the names of their tensors, and the place of alpha.

    kohya      lora_unet__blocks_0_to_q.lora_down.weight, .lora_up.weight, .alpha     (EasyAnimate V2, A1111)
    comfyui    diffusion_model.blocks.0.to_q.lora_down.weight, .lora_up.weight, .alpha
    diffusers  transformer.blocks.0.to_q.lora_A.weight, .lora_B.weight; alpha in the header's metadata
    peft       a folder: adapter_model.safetensors with base_model.model.blocks.0.to_q.lora_A.weight, .lora_B.weight,
               and adapter_config.json with alpha

A text encoder's layers are under `lora_te_`, `text_encoders.t5xxl.transformer.`, `text_encoder.`, and for peft
in a separate folder `text_encoder`, since one of its adapters is for one network.

These four can be told without a model; every other spelling is understood by its structure and the model's own names
(roles.py, places.py), kohya's too, since `.` and `_` look the same in it. Sources: peft's and diffusers' saved files,
ComfyUI's key map; the formats, not their code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ea_lora.keys import LAYOUTS, PARTS, Layout, Part, Spelling, flatten
from ea_lora.places import is_text
from ea_runtime.errors import UserError, nearest
from ea_runtime.files.safe import quote

if TYPE_CHECKING:
    from ea_lora.layer import Layer


#: for layouts without an alpha tensor: the dtype of its tensor, or "none" for layers without one
ALPHA_KEY = "ea_alpha"

_DIFFUSERS: dict[Part, str] = {"denoiser": "transformer", "text": "text_encoder"}
PEFT_PREFIX = "base_model.model."
#: kohya's are V2's; its denoiser's own name is empty, hence two underscores
_PREFIXES: dict[Layout, dict[Part, str]] = {
    "kohya": {"denoiser": "lora_unet__", "text": "lora_te_"},
    "comfyui": {"denoiser": "diffusion_model.", "text": "text_encoders.t5xxl.transformer."},
    "diffusers": {part: f"{name}." for part, name in _DIFFUSERS.items()},
    "peft": {"denoiser": PEFT_PREFIX, "text": PEFT_PREFIX},
}
_DOWN_UP, _A_B = (".lora_down.weight", ".lora_up.weight", ".alpha"), (".lora_A.weight", ".lora_B.weight")
_ENDS: dict[Layout, tuple[str, ...]] = {
    "kohya": _DOWN_UP,
    "comfyui": _DOWN_UP,
    "diffusers": _A_B,
    "peft": _A_B,
}


def check_layout(value: Any) -> Layout:
    """One of LAYOUTS. Raises UserError."""
    if value not in LAYOUTS:
        raise UserError(
            f"`to` must be one of {', '.join(LAYOUTS)}, got {quote(value)}{nearest(str(value), LAYOUTS)}"
        )
    return value


def layout_of(names: Iterable[str]) -> Spelling:
    """The layout in which every one of the tensors is named; "other" if there is none."""
    names = list(names)
    for layout, prefixes in _PREFIXES.items():
        begins, ends = tuple(prefixes.values()), _ENDS[layout]
        if names and all(name.startswith(begins) and name.endswith(ends) for name in names):
            return layout
    return "other"


def place_in(layout: Spelling, name: str) -> tuple[Part, str]:
    """The network and path that a layer's name means in one of the layouts; of "other", what the name shows:
    the path stays as it is, but for what peft puts before a model's own."""
    if layout != "other":
        for part, prefix in _PREFIXES[layout].items():
            if name.startswith(prefix) and not (layout == "peft" and is_text(name)):
                return part, name.removeprefix(prefix)
    return "text" if is_text(name) else "denoiser", name.rpartition(PEFT_PREFIX)[2]


def tensor_names(layout: Layout, part: Part, path: str) -> tuple[str, str, str | None]:
    """Names of a layer's down, up and alpha; the last is None if the layout keeps alpha elsewhere."""
    name = _PREFIXES[layout][part] + (flatten(path) if layout == "kohya" else path)
    if layout in ("kohya", "comfyui"):
        return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight", None


def adapter_config(layers: Iterable[Layer]) -> dict[str, Any]:
    """peft's LoraConfig for these layers of one network: rank, alpha, exact paths."""
    layers = list(layers)
    ranks = [layer.rank for layer in layers]
    alphas = [layer.rank * layer.scale for layer in layers]
    rank, alpha = max(set(ranks), key=ranks.count), max(set(alphas), key=alphas.count)
    paths = sorted(re.escape(layer.path) for layer in layers)
    return {
        "r": rank,
        "lora_alpha": _number(alpha),
        # `^`: peft would take a bare name for every module whose path ends in it
        "rank_pattern": {f"^{layer.path}": r for layer, r in zip(layers, ranks, strict=True) if r != rank},
        "alpha_pattern": {
            f"^{layer.path}": _number(a) for layer, a in zip(layers, alphas, strict=True) if a != alpha
        },
        "target_modules": f"({'|'.join(paths)})",
        "lora_dropout": 0.0,
        "bias": "none",
    }


def diffusers_metadata(layers: Iterable[Layer]) -> str:
    """diffusers' entry in the header: each network's config, every key after the network's name."""
    layers = list(layers)
    packed: dict[str, Any] = {}
    for part in PARTS:
        members = [layer for layer in layers if layer.part == part]
        if members:
            packed |= {f"{_DIFFUSERS[part]}.{key}": value for key, value in adapter_config(members).items()}
    return json.dumps(packed, sort_keys=True)


def alpha_record(layers: Iterable[Layer]) -> str:
    """For ALPHA_KEY: dtypes of the alphas by layer, the commonest once. Without it a way back could not be exact."""
    kinds = {
        f"{layer.part}:{layer.path}": "none" if layer.alpha is None else str(layer.alpha.dtype)[6:]
        for layer in layers
    }
    common = max(set(kinds.values()), key=list(kinds.values()).count)
    others = {name: kind for name, kind in kinds.items() if kind != common}
    return json.dumps({"dtype": common, **({"others": others} if others else {})})


def read_alpha_record(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The record, parsed; empty if there is none or it is not one of ours."""
    try:
        found = json.loads(metadata.get(ALPHA_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    others = found.get("others", {}) if isinstance(found, dict) else None
    return found if isinstance(others, dict) and isinstance(found.get("dtype"), str) else {}


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
