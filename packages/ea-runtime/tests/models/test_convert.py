"""Pickles become safetensors in a child process, completely or not at all; a hostile one has no effect."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ea_runtime.errors import UserError
from ea_runtime.models import convert as convert_module
from ea_runtime.models.convert import convert_file, convert_folder
from ea_runtime.models.convert_child import RefusedError, convert, take_tensors
from ea_runtime.models.loading import load_parts

FILES = {
    "vae": "diffusion_pytorch_model.safetensors",
    "transformer": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


class Payload:
    """Unpickling it runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def make_pickled(folder: Path, part: str, name: str, wrap: str | None = None) -> dict[str, torch.Tensor]:
    """Replaces a part's safetensors with a pickle called `name`; returns its tensors."""
    path = folder / part / FILES[part]
    tensors = load_file(path)
    torch.save({wrap: tensors, "global_step": 7} if wrap else tensors, folder / part / name)
    path.unlink()
    return tensors


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads pickles in the tests' process, for tests of what becomes of the files: a child imports torch."""

    def run_child(pairs: list[tuple[Path, Path]]) -> list[dict[str, Any]]:
        return [convert(source, target, max_bytes=1 << 24) for source, target in pairs]

    monkeypatch.setattr(convert_module, "_run_child", run_child)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_folder_of_pickles_loads_after_conversion(model_folder: Path) -> None:
    originals = {
        "vae": make_pickled(model_folder, "vae", "last.ckpt", wrap="state_dict"),
        "transformer": make_pickled(model_folder, "transformer", "diffusion_pytorch_model.bin"),
        "text_encoder": make_pickled(model_folder, "text_encoder", "pytorch_model.bin"),
    }
    before = files_of(model_folder)
    written = convert_folder(model_folder)
    assert files_of(model_folder) - before == {f"{part}/{name}" for part, name in FILES.items()}
    assert before <= files_of(model_folder), "the originals stay"
    assert written[0].skipped == ()
    for part, tensors in originals.items():
        got = load_file(model_folder / part / FILES[part])
        assert got.keys() == tensors.keys()
        assert all(torch.equal(got[name], tensors[name]) for name in tensors)
    assert load_parts(model_folder).text is not None
    assert convert_folder(model_folder) == [], "nothing is left to do"


@pytest.mark.usefixtures("in_this_process")
def test_a_new_folder_gets_a_complete_copy(model_folder: Path, tmp_path: Path) -> None:
    make_pickled(model_folder, "vae", "diffusion_pytorch_model.bin")
    before = files_of(model_folder)
    out = tmp_path / "deep" / "converted"
    written = convert_folder(model_folder, out)
    assert [item.target for item in written] == [out / "vae" / FILES["vae"]]
    assert files_of(model_folder) == before
    assert not any(name.endswith(".bin") for name in files_of(out))
    assert load_parts(out).vae is not None
    with pytest.raises(UserError, match="must be a new or empty folder"):
        convert_folder(model_folder, out)
    with pytest.raises(UserError, match="must be outside"):
        convert_folder(model_folder, model_folder / "inner")


@pytest.mark.usefixtures("in_this_process")
def test_shards_with_an_index(model_folder: Path) -> None:
    tensors = make_pickled(model_folder, "text_encoder", "unused.bin")
    (model_folder / "text_encoder/unused.bin").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save(OrderedDict((name, tensors[name]) for name in part), model_folder / "text_encoder" / file)
        weight_map |= dict.fromkeys(part, file)
    index = model_folder / "text_encoder/pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    convert_folder(model_folder)
    new = json.loads((model_folder / "text_encoder/model.safetensors.index.json").read_text())
    assert set(new["weight_map"].values()) == {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    assert load_parts(model_folder).text is not None
    for bad in ("/etc/passwd", "../x.bin", "absent.bin", "x.safetensors"):
        for file in (model_folder / "text_encoder").glob("*.safetensors*"):
            file.unlink()
        index.write_text(json.dumps({"weight_map": {"a": bad}}))
        with pytest.raises(UserError, match="must name weight files next to it"):
            convert_folder(model_folder)


@pytest.mark.usefixtures("in_this_process")
def test_one_file_that_holds_a_whole_transformer(model_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(model_folder / "transformer" / FILES["transformer"])
    source = tmp_path / "easyanimate_v1.ckpt"
    state = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"state_dict": {**state, "epoch": 3}, "optimizer": {"lr": 0.1}}, source)
    (model_folder / "transformer" / FILES["transformer"]).unlink()
    done = convert_file(source, model_folder / "transformer")
    assert done.skipped == ("epoch",)
    assert done.target == model_folder / "transformer" / FILES["transformer"]
    assert load_parts(model_folder).denoiser is not None
    assert convert_file(source).target == tmp_path / "easyanimate_v1.safetensors"
    with pytest.raises(UserError, match="exists already"):
        convert_file(source)
    with pytest.raises(UserError, match="must be a pickled weight file"):
        convert_file(tmp_path / "easyanimate_v1.safetensors")
    with pytest.raises(UserError, match="there is no file"):
        convert_file(tmp_path / "absent.bin")


def test_shared_sliced_and_odd_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "a": base,
        "same": base,
        "slice": base[1:3],
        "transposed": base.t(),
        "expanded": base[:1].expand(3, 6),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "flags": base > 3,
        "long": base.long(),
        "parameter": torch.nn.Parameter(base),
    }
    torch.save(tensors, tmp_path / "x.bin")
    report = convert(tmp_path / "x.bin", tmp_path / "x.safetensors", max_bytes=1 << 20)
    got = load_file(tmp_path / "x.safetensors")
    assert report["tensors"] == len(tensors)
    assert all(
        torch.equal(got[name], tensors[name]) and got[name].dtype == tensors[name].dtype for name in tensors
    )
    # a file written by the library itself for the same tensors reads back the same
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, tmp_path / "y"
    )
    assert all(torch.equal(got[name], tensor) for name, tensor in load_file(tmp_path / "y").items())


def test_files_of_old_torch(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    report = convert(tmp_path / "old.pth", tmp_path / "x.safetensors", max_bytes=1 << 20)
    assert report["tensors"] == 1


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_hostile_pickle_has_no_effect(model_folder: Path, tmp_path: Path, as_zip: bool) -> None:
    make_pickled(model_folder, "vae", "diffusion_pytorch_model.bin")
    owned = tmp_path / "owned"
    payload = {"w": Payload(f"touch {owned}")}
    path = model_folder / "vae/diffusion_pytorch_model.bin"
    if as_zip:
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload))
    before = files_of(model_folder)
    with pytest.raises(UserError, match="was not converted") as caught:
        convert_folder(model_folder)
    assert str(caught.value).isprintable()
    assert not owned.exists()
    assert files_of(model_folder) == before, "nothing half-written stays"
    # the twin: the usual loading of the same file
    if as_zip:
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert owned.exists()


def test_a_part_that_fails_leaves_nothing_of_the_others(model_folder: Path, tmp_path: Path) -> None:
    make_pickled(model_folder, "vae", "diffusion_pytorch_model.bin")
    make_pickled(model_folder, "transformer", "diffusion_pytorch_model.bin")
    (model_folder / "transformer/diffusion_pytorch_model.bin").write_bytes(b"not a pickle")
    before = files_of(model_folder)
    with pytest.raises(UserError, match="transformer"):
        convert_folder(model_folder)
    assert files_of(model_folder) == before
    with pytest.raises(UserError, match="transformer"):
        convert_folder(model_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_a_module_in_the_working_folder_is_not_imported(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_pickled(model_folder, "vae", "diffusion_pytorch_model.bin")
    for name in ("torch.py", "json.py", "safetensors.py"):
        (model_folder / "vae" / name).write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\nraise SystemExit")
    monkeypatch.chdir(model_folder / "vae")
    assert len(convert_folder(model_folder)) == 1
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.ones(1)], "holds a list"),
        ({}, "no tensors by name"),
        ({"epoch": 1}, "no tensors by name"),
        ({"state_dict": {"state_dict": {}}}, "no tensors by name"),
    ],
)
def test_files_without_weights(content: Any, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        take_tensors(content)


def test_bounds_and_kinds_that_cannot_be_written(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(1 << 40)}, tmp_path / "bomb.bin")
    with pytest.raises(RefusedError, match="would take"):
        convert(tmp_path / "bomb.bin", tmp_path / "x", max_bytes=1 << 20)
    torch.save({"w": torch.ones(3).to_sparse()}, tmp_path / "sparse.bin")
    with pytest.raises(RefusedError, match="cannot hold"):
        convert(tmp_path / "sparse.bin", tmp_path / "y", max_bytes=1 << 20)
    torch.save({"w": torch.ones(3, dtype=torch.complex64)}, tmp_path / "complex.bin")
    with pytest.raises(RefusedError, match="cannot hold"):
        convert(tmp_path / "complex.bin", tmp_path / "z", max_bytes=1 << 20)


def test_several_candidates_are_named(model_folder: Path) -> None:
    make_pickled(model_folder, "vae", "step-100.ckpt")
    shutil.copy(model_folder / "vae/step-100.ckpt", model_folder / "vae/step-200.ckpt")
    with pytest.raises(UserError, match=r"several weight files .*'step-100.ckpt', 'step-200.ckpt'"):
        convert_folder(model_folder)


def test_a_child_that_hangs_is_stopped(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pickled(model_folder, "vae", "diffusion_pytorch_model.bin")

    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    before = files_of(model_folder)
    with pytest.raises(UserError, match="took more than 120 s and was stopped"):
        convert_folder(model_folder)
    assert files_of(model_folder) == before
