"""Motion modules taken from one model folder into another: exact bits, reports, and nothing half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ea_dit import Transformer3DModel
from ea_dit.motion_files import extract_motion, insert_motion, load_motion
from ea_dit.weights.transplant import match_motion, motion_names
from ea_runtime.errors import UserError

Save = Callable[..., Path]
MOTION = {"num_attention_heads": 4, "temporal_position_encoding_max_len": 16}
GRID = {"motion_module_type": "VanillaGrid", "motion_module_kwargs": {**MOTION, "block_size": 2}}


@pytest.fixture
def save(make_model: Callable[..., Transformer3DModel], tmp_path: Path) -> Save:
    """save(name, seed, **config): a random model in that folder, like a run's `final/` or part of a model."""

    def make(
        name: str, seed: int = 0, in_model: bool = False, dtype: torch.dtype = torch.float32, **config: Any
    ) -> Path:
        torch.manual_seed(seed)
        folder = tmp_path / name
        make_model(**config).to(dtype).save_pretrained(folder / "transformer" if in_model else folder)
        return folder

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_there_and_back_is_the_same_to_the_bit(save: Save, tmp_path: Path) -> None:
    trained, other = save("trained", 1, **GRID), save("other", 2, **GRID)
    assert "tensors of the motion modules" in extract_motion(trained, tmp_path / "motion.safetensors")[0]
    lines = insert_motion(tmp_path / "motion.safetensors", other, tmp_path / "new")
    have, theirs, before = weights(tmp_path / "new"), weights(trained), weights(other)
    moved = motion_names(have)
    assert f"{len(moved)} tensors of 4 blocks matched" in lines[0]
    assert len(lines) == 2  # nothing was cast, no setting changed
    assert have.keys() == before.keys()
    for name in have:
        assert torch.equal(have[name], (theirs if name in moved else before)[name]), name
    assert any(not torch.equal(have[name], before[name]) for name in moved)
    # and back: the first model
    extract_motion(tmp_path / "new", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "motion.safetensors").read_bytes()
    insert_motion(tmp_path / "again.safetensors", trained, tmp_path / "same")
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert load_or_read(tmp_path / "same" / file) == load_or_read(trained / file)
    model = Transformer3DModel.from_pretrained(tmp_path / "new")
    assert torch.equal(model.state_dict()[moved[0]], theirs[moved[0]])


def load_or_read(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def test_a_model_folder_is_copied_whole(save: Save, tmp_path: Path) -> None:
    trained, other = save("trained", 1), save("other", 2, in_model=True)
    (other / "vae").mkdir()
    (other / "vae" / "config.json").write_text("{}")
    extract_motion(trained, tmp_path / "motion.safetensors")
    insert_motion(tmp_path / "motion.safetensors", other, tmp_path / "new")
    assert (tmp_path / "new" / "vae" / "config.json").read_text() == "{}"
    have, theirs = weights(tmp_path / "new" / "transformer"), weights(trained)
    assert all(torch.equal(have[name], theirs[name]) for name in motion_names(have))


def test_shards(save: Save, tmp_path: Path) -> None:
    trained, other = save("trained", 1), save("other", 2)
    model = Transformer3DModel.from_pretrained(other)
    (other / "diffusion_pytorch_model.safetensors").unlink()
    model.save_pretrained(other, max_shard_size="60KB")
    extract_motion(trained, tmp_path / "motion.safetensors")
    insert_motion(tmp_path / "motion.safetensors", other, tmp_path / "new")
    have, theirs = Transformer3DModel.from_pretrained(tmp_path / "new").state_dict(), weights(trained)
    moved = set(motion_names(have))
    assert moved
    assert all(
        torch.equal(have[name], (theirs if name in moved else model.state_dict())[name]) for name in have
    )


def test_settings_come_with_the_modules(save: Save, tmp_path: Path) -> None:
    """Heads and grids do not show in shapes; with the backbone's, the same tensors would compute something else."""
    trained = save("trained", 1, **GRID)
    other = save(
        "other", 2, motion_module_kwargs={"num_attention_heads": 2, "temporal_position_encoding_max_len": 32}
    )
    extract_motion(trained, tmp_path / "motion.safetensors")
    lines = insert_motion(tmp_path / "motion.safetensors", other, tmp_path / "new")
    assert "8 position tables stay the model's" in lines[0]
    assert (
        lines[1]
        == "settings that came with the motion modules: num_attention_heads, block_size, motion_module_type"
    )
    model = Transformer3DModel.from_pretrained(tmp_path / "new")
    motion = model.cfg.motion_module_kwargs
    assert (model.cfg.motion_module_type, motion.block_size, motion.num_attention_heads) == (
        "VanillaGrid",
        2,
        4,
    )
    assert motion.temporal_position_encoding_max_len == 32


def test_the_dtype_is_the_models(save: Save, tmp_path: Path) -> None:
    trained, other = save("trained", 1), save("other", 2, dtype=torch.bfloat16)
    extract_motion(trained, tmp_path / "motion.safetensors")
    lines = insert_motion(tmp_path / "motion.safetensors", other, tmp_path / "new")
    assert any("were converted to the dtype" in line for line in lines)
    assert {tensor.dtype for tensor in weights(tmp_path / "new").values()} == {torch.bfloat16}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_separate_file_of_v1(prefix: str, save: Save, tmp_path: Path) -> None:
    """V1's file: every tensor of a checkpoint whose name holds "temporal", no metadata."""
    trained, other = save("trained", 1), save("other", 2)
    file = {prefix + name: tensor for name, tensor in weights(trained).items() if "temporal" in name}
    save_file(file, tmp_path / "easyanimate_v1_mm.safetensors")
    lines = insert_motion(tmp_path / "easyanimate_v1_mm.safetensors", other, tmp_path / "new")
    assert f"{len(file)} tensors of 4 blocks matched" in lines[0]
    have, theirs = weights(tmp_path / "new"), weights(trained)
    assert all(torch.equal(have[name], theirs[name]) for name in motion_names(have))


def test_into_a_network_that_is_to_be_trained(save: Save, make_model: Any, tmp_path: Path) -> None:
    trained = save("trained", 1)
    extract_motion(trained, tmp_path / "motion.safetensors")
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_motion(model, tmp_path / "motion.safetensors", dry_run=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    report = load_motion(model, tmp_path / "motion.safetensors")
    theirs = weights(trained)
    for name, value in model.state_dict().items():
        assert torch.equal(value, (theirs if name in report.matched else before)[name]), name
    with pytest.raises(
        ValueError, match=r"`init\.motion` .* trained with other settings .* block_size, motion_module_type"
    ):
        load_motion(make_model(**GRID), tmp_path / "motion.safetensors")


def _drop(path: Path, keep: Callable[[str], bool]) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({n: t for n, t in load_file(path).items() if keep(n)}, path, metadata=metadata)


ONE_ATTENTION = {**MOTION, "attention_block_types": ["Temporal_Self"]}
NORM = "blocks.1.attn_temporal.temporal_transformer.norm"


@pytest.mark.parametrize(
    ("spoil", "config", "expected"),
    [
        (None, {"num_layers": 6}, "has motion modules of 4 blocks, the model has 6; take those of a model"),
        (None, {"attention_head_dim": 16}, "stay the model's, 104 of another shape; first"),
        (None, {"motion_module_kwargs": ONE_ATTENTION}, "no place for, first"),
        (
            lambda p: _drop(p, lambda n: NORM not in n),
            {},
            "is not whole: 110 tensors of 4 blocks matched, 2 missing",
        ),
        (lambda p: _drop(p, lambda n: False), {}, "holds no motion modules, first tensor is 'none'"),
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), {}, "is damaged"),
        (lambda p: p.unlink(), {}, "must be a safetensors file"),
        (lambda p: save_file(load_file(p), p, metadata={"ea.motion": "[]"}), {}, "its settings are damaged"),
    ],
)
def test_what_does_not_fit_writes_nothing(
    spoil: Any, config: dict[str, Any], expected: str, save: Save, tmp_path: Path
) -> None:
    trained, other = save("trained", 1), save("other", 2, **config)
    path = tmp_path / "motion.safetensors"
    extract_motion(trained, path)
    if spoil is not None:
        spoil(path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError) as caught:
        insert_motion(path, other, tmp_path / "new")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_cut_write_leaves_nothing(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, other = save("trained", 1), save("other", 2)
    path = tmp_path / "motion.safetensors"

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    extract_motion(trained, path)
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr("ea_dit.motion_files.save_file", full)
    with pytest.raises(UserError, match="new' cannot be written: No space left on device; make room"):
        insert_motion(path, other, tmp_path / "new")
    with pytest.raises(UserError, match="cannot be written: No space left on device; make room"):
        extract_motion(trained, tmp_path / "second.safetensors")
    assert sorted(os.listdir(tmp_path)) == before


def test_nothing_is_replaced(save: Save, tmp_path: Path) -> None:
    trained = save("trained", 1)
    path = tmp_path / "motion.safetensors"
    extract_motion(trained, path)
    with pytest.raises(ValueError, match="exists already"):
        extract_motion(trained, path)
    with pytest.raises(ValueError, match=r"must be a \.safetensors file"):
        extract_motion(trained, tmp_path / "motion.pt")
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        insert_motion(path, trained, trained)
    with pytest.raises(ValueError, match="must be outside the model folder"):
        insert_motion(path, trained, trained / "new")


def test_other_tensors_than_motion_modules_are_reported() -> None:
    place = {"transformer_blocks.0.attn_temporal.x": (2,)}
    report = match_motion({**place, "temporal_extra": (1,)}, place, "file")
    assert report.unused == ("temporal_extra",)
    assert report.line == "1 tensors of 1 blocks matched, 1 ignored, no motion modules"
    with pytest.raises(ValueError, match="the model has no motion modules"):
        match_motion(place, {"a": (1,)}, "file")


def test_the_commands(save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ea_runtime.cli.main import run

    trained, other = save("trained", 1), save("other", 2, in_model=True)
    motion, new = str(tmp_path / "motion.safetensors"), str(tmp_path / "new")
    assert run(["models", "extract-motion", str(trained), "-o", motion]) == 0
    assert run(["models", "insert-motion", motion, str(other), "-o", new]) == 0
    assert "tensors of 4 blocks matched" in capsys.readouterr().out
    assert run(["models", "insert-motion", motion, str(other), "-o", new]) == 2
    assert capsys.readouterr().err.startswith("error: `--output` must be a new or empty folder")
