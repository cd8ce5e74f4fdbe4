"""Names: the tensors of a file that make a LoRA layer, and the module of a model that a layer is for.

EasyAnimate V2 writes kohya's names: a module's path with `_` for `.`, behind a prefix for the network:

    lora_unet__transformer_blocks_0_attn1_to_q.lora_down.weight    (rank, in)
    lora_unet__transformer_blocks_0_attn1_to_q.lora_up.weight      (out, rank)
    lora_unet__transformer_blocks_0_attn1_to_q.alpha               one number; the scale is alpha / rank

Names with dots and peft's halves (`lora_A`, `lora_B`) are read too: layouts.py has the other layouts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

Part = Literal["denoiser", "text"]
Role = Literal["down", "up", "alpha"]
PARTS: tuple[Part, ...] = ("denoiser", "text")
#: how a file names its tensors, see layouts.py
Layout = Literal["kohya", "diffusers", "peft", "comfyui"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
#: the files of peft's folder, and the folder in it for its text encoder's adapter
WEIGHTS_NAME, CONFIG_NAME, TEXT_FOLDER = "adapter_model.safetensors", "adapter_config.json", "text_encoder"

#: what V2 puts before a module's path; its denoiser's own name is empty, hence two underscores
KOHYA_PREFIXES: dict[Part, str] = {"denoiser": "lora_unet__", "text": "lora_te_"}

_ROLES: dict[str, Role] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".alpha": "alpha",
}
_PREFIXES: tuple[tuple[str, Part], ...] = (
    (r"lora_unet__?", "denoiser"),
    (r"lora_te\d?_", "text"),
    (r"diffusion_model\.", "denoiser"),
    (r"transformer\.", "denoiser"),
    (r"text_encoders\.t5xxl\.transformer\.", "text"),
    (r"text_encoder\.", "text"),
)
#: parts of names that belong to relatives of LoRA, which compute something else
_RELATIVES = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "glora": "GLoRA",
    "lora_mid": "LoCon with a Tucker core",
    "lora_embedding_": "LoRA of an embedding",
    "lora_A.bias": "LoRA with a bias",
    "lora_B.bias": "LoRA with a bias",
}

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def split_key(key: str) -> tuple[str, Role] | None:
    """A tensor's name -> (its layer's name, its role); None if it belongs to no LoRA layer."""
    for ending, role in _ROLES.items():
        if key.endswith(ending) and len(key) > len(ending):
            return key.removesuffix(ending), role
    return None


def relative_of_lora(key: str) -> str | None:
    """The relative of LoRA that a tensor's name shows, or None."""
    return next((method for piece, method in _RELATIVES.items() if piece in key), None)


def split_name(name: str) -> tuple[Part, str]:
    """A layer's name -> (network, path of the module). A name without a known prefix is the denoiser's, but T5's
    own (`encoder.block.0.layer...`), which peft writes without a network's name."""
    name = name.removeprefix("base_model.model.")
    if re.match(r"encoder\.block\.\d+\.layer\.", name):
        return "text", name
    for pattern, part in _PREFIXES:
        found = re.match(pattern, name)
        if found:
            return part, name[found.end() :]
    return "denoiser", name


def flatten(path: str) -> str:
    """`blocks.0.attn1.to_q` -> `blocks_0_attn1_to_q`. The way back needs the model."""
    return path.replace(".", "_")


def is_target(module: nn.Module) -> bool:
    """True if LoRA can adapt this module: a Linear, or a convolution whose kernel is 1 in every direction."""
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return (
            False  # torch's own multi-head attention reads its weight and never calls it: hooks would be dead
        )
    if isinstance(module, nn.Linear):
        return True
    if not isinstance(module, CONVOLUTIONS) or set(module.kernel_size) != {1}:
        return False
    return module.groups == 1 and module.padding_mode == "zeros"


def find_targets(
    module: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """The modules of a network that LoRA can adapt, by path.

    include, exclude: shell patterns over paths, such as "*attn_temporal*" (V2's motion modules) or
    "*.to_[qkv]"; a module is taken if any of `include` and none of `exclude` fits.
    """
    return {
        path: child
        for path, child in module.named_modules()
        if path and is_target(child) and fits(path, include) and not fits(path, exclude)
    }


def fits(path: str, patterns: Sequence[str]) -> bool:
    """True if any of the shell patterns fits the path; case counts."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)
