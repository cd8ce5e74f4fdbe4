from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ea_lora import load_lora, merge_lora, read_lora
from ea_runtime.errors import UserError
from ea_runtime.models.loading import load_parts

Write = Callable[..., Path]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def denoiser_of(folder: Path) -> Any:
    return load_parts(folder, parts=("denoiser",)).denoiser


def outputs(denoiser: Any) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    latents, text = (torch.randn(*shape, generator=generator) for shape in ((2, 4, 3, 4, 4), (2, 6, 8)))
    with torch.inference_mode():
        return denoiser(latents, timestep=0, encoder_hidden_states=text).sample


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_merged_folder_equals_loading(
    model_folder: Path, write_lora_file: Write, small: Any, tmp_path: Path
) -> None:
    first = write_lora_file(small.model_tensors(seed=1))
    second = write_lora_file(small.model_tensors(seed=2), "other.safetensors")
    before = files_in(model_folder)
    merged = merge_lora(model_folder, [(first, 0.7), second], tmp_path / "out")
    assert (merged.num_changed, [len(found.matches) for found in merged.matchings]) == (5, [5, 5])
    assert files_in(model_folder) == before

    loaded = denoiser_of(model_folder)
    base = outputs(loaded)
    load_lora(loaded, first, 0.7)
    load_lora(loaded, second)  # 1, as in merging
    assert small.relative_error(outputs(denoiser_of(tmp_path / "out")), outputs(loaded)) < 1e-5
    assert small.relative_error(outputs(loaded), base) > 0.01


def test_what_no_lora_touches_is_copied_to_the_byte(
    model_folder: Path, write_lora_file: Write, small: Any, tmp_path: Path
) -> None:
    (model_folder / ".git").mkdir()
    (model_folder / ".git" / "history").write_text("large")
    (model_folder / "transformer" / "old.bin").write_text("pickle")
    merge_lora(model_folder, write_lora_file(small.model_tensors()), tmp_path / "out")
    old, new = load_file(model_folder / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {
        f"{name}.weight" for name in ("proj_in", "mix", "blocks.0.to_q", "blocks.1.to_q", "proj_out")
    }
    names = {*files_in(tmp_path / "out")}
    assert names == {"README.md", "transformer/config.json", WEIGHTS, "manifest.json", "merged_loras.json"}
    record = json.loads((tmp_path / "out" / "merged_loras.json").read_text())
    assert [(lora["file"], lora["weight"]) for lora in record["loras"]] == [("style.safetensors", 1.0)]


def test_a_downloaded_folder_of_links(
    model_folder: Path, write_lora_file: Write, small: Any, tmp_path: Path
) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / "1"
    shutil.copytree(model_folder, snapshot)
    blobs = tmp_path / "hub" / "blobs"
    blobs.mkdir()
    shutil.move(snapshot / WEIGHTS, blobs / "abc")
    (snapshot / WEIGHTS).symlink_to(blobs / "abc")
    before = (blobs / "abc").read_bytes()
    assert merge_lora(snapshot, write_lora_file(small.model_tensors()), tmp_path / "out").num_changed == 5
    assert (blobs / "abc").read_bytes() == before
    assert not (tmp_path / "out" / WEIGHTS).is_symlink()
    assert (tmp_path / "out" / WEIGHTS).read_bytes() != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_in_float32_and_casts_once_in_shards(
    model_folder: Path, write_lora_file: Write, small: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(model_folder / WEIGHTS).items()}
    (model_folder / WEIGHTS).unlink()
    shards: dict[str, dict[str, Tensor]] = {"a-1.safetensors": {}, "a-2.safetensors": {}}
    for number, name in enumerate(tensors):
        shards[f"a-{1 + number % 2}.safetensors"][name] = tensors[name]
    for name, held in shards.items():
        save_file(held, model_folder / "transformer" / name)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (model_folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps(index)
    )

    paths = [write_lora_file(small.model_tensors(seed=seed), f"{seed}.safetensors") for seed in range(3)]
    merge_lora(model_folder, [(path, 0.3) for path in paths], tmp_path / "out")
    merged = {
        key: value
        for file in shards
        for key, value in load_file(tmp_path / "out" / "transformer" / file).items()
    }
    for layers in zip(*(read_lora(path).layers for path in paths), strict=True):
        name = layers[0].path.replace("_0_", ".0.").replace("_1_", ".1.") + ".weight"
        exact = tensors[name].double()
        for layer in layers:
            down, up = (matrix.double() for matrix in layer.matrices())
            exact = exact + (0.3 * layer.scale * up @ down).reshape(exact.shape)
        # at most the one rounding of the cast, but for numbers that float32 puts on the other side of a tie
        assert (merged[name] != exact.to(dtype)).float().mean() < 0.02


def test_a_pipeline_gives_its_folder(
    model_folder: Path, write_lora_file: Write, small: Any, tmp_path: Path
) -> None:
    path = write_lora_file(small.model_tensors())
    pipe = SimpleNamespace(model=str(model_folder), denoiser=None)
    assert merge_lora(pipe, path, tmp_path / "out").folder == tmp_path / "out"
    with pytest.raises(
        UserError, match="`model` must be a model folder or a pipeline that was loaded from one"
    ):
        merge_lora(SimpleNamespace(model=None), path, tmp_path / "other")


def test_refusals_write_nothing(
    model_folder: Path, write_lora_file: Write, small: Any, tmp_path: Path
) -> None:
    good = write_lora_file(small.model_tensors())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    for out, text in (
        ("full", "must be a new or empty folder"),
        ("model/out", "must be outside the model folder"),
    ):
        with pytest.raises(UserError, match=text):
            merge_lora(model_folder, good, tmp_path / out)
    with pytest.raises(UserError, match="at least one LoRA file"):
        merge_lora(model_folder, [], tmp_path / "out")
    with pytest.raises(UserError, match="from -100 to 100"):
        merge_lora(model_folder, (good, 1000), tmp_path / "out")
    with pytest.raises(UserError, match="2 layers for a text encoder"):
        merge_lora(model_folder, write_lora_file(name="style.safetensors"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_overflows_in_float16_leaves_no_folder(
    model_folder: Path, write_lora_file: Write, small: Any, tmp_path: Path
) -> None:
    tensors = {
        name: torch.full_like(tensor, 6e4).half()
        for name, tensor in load_file(model_folder / WEIGHTS).items()
    }
    save_file(tensors, model_folder / WEIGHTS)
    strong = {key: value.abs() * 30 for key, value in small.model_tensors().items()}
    with pytest.raises(UserError, match="would hold NaN or infinity in float16 after merging"):
        merge_lora(model_folder, (write_lora_file(strong), 100.0), tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_weights_in_other_formats_are_refused(
    model_folder: Path, write_lora_file: Write, small: Any, tmp_path: Path
) -> None:
    other = shutil.copytree(model_folder, tmp_path / "float8")
    tensors = load_file(other / WEIGHTS)
    save_file(tensors | {"mix.weight": tensors["mix.weight"].to(torch.float8_e4m3fn)}, other / WEIGHTS)
    with pytest.raises(UserError, match="mix has weights of float8_e4m3fn; LoRA needs 16-bit floats"):
        merge_lora(other, write_lora_file(small.model_tensors()), tmp_path / "out")
