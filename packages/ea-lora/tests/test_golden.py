"""The reference implementation's own numbers for merged LoRAs, without and with the motion modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ea_lora import find_targets, load_lora, merge_lora, read_lora, unload_lora, verify_lora, write_lora
from ea_lora.io import content_hashes
from ea_runtime.errors import MissingPackageError
from ea_runtime.models.loading import load_parts

TOLERANCE = 1e-5
FILES = ["lora", "lora_temporal"]
LAYERS = {"lora": 299, "lora_temporal": 635}


def load_model(folder: Path, dtype: torch.dtype | None = None) -> SimpleNamespace:
    try:
        parts = load_parts(folder, dtype=dtype, parts=("denoiser", "text"))
    except MissingPackageError as error:
        pytest.skip(str(error))
    return SimpleNamespace(denoiser=parts.denoiser, text=parts.text, model=str(folder))


@pytest.fixture(scope="module")
def model(golden_folder: Path) -> SimpleNamespace:
    return load_model(golden_folder)


@pytest.fixture(autouse=True)
def _nothing_stays(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "model" in request.fixturenames:
        unload_lora(request.getfixturevalue("model"))


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "lora" / "golden.safetensors")


def outputs(model: Any, golden: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """The transformer's sample (timestep 500, every token counts) and T5's last hidden state."""
    text = golden[f"{name}.encoder_hidden_states"]
    with torch.inference_mode():
        sample = model.denoiser(
            golden[f"{name}.hidden_states"],
            timestep=torch.tensor([500]),
            encoder_hidden_states=text,
            encoder_attention_mask=torch.ones(text.shape[:2]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        words = model.text.model(
            input_ids=golden["input_ids"], attention_mask=golden["attention_mask"]
        ).last_hidden_state
    return sample, words


@pytest.mark.parametrize("name", FILES)
def test_merged_equals_reference(
    golden_folder: Path, golden: dict[str, Tensor], reference: Path, tmp_path: Path, small: Any, name: str
) -> None:
    merged = merge_lora(
        golden_folder, (reference / "lora" / f"{name}.safetensors", 0.55), tmp_path / "merged"
    )
    assert merged.num_changed == LAYERS[name] + 14
    sample, words = outputs(load_model(tmp_path / "merged"), golden, name)
    assert small.relative_error(sample, golden[f"{name}.merged_0.55.sample"]) < TOLERANCE
    assert small.relative_error(words, golden[f"{name}.t5_merged_0.55"]) < TOLERANCE


@pytest.mark.parametrize("name", FILES)
def test_loaded_equals_reference_and_unloads_to_the_bit(
    model: Any, golden: dict[str, Tensor], reference: Path, small: Any, name: str
) -> None:
    before, hashed = outputs(model, golden, name), small.state_hash(model.denoiser, model.text.model)
    lora = load_lora(model, reference / "lora" / f"{name}.safetensors", 0.55)
    assert (len(lora.matched), lora.ignored, lora.left_out) == (LAYERS[name] + 14, (), ())
    sample, words = outputs(model, golden, name)
    assert small.relative_error(sample, golden[f"{name}.merged_0.55.sample"]) < TOLERANCE
    assert small.relative_error(words, golden[f"{name}.t5_merged_0.55"]) < TOLERANCE
    assert small.relative_error(sample, before[0]) > 1e-3  # the golden numbers are not the base's own

    lora.weight = 0.0
    assert all(torch.equal(*pair) for pair in zip(outputs(model, golden, name), before, strict=True))
    unload_lora(model)
    assert all(torch.equal(*pair) for pair in zip(outputs(model, golden, name), before, strict=True))
    assert small.state_hash(model.denoiser, model.text.model) == hashed


def test_cycles_in_bfloat16_change_no_bit(golden_folder: Path, reference: Path, small: Any) -> None:
    model = load_model(golden_folder, torch.bfloat16)
    hashed = small.state_hash(model.denoiser, model.text.model)
    file = read_lora(reference / "lora" / "lora_temporal.safetensors")
    for cycle in range(10):  # what adds and subtracts in bfloat16 is off after the first
        lora = load_lora(model, file, weight=0.1 + 0.1 * cycle)
        if cycle % 2:
            lora.unload()
        else:
            unload_lora(model)
    assert small.state_hash(model.denoiser, model.text.model) == hashed


def test_the_motion_modules_can_be_left_out(model: Any, reference: Path) -> None:
    file = reference / "lora" / "lora_temporal.safetensors"
    lora = load_lora(model, file, exclude=["*attn_temporal*"])
    assert len(lora.matched) == LAYERS["lora"] + 14
    assert len(lora.left_out) == LAYERS["lora_temporal"] - LAYERS["lora"]


def test_targets_are_those_of_v2(model: Any, reference: Path) -> None:
    # V2's own file names every module that it adapts
    assert len(find_targets(model.denoiser)) == LAYERS["lora_temporal"]
    assert len(find_targets(model.denoiser, exclude=["*attn_temporal*"])) == LAYERS["lora"]
    assert len(find_targets(model.text.model)) == 14


@pytest.mark.parametrize("name", FILES)
def test_written_as_the_reference_writes(reference: Path, tmp_path: Path, name: str) -> None:
    source = reference / "lora" / f"{name}.safetensors"
    file = read_lora(source)
    write_lora(tmp_path / "copy.safetensors", file.layers, file.metadata)
    ours, theirs = load_file(tmp_path / "copy.safetensors"), load_file(source)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].shape == theirs[key].shape for key in theirs)
    assert dict(read_lora(tmp_path / "copy.safetensors").metadata) == dict(file.metadata)  # both hashes too
    assert content_hashes(source.read_bytes())["sshs_model_hash"] == file.metadata["sshs_model_hash"]


def test_verify_says_what_happens_to_the_model(model: Any, reference: Path, small: Any) -> None:
    hashed = small.state_hash(model.denoiser, model.text.model)
    report = verify_lora(model, reference / "lora" / "lora_temporal.safetensors")
    assert small.state_hash(model.denoiser, model.text.model) == hashed
    names = [block.block for block in report.blocks if block.part == "denoiser"]
    assert names.index("transformer_blocks.2") < names.index("transformer_blocks.10")  # 10 is not before 2
    assert {"transformer_blocks.27", "transformer_blocks.27 motion", "proj_out", "long_connect_fc.12"} <= {
        *names
    }
    assert all(block.norm > 0 for block in report.blocks)
    assert report.probe["picture"] > 1e-3
    assert report.probe["video"] > 1e-3
    assert report.probe["text"] > 1e-3
    assert verify_lora(model, reference / "lora" / "lora.safetensors", parts=("text",)).probe == {
        "text": pytest.approx(report.probe["text"], rel=0.5)
    }
