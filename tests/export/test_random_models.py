"""V2-shaped networks with random weights, 8x8 latents: ONNX Runtime on the CPU against PyTorch, fp32."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ea_runtime.export import parity
from ea_runtime.export.make import ExportRequest, export_bundle
from ea_vae import AutoencoderKLMagvit

pytestmark = pytest.mark.slow
full = pytest.mark.skipif(os.environ.get("EA_FULL") != "1", reason="EA_FULL=1 runs the long version")


@pytest.fixture(autouse=True, scope="module")
def _canaries_once() -> Iterator[None]:
    """Canaries are of no model: one export and comparison of them for each number format."""
    known: dict[Any, Any] = {}
    run_canaries = parity.run_canaries

    def once(folder: Path, *form: Any) -> Any:
        if form not in known:
            known[form] = run_canaries(folder, *form)
        return known[form]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "run_canaries", once)
        yield


def export(tmp_path: Path, model: Path, parts: tuple[str, ...], size: int, **options: Any) -> Any:
    """The report of a bundle of `parts` for `size` x `size` pixels."""
    request = ExportRequest(
        str(model), str(tmp_path / "bundle"), parts=parts, height=size, width=size, **options
    )
    return export_bundle(request).report


def check(report: Any, graphs: set[str]) -> None:
    assert {one["graph"] for one in report["parity"]} == graphs
    for one in report["parity"]:
        assert one["state"] == "compared"
        assert all(error["relative"] < 1e-4 for error in (*one["outputs"], *one["blocks"])), one


def test_a_v2_shaped_model(random_models: ModuleType, tmp_path: Path) -> None:
    """The published motion module (Vanilla), group norms of 32, three U-ViT blocks; 64x64 pixels."""
    model = random_models.write_model(
        tmp_path / "model", random_models.SMALL_VAE, random_models.SMALL_DIT, torch.float32
    )
    report = export(tmp_path, model, ("vae-decoder", "vae-encoder", "dit"), 64, num_frames=9)
    check(report, {"vae-decoder-causal-3", "vae-encoder-causal-9", "dit"})
    norms = report["weights"]["vae-decoder"]["norms"]
    with torch.device("meta"):
        decoder = AutoencoderKLMagvit(**random_models.SMALL_VAE).decoder
    # the mid block's attention has a norm over tokens, which ONNX keeps as the same operator
    count = sum(isinstance(module, torch.nn.GroupNorm) for module in decoder.modules())
    assert norms == {"GroupNorm(32)": count}


def test_a_v3_shaped_model(random_models: ModuleType, tmp_path: Path) -> None:
    """Attention over all tokens, known frames and CLIP's picture as inputs; the frames of a slice VAE."""
    vae = random_models.SMALL_VAE | {
        "slice_compression_vae": True,
        "mini_batch_encoder": 8,
        "mini_batch_decoder": 2,
    }
    dit = random_models.SMALL_DIT | random_models.V3 | {"num_layers": 4}
    model = random_models.write_model(tmp_path / "model", vae, dit, torch.float32)
    report = export(tmp_path, model, ("dit",), 64, num_frames=16)
    check(report, {"dit"})
    (one,) = report["parity"]
    assert len(one["blocks"]) == 4


def test_known_frames_without_clips_picture(random_models: ModuleType, tmp_path: Path) -> None:
    """As in the bundled model: V2's blocks, 12 input channels."""
    dit = random_models.SMALL_DIT | {"num_layers": 2, "in_channels": 12, "enable_clip_in_inpaint": False}
    model = random_models.write_model(tmp_path / "model", random_models.SMALL_VAE, dit, torch.float32)
    report = export(tmp_path, model, ("dit",), 64, num_frames=9)
    check(report, {"dit"})


@full
def test_opset_20_too(random_models: ModuleType, tmp_path: Path) -> None:
    model = random_models.write_model(
        tmp_path / "model", random_models.SMALL_VAE, random_models.SMALL_DIT, torch.float32
    )
    report = export(tmp_path, model, ("vae-decoder", "dit"), 128, num_frames=9, opset=20)
    check(report, {"vae-decoder-causal-3", "dit"})


@full
def test_a_slice_vae(random_models: ModuleType, tmp_path: Path) -> None:
    """Pieces that see their neighbours are separate graphs; smoothing adds those of the second pass."""
    config = random_models.SMALL_VAE | {
        "slice_compression_vae": True,
        "mini_batch_encoder": 8,
        "mini_batch_decoder": 2,
    }
    model = random_models.write_model(tmp_path / "model", config, random_models.SMALL_DIT, torch.float32)
    report = export(tmp_path, model, ("vae-decoder", "vae-encoder"), 64, num_frames=16)
    names = {one["graph"] for one in report["parity"]}
    assert {"vae-decoder-slice-4-0-2", "vae-decoder-slice-4-2-0", "vae-encoder-slice-8"} <= names
    check(report, names)


def test_a_large_model_in_16_bits_and_a_picture(random_models: ModuleType, tmp_path: Path) -> None:
    """Size conditions (sample_size 128), a picture (1 frame), fp16: the graph's own dtypes."""
    dit = random_models.SMALL_DIT | {"sample_size": 128, "num_layers": 2}
    model = random_models.write_model(tmp_path / "model", random_models.SMALL_VAE, dit)
    report = export(tmp_path, model, ("dit", "vae-decoder"), 64, num_frames=1, dtype="fp16")
    assert {one["graph"] for one in report["parity"]} == {"dit", "vae-decoder-causal-1"}
    unused = report["weights"]["dit"]["unused"]
    assert len(unused) == 8
    assert all("attn_temporal" in name and name.endswith(("to_q.weight", "to_k.weight")) for name in unused)
    assert all(error["relative"] < 2e-2 for one in report["parity"] for error in one["outputs"])
