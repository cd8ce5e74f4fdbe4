"""EasyAnimate V2's own results, against ours on this device."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import load_file

from gpu_rows.bench import Bench, NotHere

VAES = ("vae_magvit", "vae_slice")
DITS = ("dit_v2", "dit_grid", "dit_sizecond", "dit_v3")
#: relative errors; fp32 on a CPU keeps 1e-5, GPUs sum in another order
LIMITS = {"float32": 1e-4, "bfloat16": 5e-2}


def run(bench: Bench, dtype: str) -> dict[str, Any]:
    """The largest relative error of each golden network. Raises AssertionError above the limit."""
    root = bench.reference
    if root is None:
        raise NotHere("the golden data is not on this machine (a folder shared/, or --reference)")
    kind = getattr(torch, dtype)
    found: dict[str, float] = {}
    with torch.inference_mode(), _exact():
        for name in (*VAES, *DITS):
            folder = root / name
            if (folder / "golden.safetensors").is_file():
                golden = {
                    key: value.to(bench.device)
                    for key, value in load_file(folder / "golden.safetensors").items()
                }
                check = _vae_error if name in VAES else _dit_error
                found[name] = check(folder, golden, kind, bench.device)
    if not found:
        raise NotHere(f"{root} holds no golden data")
    worst = max(found.values())
    assert worst < LIMITS[dtype], f"relative errors {found}, must be below {LIMITS[dtype]}"
    return {"errors": found, "error": worst}


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """fp32 products in fp32: without TF32, which convolutions use otherwise."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _vae_error(folder: Any, golden: dict[str, torch.Tensor], dtype: Any, device: torch.device) -> float:
    from ea_vae import AutoencoderKLMagvit

    weights = folder / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():  # the slice VAE has the same weights, which are carried once
        weights = folder.parent / "vae_magvit" / weights.name
    vae: Any = AutoencoderKLMagvit.from_config(
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    )
    vae.load_state_dict(load_file(weights))
    vae = vae.eval().to(device, dtype)
    errors = []
    for case in sorted({key.split(".")[0] for key in golden}):
        if case.startswith("encode"):
            ours = vae.encode(golden[f"{case}.sample"].to(dtype)).latent_dist.parameters
            errors.append(_relative(ours, golden[f"{case}.moments"]))
        elif case.startswith("decode"):
            ours = vae.decode(golden[f"{case}.latent"].to(dtype)).sample
            errors.append(_relative(ours, golden[f"{case}.sample"]))
    return max(errors)


def _dit_error(folder: Any, golden: dict[str, torch.Tensor], dtype: Any, device: torch.device) -> float:
    from ea_dit import Transformer3DModel

    model: Any = Transformer3DModel.from_pretrained(folder)
    model = model.eval().to(device, dtype)
    errors = []
    for case in sorted({key.split(".")[0] for key in golden}):
        given = {key.split(".")[1]: value for key, value in golden.items() if key.startswith(f"{case}.")}
        expected = given.pop("sample")
        batch, _, _, height, width = given["hidden_states"].shape
        given = {
            key: value.to(dtype) if value.is_floating_point() and "mask" not in key else value
            for key, value in given.items()
        }
        conditions = {
            "resolution": torch.tensor([[8.0 * height, 8.0 * width]], device=device)
            .expand(batch, 2)
            .to(dtype),
            "aspect_ratio": torch.tensor([[height / width]], device=device).expand(batch, 1).to(dtype),
        }
        errors.append(_relative(model(**given, added_cond_kwargs=conditions).sample, expected))
    return max(errors)


def _relative(ours: torch.Tensor, golden: torch.Tensor) -> float:
    return float((ours.float() - golden).norm() / golden.norm())
