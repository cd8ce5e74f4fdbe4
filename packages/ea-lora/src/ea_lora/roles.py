"""Tensor names: the layer that a tensor belongs to and its role there, by the end of its name, whoever wrote it.

    NAME.lora_down.weight, .lora_up.weight, .alpha       kohya, OneTrainer, musubi-tuner, VideoX-Fun, ComfyUI
    NAME.lora_A.weight, .lora_B.weight                   peft, diffusers, ai-toolkit, diffusion-pipe
    NAME.lora_A.ADAPTER.weight, .lora_B.ADAPTER.weight   peft's state dict, DiffSynth-Studio
    NAME.lora.down.weight, .lora.up.weight               SimpleTuner, diffusers 0.22
    NAME.lora_linear_layer.down.weight, ...              diffusers 0.20
    NAME_lora.down.weight, NAME_lora.up.weight           diffusers 0.13, in its attention processors
    NAME.lora_A, NAME.lora_B; .lora_a.weight, ...        loralib; torchtune

Sources: files and documentation of these projects; the formats, not their code. places.py finds the module that
NAME means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Role = Literal["down", "up", "alpha", "extra"]

_HALVES: dict[str, Role] = {"down": "down", "a": "down", "up": "up", "b": "up"}
_HALF = re.compile(
    r"(?P<layer>.+?)[._]lora(?:_linear_layer)?[._](?P<half>down|up|[ABab])"
    r"(?:\.(?P<adapter>(?!(?:weight|bias)$)[^.]+))?(?:\.(?P<what>weight|bias))?"
)
_ALPHA = re.compile(r"(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?)?\.(?:lora_|network_)?alpha")
#: tensors next to a LoRA's matrices that add to the module; they have no effect while they are zero
_EXTRA = re.compile(r"(?P<layer>.+?)\.(?:diff|diff_b|w_norm|b_norm|bias)")
#: ends of names that belong to relatives of LoRA, which compute something else
_RELATIVES = {
    r"dora_scale|lora_magnitude_vector(\.[^.]+)?(\.weight)?|magnitude": "DoRA",
    r"hada_\w+": "LoHa",
    r"lokr_\w+": "LoKr",
    r"b?oft_\w+(\.[^.]+)?(\.weight)?": "OFT",
    r"[ab][12]\.weight|glora_\w+": "GLoRA",
    r"lora_mid\.weight": "LoCon with a Tucker core",
    r"lora_embedding_[AB](\.[^.]+)?": "LoRA of an embedding",
    r"vera_\w+(\.[^.]+)?": "VeRA",
    r"lora_E(\.[^.]+)?|ranknum(\.[^.]+)?": "AdaLoRA",
    r"ia3_l(\.[^.]+)?|on_input": "IA3",
    r"set_weight": "a weight to replace the model's",
    r"reshape_weight": "LoRA of a widened layer",
    r"base_layer\.(weight|bias)": "a weight of the base itself",
    r"modules_to_save(\.[^.]+)*": "a whole module",
    r"lora_(A|B|down|up)(\.[^.]+)?\.(absmax|quant_\w+|SCB)": "a quantised LoRA",
}
_RELATIVE = [(re.compile(rf"(?:.*\.)?(?:{ends})"), method) for ends, method in _RELATIVES.items()]


@dataclass(frozen=True, slots=True)
class TensorName:
    """A tensor's name, taken apart. layer: without the role; adapter: peft's name for it, if given."""

    layer: str
    role: Role
    adapter: str | None = None


def parse_name(key: str) -> TensorName | None:
    """The parts of a tensor's name; None if it belongs to no LoRA layer."""
    if half := _HALF.fullmatch(key):
        role = "extra" if half["what"] == "bias" else _HALVES[half["half"].lower()]
        return TensorName(half["layer"], role, half["adapter"])
    if alpha := _ALPHA.fullmatch(key):
        return TensorName(alpha["layer"], "alpha")
    extra = _EXTRA.fullmatch(key)
    return None if extra is None else TensorName(extra["layer"], "extra")


def relative_of_lora(key: str) -> str | None:
    """The relative of LoRA that a tensor's name shows, or None."""
    return next((method for pattern, method in _RELATIVE if pattern.fullmatch(key)), None)
