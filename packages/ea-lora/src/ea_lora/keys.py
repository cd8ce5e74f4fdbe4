"""Words that files and models share: networks, layouts, flattened paths, and the modules that LoRA can adapt."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

Part = Literal["denoiser", "text"]
PARTS: tuple[Part, ...] = get_args(Part)
#: the layouts that are written, see layouts.py; "other": names of any other trainer, see places.py
Layout = Literal["kohya", "diffusers", "peft", "comfyui"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Spelling = Layout | Literal["other"]
#: the files of peft's folder, and the folder in it for its text encoder's adapter
WEIGHTS_NAME, CONFIG_NAME, TEXT_FOLDER = "adapter_model.safetensors", "adapter_config.json", "text_encoder"

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
