from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ea_lora.io import content_hashes, read_lora, write_lora
from ea_lora.layer import Layer, count_parts
from ea_runtime.errors import UserError

Write = Callable[..., Path]


def test_layers_and_their_numbers(write_lora_file: Write, small: Any) -> None:
    file = read_lora(write_lora_file())
    assert [layer.name for layer in file.layers] == sorted(small.layers)
    assert count_parts(file.layers) == {"denoiser": 9, "text": 2}
    for layer in file.layers:
        assert (layer.num_inputs, layer.num_outputs) == small.layers[layer.name]
        assert (layer.rank, layer.scale) == (small.rank, small.alpha / small.rank)
        assert layer.delta().shape == (layer.num_outputs, layer.num_inputs)


def test_alpha_is_the_rank_where_there_is_none(write_lora_file: Write, small: Any) -> None:
    tensors = {key: value for key, value in small.lora_tensors().items() if not key.endswith(".alpha")}
    assert {layer.scale for layer in read_lora(write_lora_file(tensors)).layers} == {1.0}


def test_written_files_hold_the_same_tensors(write_lora_file: Write, tmp_path: Path) -> None:
    source = write_lora_file()
    file = read_lora(source)
    write_lora(tmp_path / "new" / "copy.safetensors", file.layers, {"ss_note": "é", "trigger": "outline"})
    ours, theirs = load_file(tmp_path / "new" / "copy.safetensors"), load_file(source)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [
        "copy.safetensors"
    ]  # nothing left beside it
    with safe_open(tmp_path / "new" / "copy.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert {"ss_note", "trigger", "sshs_model_hash", "sshs_legacy_hash"} == set(metadata)
    assert metadata["ss_note"] == "é"


def test_hashes_ignore_metadata_that_people_edit(write_lora_file: Write, tmp_path: Path) -> None:
    file = read_lora(write_lora_file())
    found = []
    for name, note in (("a", "one"), ("b", "a longer one")):
        write_lora(tmp_path / f"{name}.safetensors", file.layers, {"ss_seed": "1", "note": note})
        metadata = read_lora(tmp_path / f"{name}.safetensors").metadata
        assert (
            content_hashes((tmp_path / f"{name}.safetensors").read_bytes())["sshs_model_hash"]
            == metadata["sshs_model_hash"]
        )
        found.append([metadata["sshs_model_hash"], metadata["sshs_legacy_hash"]])
    assert found[0] == found[1]


def test_equal_layers_give_equal_bytes(write_lora_file: Write, tmp_path: Path) -> None:
    file = read_lora(write_lora_file())
    metadata = {f"ss_{number}": str(number) for number in range(20)}
    for name in ("a", "b"):
        write_lora(tmp_path / name, file.layers, metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_dotted_names_are_written_as_v2_has_them(tmp_path: Path) -> None:
    layer = Layer(
        "diffusion_model.blocks.0.to_q", "denoiser", "blocks.0.to_q", torch.ones(2, 8), torch.ones(8, 2)
    )
    write_lora(tmp_path / "a.safetensors", [layer])
    assert [one.name for one in read_lora(tmp_path / "a.safetensors").layers] == ["lora_unet__blocks_0_to_q"]


def test_what_cannot_be_written(tmp_path: Path, write_lora_file: Write) -> None:
    layers = read_lora(write_lora_file()).layers
    with pytest.raises(UserError, match="two layers would be written as"):
        write_lora(tmp_path / "a.safetensors", [layers[0], layers[0]])
    with pytest.raises(UserError, match="at least one layer"):
        write_lora(tmp_path / "a.safetensors", [])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_lora(tmp_path / "file" / "a.safetensors", layers)
    assert not (tmp_path / "a.safetensors").exists()


def test_errors_name_the_layer_and_the_remedy(write_lora_file: Write, small: Any) -> None:
    tensors = small.lora_tensors()
    name = "lora_unet__proj_out"
    zero = {f"{name}.lora_down.weight": torch.zeros(0, 8), f"{name}.lora_up.weight": torch.zeros(4, 0)}
    with pytest.raises(
        UserError, match=r"layer 'lora_unet__proj_out' has rank 0, so it would do nothing; train"
    ):
        read_lora(write_lora_file({**tensors, **zero}))
    tensors.pop(f"{name}.lora_up.weight")
    with pytest.raises(UserError, match="'lora_unet__proj_out' has no up matrix"):
        read_lora(write_lora_file(tensors))
