"""Model folders with random weights: V2's shapes, small ones and the published size, for exports."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ea_dit import Transformer3DModel
from ea_runtime.models.layout import bundled_folder
from ea_vae import AutoencoderKLMagvit

#: the published V2 checkpoint's (widths 128, 256, 512, 512, two layers per block, 28 blocks of width 1152)
FULL_VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["SpatialDownBlock3D"] + ["SpatialTemporalDownBlock3D"] * 3,
    "up_block_types": ["SpatialUpBlock3D"] + ["SpatialTemporalUpBlock3D"] * 3,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
SMALL_VAE: dict[str, Any] = FULL_VAE | {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}
SMALL_DIT: dict[str, Any] = {
    "num_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "cross_attention_dim": 96,
    "caption_channels": 48,
    "sample_size": 16,
}
#: numbers drawn for a tensor; a larger one repeats them
_DRAWN = 1 << 20
_MOTION_V3: dict[str, Any] = {"num_attention_heads": 16}
#: what V3's inpainting transformer has next to V2's
V3: dict[str, Any] = {
    "in_channels": 12,
    "basic_block_type": "global_motionmodule",
    "motion_module_kwargs": None,
    "motion_module_kwargs_even": _MOTION_V3,
    "motion_module_kwargs_odd": _MOTION_V3 | {"attention_block_types": ["Temporal_Self", "Global_Self"]},
}


def write_model(
    folder: Path,
    vae: Mapping[str, Any] | None,
    dit: Mapping[str, Any] | None,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Writes a model folder (without parts given as None) with random weights, tensor by tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"vae": (AutoencoderKLMagvit, vae), "transformer": (Transformer3DModel, dit)}
    for name, (cls, config) in parts.items():
        if config is None:
            continue
        with torch.device("meta"):
            network = cls.from_config(dict(config))
        (folder / name).mkdir(exist_ok=True)
        saved = {key: value for key, value in dict(network.config).items() if not key.startswith("_")}
        saved["_class_name"] = cls.__name__
        (folder / name / "config.json").write_text(json.dumps(saved, default=list), encoding="utf-8")
        path = folder / name / "diffusion_pytorch_model.safetensors"
        write_random(path, {key: tuple(t.shape) for key, t in network.state_dict().items()}, dtype)
    return folder


def write_small(folder: Path) -> Path:
    """Writes the bundled model with random weights in a VAE of one layer a block and a denoiser of two blocks."""
    shutil.copytree(bundled_folder("tiny"), folder)
    fewer = {"vae": {"layers_per_block": 1}, "transformer": {"num_layers": 2}}
    vae, dit = (
        json.loads((folder / part / "config.json").read_text("utf-8")) | less for part, less in fewer.items()
    )
    return write_model(folder, vae, dit, torch.float32)


def write_random(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """Writes random weights that keep activations near 1 as safetensors, holding one tensor in memory at a time."""
    names = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16"}
    header: dict[str, Any] = {}
    offset = 0
    for key, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, shape in shapes.items():
            count = math.prod(shape)
            drawn = torch.randn(min(count, _DRAWN), generator=generator)
            tensor = drawn.repeat(-(-count // len(drawn)))[:count].reshape(shape)
            fan = math.prod(shape[1:]) if len(shape) > 1 else 1
            if len(shape) > 1:
                tensor /= math.sqrt(fan)
            elif "norm" in key and key.endswith("weight"):
                tensor = 1 + 0.1 * tensor
            else:
                tensor *= 0.1
            file.write(tensor.to(dtype).view(torch.uint8).numpy().tobytes())
