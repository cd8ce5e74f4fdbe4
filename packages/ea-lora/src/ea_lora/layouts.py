"""The layouts of LoRA files: the names of their tensors, and the place of alpha.

    kohya      lora_unet__blocks_0_to_q.lora_down.weight, .lora_up.weight, .alpha     (EasyAnimate V2, A1111)
    comfyui    diffusion_model.blocks.0.to_q.lora_down.weight, .lora_up.weight, .alpha
    diffusers  transformer.blocks.0.to_q.lora_A.weight, .lora_B.weight; alpha in the header's metadata
    peft       a folder: adapter_model.safetensors with base_model.model.blocks.0.to_q.lora_A.weight, .lora_B.weight,
               and adapter_config.json with alpha

A text encoder's layers are under `lora_te_`, `text_encoders.t5xxl.transformer.`, `text_encoder.`, and for peft
in a separate folder `text_encoder`, since one of its adapters is for one network.

In kohya's names `.` and `_` look the same, so writing any other layout from them takes the model's own names
(`dotted_paths`). Sources: peft's and diffusers' saved files, ComfyUI's key map; the formats, not their code.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ea_lora.keys import KOHYA_PREFIXES, LAYOUTS, PARTS, Layout, Part, flatten
from ea_runtime.errors import UserError, nearest
from ea_runtime.files.safe import quote

if TYPE_CHECKING:
    from ea_lora.layer import Layer


#: diffusers' key in a file's header for the configs of its adapters
DIFFUSERS_KEY = "lora_adapter_metadata"
#: for layouts without an alpha tensor: the dtype of its tensor, or "none" for layers without one
ALPHA_KEY = "ea_alpha"

_DIFFUSERS: dict[Part, str] = {"denoiser": "transformer", "text": "text_encoder"}
_PREFIXES: dict[Layout, dict[Part, str]] = {
    "kohya": KOHYA_PREFIXES,
    "comfyui": {"denoiser": "diffusion_model.", "text": "text_encoders.t5xxl.transformer."},
    "diffusers": {part: f"{name}." for part, name in _DIFFUSERS.items()},
    "peft": {"denoiser": "base_model.model.", "text": "base_model.model."},
}
#: characters of a path without special meaning in a pattern
_PLAIN = re.compile(r"\^?(?:[A-Za-z0-9_-]|\\?\.)+")


def check_layout(value: Any) -> Layout:
    """One of LAYOUTS. Raises UserError."""
    if value not in LAYOUTS:
        raise UserError(
            f"`to` must be one of {', '.join(LAYOUTS)}, got {quote(value)}{nearest(str(value), LAYOUTS)}"
        )
    return value


def layout_of(names: Iterable[str]) -> Layout:
    """The layout that tensors are named in; diffusers' also for peft's if the network's name comes first."""
    names = list(names)
    is_ab = any(".lora_A." in name for name in names)
    if any(name.startswith("base_model.model.") for name in names):
        return "peft"
    if is_ab:
        return "comfyui" if any(name.startswith("diffusion_model.") for name in names) else "diffusers"
    return "kohya" if any(re.match(r"lora_(unet|te)", name) for name in names) else "comfyui"


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


class Alphas:
    """Alphas of files that have no tensor for it: from a config of peft's, checked.

    Raises UserError for a config of anything but plain LoRA, or without a number.
    """

    def __init__(self, config: Mapping[str, Any], label: str) -> None:
        wrong = {
            "use_dora": "DoRA",
            "fan_in_fan_out": "transposed weights",
            "lora_bias": "biases",
            "modules_to_save": "whole modules",
            "trainable_token_indices": "new tokens",
        }
        kind = config.get("peft_type", "LORA")
        if kind != "LORA":
            raise UserError(
                f"{label}: `peft_type` must be LORA, got {quote(kind)}; only plain LoRA can be used"
            )
        for key, what in wrong.items():
            if config.get(key):
                raise UserError(f"{label} asks for {what} (`{key}`); only plain LoRA can be used")
        self.label = label
        self.is_rs = config.get("use_rslora") is True
        self.default = self._alpha(config.get("lora_alpha"))
        patterns = config.get("alpha_pattern") or {}
        if not isinstance(patterns, Mapping) or not all(_PLAIN.fullmatch(str(key)) for key in patterns):
            raise UserError(f"{label}: `alpha_pattern` must map plain module paths to numbers")
        self.patterns = {str(key): self._alpha(value) for key, value in patterns.items()}

    def of(self, path: str, rank: int) -> float | None:
        """A layer's alpha as kohya counts it (the scale is alpha / rank); None if the config has none."""
        found = next((a for key, a in self.patterns.items() if _fits(key, path)), self.default)
        return None if found is None else found * math.sqrt(rank) if self.is_rs else found

    def _alpha(self, value: Any) -> float | None:
        if value is None:
            return None
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not 0 < value < 1e9:
            raise UserError(f"{self.label}: alpha must be a number above 0, got {quote(value)}")
        return float(value)


def diffusers_configs(metadata: Mapping[str, str], label: str) -> dict[Part, Alphas]:
    """The alphas in a file's own header, by network. Raises UserError for a damaged record."""
    if DIFFUSERS_KEY not in metadata:
        return {}
    try:
        packed = json.loads(metadata[DIFFUSERS_KEY])
        assert isinstance(packed, dict)
    except (ValueError, RecursionError, AssertionError):
        raise UserError(f"{label}: `{DIFFUSERS_KEY}` in its header must be a JSON object") from None
    found: dict[Part, Alphas] = {}
    for part, name in _DIFFUSERS.items():
        own = {k.removeprefix(f"{name}."): v for k, v in packed.items() if k.startswith(f"{name}.")}
        if own:
            found[part] = Alphas(own, label)
    return found


def dotted_paths(layers: Iterable[Layer], names: Mapping[Part, Iterable[str]]) -> dict[str, str]:
    """Layer names -> paths with dots, as modules are called. names: module paths of a model, by network.

    A number stands for any number, so a model of 6 blocks gives the names of one of 28.
    Raises UserError for a layer without a fitting name.
    """
    templates = {part: _templates(paths) for part, paths in names.items()}
    found: dict[str, str] = {}
    for layer in layers:
        flat = flatten(layer.path)
        key, numbers = _numbers(flat)
        fits = {template.format(*numbers) for template in templates.get(layer.part, {}).get(key, ())}
        if "." in layer.path:
            found[layer.name] = layer.path
        elif len(fits) == 1:
            found[layer.name] = fits.pop()
        else:
            what = (
                "no module of the model has such a name" if not fits else f"it can mean {' or '.join(fits)}"
            )
            raise UserError(
                f"{quote(layer.name)} has no dots, and {what}; give the model that the LoRA was made for (--model)"
            )
    return found


def _templates(paths: Iterable[str]) -> dict[str, set[str]]:
    """Flattened paths with `#` for numbers -> the dotted forms, `{}` for numbers."""
    found: dict[str, set[str]] = {}
    for path in paths:
        key, _ = _numbers(flatten(path))
        escaped = path.replace("{", "{{").replace("}", "}}")
        found.setdefault(key, set()).add(re.sub(r"\d+", "{}", escaped))
    return found


def _numbers(text: str) -> tuple[str, list[str]]:
    return re.sub(r"\d+", "#", text), re.findall(r"\d+", text)


def _fits(pattern: str, path: str) -> bool:
    """As peft reads a pattern without special characters: the path, or its end behind a dot; `^`: the path only."""
    plain = pattern.replace("\\.", ".")
    if plain.startswith("^"):
        return path == plain[1:]
    return path == plain or path.endswith(f".{plain}")


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
