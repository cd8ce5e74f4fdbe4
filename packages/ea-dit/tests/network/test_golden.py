"""Parity with the reference implementation's numbers and the published checkpoint's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ea_dit import Transformer3DModel, add_noise, training_loss

TOLERANCE = 1e-5


def relative_error(ours: Tensor, golden: Tensor) -> float:
    return float((ours - golden).norm() / golden.norm())


@pytest.mark.parametrize(
    ("name", "low_memory"),
    [("dit_v2", True), ("dit_grid", True), ("dit_grid", False), ("dit_sizecond", True), ("dit_v3", True)],
)
def test_forward_equals_reference(reference: Path, name: str, low_memory: bool) -> None:
    model = Transformer3DModel.from_pretrained(reference / name, low_cpu_mem_usage=low_memory).eval()
    golden = load_file(reference / name / "golden.safetensors")
    cases = sorted({key.split(".")[0] for key in golden})
    assert cases == ["image", "square", *(["text_only"] if name == "dit_v3" else []), "wide"]
    for case in cases:
        arguments = {key.split(".")[1]: value for key, value in golden.items() if key.startswith(f"{case}.")}
        expected = arguments.pop("sample")
        batch, _, _, height, width = arguments["hidden_states"].shape
        conditions = {
            "resolution": torch.tensor([[8.0 * height, 8.0 * width]]).expand(batch, 2),
            "aspect_ratio": torch.tensor([[height / width]]).expand(batch, 1),
        }
        with torch.no_grad():
            sample = model(**arguments, added_cond_kwargs=conditions).sample
        assert sample.shape == expected.shape
        assert relative_error(sample, expected) < TOLERANCE, case


@pytest.mark.parametrize("name", ["dit_v2", "dit_grid", "dit_sizecond", "dit_v3"])
def test_weights_load_without_a_missing_or_stray_tensor(reference: Path, name: str) -> None:
    model, info = Transformer3DModel.from_pretrained(reference / name, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    saved = load_file(reference / name / "diffusion_pytorch_model.safetensors")
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in saved.items()}


def test_position_tables_are_the_published_ones(reference: Path) -> None:
    # They are buffers that a fresh model computes and a checkpoint carries: both must agree.
    saved = load_file(reference / "dit_v2" / "diffusion_pytorch_model.safetensors")
    config = json.loads((reference / "dit_v2" / "config.json").read_text())
    fresh = Transformer3DModel.from_config(config).state_dict()
    tables = [key for key in saved if key.endswith("pos_encoder.pe")]
    assert len(tables) == 2 * 28
    for key in tables:
        torch.testing.assert_close(fresh[key], saved[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["image", "square"])
def test_prepared_known_frames_equal_reference(reference: Path, case: str) -> None:
    model = Transformer3DModel.from_pretrained(reference / "dit_v3").eval()
    golden = load_file(reference / "dit_v3" / "golden.safetensors")
    given = {key.split(".")[1]: value for key, value in golden.items() if key.startswith(f"{case}.")}
    step = float(given["timestep"])
    clip = (given["clip_encoder_hidden_states"], given["clip_attention_mask"])
    with torch.no_grad():
        prepared = model.prepare(
            given["encoder_hidden_states"], given["encoder_attention_mask"], [step], None, *clip
        )
        known = {"inpaint_latents": given["inpaint_latents"]}
        sample = model(given["hidden_states"], step, prepared=prepared, **known).sample
    assert relative_error(sample, given["sample"]) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "count"), [("easyanimate_v2_768", 1446.3e6), ("easyanimate_v3_inp_512", 1538.4e6)]
)
def test_published_layout(reference: Path, name: str, count: float) -> None:
    folder = reference / name / "transformer"
    shapes = json.loads((folder / "state_dict_shapes.json").read_text())
    with torch.device("meta"):
        model = Transformer3DModel.from_config(json.loads((folder / "config.json").read_text()))
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == shapes
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(count, rel=1e-4)


@pytest.mark.parametrize("kind", ["plain", "snr"])
def test_training_loss_equals_reference(reference: Path, kind: str) -> None:
    golden = load_file(reference / "training_losses" / "golden.safetensors")
    x_start, noise, timesteps = golden["x_start"], golden["noise"], golden["timestep"]
    assert relative_error(add_noise(x_start, noise, timesteps), golden["x_t"]) < TOLERANCE
    losses = training_loss(golden["model_output"], x_start, noise, timesteps, snr=kind == "snr")
    assert set(losses) == {"loss", "mse", "vb"}
    for name, value in losses.items():
        for ours, theirs in zip(value, golden[f"{kind}.{name}"], strict=True):  # each sample, small ones too
            assert abs(float(ours - theirs)) < TOLERANCE * abs(float(theirs)), name
