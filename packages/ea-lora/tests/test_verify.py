from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ea_lora import lora_info, read_lora, verify_lora, write_lora
from ea_lora.verify import block_of, delta_norm
from ea_runtime.errors import UserError

Write = Callable[..., Path]


def test_norms_are_those_of_the_products(write_lora_file: Write) -> None:
    for layer in read_lora(write_lora_file()).layers:
        assert delta_norm(layer) == pytest.approx(float(layer.delta().norm()), rel=1e-5)


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("transformer_blocks.3.attn1.to_out.0", "transformer_blocks.3"),
        ("transformer_blocks.3.attn_temporal.temporal_transformer.proj_in", "transformer_blocks.3 motion"),
        ("encoder.block.11.layer.0.SelfAttention.q", "encoder.block.11"),
        ("adaln_single.emb.timestep_embedder.linear_1", "adaln_single"),
        ("long_connect_fc.12", "long_connect_fc.12"),
        ("proj_out", "proj_out"),
    ],
)
def test_blocks(path: str, block: str) -> None:
    assert block_of(path) == block


def test_report_of_small_networks(write_lora_file: Write, small: Any) -> None:
    pipe = small.make_pipe()
    hashed = small.pipe_hash(pipe)
    report = verify_lora(pipe, write_lora_file())
    assert small.pipe_hash(pipe) == hashed
    assert (len(report.layers), report.ignored, report.left_out) == (11, (), ())
    assert report.does_something
    counts = {(block.part, block.block): block.num_layers for block in report.blocks}
    assert counts == {
        ("denoiser", "blocks.0"): 3,
        ("denoiser", "blocks.1"): 3,
        ("denoiser", "mix"): 1,
        ("denoiser", "proj_in"): 1,
        ("denoiser", "proj_out"): 1,
        ("text", "encoder.0"): 2,
    }
    by_path = {layer.path: layer for layer in report.layers}
    weight = pipe.denoiser.proj_out.weight
    assert by_path["proj_out"].relative == pytest.approx(
        by_path["proj_out"].norm / float(weight.detach().norm())
    )
    total = math.sqrt(sum(layer.norm**2 for layer in report.layers if layer.block == "blocks.0"))
    assert report.blocks[0].norm == pytest.approx(total)
    assert report.probe == {}  # the small denoiser says nothing of its inputs
    json.dumps(report.as_dict())


def test_probe_moves_with_the_weight(model_folder: Path, write_lora_file: Write, small: Any) -> None:
    path = write_lora_file(small.model_tensors())
    strong, weak, off = (verify_lora(model_folder, path, weight).probe for weight in (1.0, 0.1, 0.0))
    assert set(strong) == {"picture", "video"}
    assert strong["video"] > weak["video"] > off["video"] == 0.0
    assert verify_lora(model_folder, path, probe=False).probe == {}


def test_an_untrained_lora_is_found_out(model_folder: Path, write_lora_file: Write, small: Any) -> None:
    tensors = {key: value * ("lora_up" not in key) for key, value in small.model_tensors().items()}
    report = verify_lora(model_folder, write_lora_file(tensors))
    assert not report.does_something
    assert set(report.probe.values()) == {0.0}


def test_another_models_file(model_folder: Path, write_lora_file: Write) -> None:
    layers = {
        "lora_unet_up_0.lora_down.weight": torch.ones(1, 8),
        "lora_unet_up_0.lora_up.weight": torch.ones(8, 1),
    }
    with pytest.raises(UserError, match="0 match the modules of this model"):
        verify_lora(model_folder, write_lora_file(layers))


def test_info_needs_no_model(write_lora_file: Write, tmp_path: Path) -> None:
    found = lora_info(write_lora_file())
    assert found["layers"] == {"denoiser": 9, "text": 2}
    assert (found["ranks"], found["alphas"], found["dtypes"]) == ([4], [2.0], ["float32"])
    assert (found["is_trained"], found["hash_matches"], found["metadata"]) == (True, None, {})

    path = tmp_path / "ours.safetensors"
    write_lora(path, read_lora(write_lora_file()).layers, {"ss_note": "x"})
    assert lora_info(path)["hash_matches"] is True
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert lora_info(path)["hash_matches"] is False
