"""`check_folder` and memory estimates: every fault is named, no tensor is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ea_runtime.errors import UserError
from ea_runtime.models.check import FolderReport, PartReport, check_folder
from ea_runtime.models.memory import estimates as memory
from ea_runtime.models.memory.vae import vae_widths

DENOISER_FILE = "transformer/diffusion_pytorch_model.safetensors"
PUBLISHED_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3],
    "mini_batch_encoder": 9,
    "mini_batch_decoder": 3,
}
PUBLISHED_DENOISER = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "patch_size": 2}


def part(report: FolderReport, name: str) -> PartReport:
    return next(item for item in report.parts if item.name == name)


def test_a_good_folder(model_folder: Path) -> None:
    report = check_folder(model_folder)
    assert report.is_loadable
    assert [item.state for item in report.parts] == ["ok", "ok", "ok"]
    denoiser = part(report, "denoiser")
    # 16 x 8 tied embedding, 2 x 8 table, two layers; the saved table is not a parameter
    assert denoiser.num_parameters == 16 * 8 + 2 * 8 + 2 * (8 * 8 + 8)
    assert denoiser.num_values == denoiser.num_parameters + 16 * 8
    assert denoiser.num_bytes == 4 * denoiser.num_values
    assert denoiser.dtypes == {"F32": denoiser.num_values}
    assert report.memory["weights"]["denoiser"]["bf16"] == 2 * denoiser.num_values
    assert json.loads(json.dumps(report.as_dict()))["is_loadable"] is True


def test_what_is_missing_unexpected_and_wrong(model_folder: Path) -> None:
    tensors = load_file(model_folder / DENOISER_FILE)
    del tensors["layers.0.bias"]
    tensors |= {"extra": torch.zeros(2), "table": torch.zeros(4, 4)}
    save_file(tensors, model_folder / DENOISER_FILE)
    config = json.loads((model_folder / "vae/config.json").read_text())
    (model_folder / "vae/config.json").write_text(json.dumps({**config, "decay": 0.9}))
    (model_folder / "vae/old.ckpt").touch()
    report = check_folder(model_folder)
    denoiser, vae = part(report, "denoiser"), part(report, "vae")
    assert not report.is_loadable
    assert denoiser.missing == ["layers.0.bias"]
    assert denoiser.unexpected == ["extra"]
    assert denoiser.wrong_shape == [{"name": "table", "expected": [2, 8], "got": [4, 4]}]
    assert "1 tensors are missing" in denoiser.state
    assert (vae.state, vae.unknown_keys, vae.pickles) == ("ok", ["decay"], ["old.ckpt"])


def test_no_tensor_is_read(model_folder: Path) -> None:
    """Weights of 4 TB that take no space: a file with a header and a hole."""
    width = 10**6
    header = {}
    position = 0
    for name, shape in (("layers.0.weight", [width, width]), ("layers.0.bias", [width])):
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    path = model_folder / "vae/diffusion_pytorch_model.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    (model_folder / "vae/config.json").write_text(json.dumps({"_class_name": "FakeVae", "width": width}))
    report = check_folder(model_folder)
    assert part(report, "vae").state == "ok"
    assert part(report, "vae").num_bytes == 4 * (width * width + width)


def test_each_part_has_its_own_verdict(model_folder: Path) -> None:
    shutil.rmtree(model_folder / "vae")
    (model_folder / DENOISER_FILE).rename(model_folder / "transformer/pytorch_model.bin")
    (model_folder / "text_encoder/config.json").write_text(
        '{"architectures": ["T5EncoderModel"], "num_heads": 0}'
    )
    (model_folder / "ea.json").write_text("{")
    (model_folder / "model_index.json").write_text("[]")
    report = check_folder(model_folder)
    assert "has no VAE; expected vae/config.json" in part(report, "vae").state
    assert "ea models convert" in part(report, "denoiser").state
    assert part(report, "denoiser").pickles == ["pytorch_model.bin"]
    assert part(report, "text").state != "ok"
    assert "model_index.json" in report.problems[0]
    assert report.memory == {}


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no model; expected vae/, transformer/, text_encoder/"):
        check_folder(tmp_path / "empty")


def test_estimates_follow_the_measured_figures() -> None:
    decode = memory.estimate_decode(PUBLISHED_VAE, height=768, width=768)
    # an engine of the published decoder at 768 in fp16 took 10.15 GB, its weights among them
    assert decode.bytes_by_dtype["fp16"] / 1e9 == pytest.approx(10.15, rel=0.08)
    assert decode.bytes_by_dtype["fp32"] == 2 * decode.bytes_by_dtype["fp16"]
    denoise = memory.estimate_denoise(
        PUBLISHED_DENOISER, PUBLISHED_VAE, height=768, width=768, num_frames=144
    )
    assert denoise.tokens == 2304 * 48
    # at batch 2 the GEGLU alone has 2.04 G elements
    assert denoise.bytes_by_dtype["bf16"] > 2 * 2.04e9
    assert vae_widths({"ch": 16, "ch_mult": [1, 2, 4, 4]}) == [16, 32, 64, 64]
    assert memory.native_size({"sample_size": 128}) == 1024
