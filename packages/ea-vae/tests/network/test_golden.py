"""Parity with tensors computed by EasyAnimate V2 itself (float32, CPU)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ea_vae import AutoencoderKLMagvit
from ea_vae.network import model

CASES = {
    "vae_magvit": ["encode_1", "encode_9", "decode_1", "decode_9", "tiled_encode_9", "tiled_decode_9"],
    "vae_slice": [
        *(f"{way}_{frames}" for way in ("encode", "decode") for frames in (1, 9, 16, 25)),
        "tiled_encode_25",
        "tiled_decode_25",
    ],
}


def relative(ours: torch.Tensor, golden: torch.Tensor) -> float:
    assert ours.shape == golden.shape
    return float((ours - golden).norm() / golden.norm())


@pytest.fixture(scope="module")
def loaded(reference: Path) -> dict[str, tuple[AutoencoderKLMagvit, dict[str, torch.Tensor]]]:
    return {
        name: (
            AutoencoderKLMagvit.from_pretrained(reference, subfolder=name).eval(),
            load_file(reference / name / "golden.safetensors"),
        )
        for name in CASES
    }


def test_every_golden_case_is_named(loaded):
    for name, (_, golden) in loaded.items():
        assert {key.split(".")[0] for key in golden} == set(CASES[name])


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in CASES.items() for case in cases])
@torch.no_grad()
def test_one_pass(loaded, name, case, monkeypatch):
    vae, golden = loaded[name]
    source = case.removeprefix("tiled_")
    vae.disable_tiling()
    if case != source:  # placed as in the reference: 4 latents every 3, the last tile a sliver of 2
        monkeypatch.setattr(model, "tile_spans", lambda *_: [(0, 4), (3, 7), (6, 8)])
        vae.enable_tiling(tile_sample_min_size=32, tile_overlap_factor=0.25)
    if "encode" in case:
        ours = vae.encode(golden[f"{source}.sample"]).latent_dist.parameters
        assert relative(ours, golden[f"{case}.moments"]) < 1e-5
    else:
        ours = vae.decode(golden[f"{source}.latent"]).sample
        assert relative(ours, golden[f"{case}.sample"]) < 1e-5


@pytest.mark.parametrize("mode", ["magvit", "slice"])
def test_whole_video(loaded, reference, mode):
    vae, _ = loaded[f"vae_{mode}"]
    vae.disable_tiling()
    golden = load_file(reference / "pipeline" / "golden.safetensors")
    latents = golden["latents.dpmpp"]
    if mode == "slice":
        latents = torch.cat([latents, golden["latents.ddim"][:, :, :1]], dim=2)
    latents = latents / 0.18215
    plain = vae.decode_video(latents, smooth=False)
    assert relative(plain / 2 + 0.5, golden[f"decoded_unsmoothed.{mode}"]) < 1e-5
    smoothed = vae.decode_video(latents, generator=torch.Generator().manual_seed(4321))
    assert relative(smoothed / 2 + 0.5, golden[f"decoded.{mode}"]) < 1e-3


def test_published_checkpoint_fits(reference):
    folder = reference / "easyanimate_v2_768" / "vae"
    config = json.loads((folder / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKL"
    assert "ch" not in config
    with torch.device("meta"):
        vae = AutoencoderKLMagvit.from_config(config)
    ours = {key: list(value.shape) for key, value in vae.state_dict().items()}
    assert ours == json.loads((folder / "state_dict_shapes.json").read_text())
    assert sum(value.numel() for value in vae.state_dict().values()) == pytest.approx(246.0e6, rel=1e-3)
    assert vae.config.scaling_factor == 0.18215
    assert vae.config.sample_size == 256
