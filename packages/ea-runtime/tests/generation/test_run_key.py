"""The key of a saved run: all that determines the bits of a video changes it, and nothing else does."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ea_runtime.files.hashes import file_hash
from ea_runtime.generation.run_key import run_key

RECORD: dict[str, Any] = {
    "settings": {"prompt": "a circle", "seed": 1, "image": "cat.png"},
    "inputs": {"image": "c" * 64},
    "device": {"device": "cpu", "dtype": "float32", "threads": 2},
    "loras": [{"file": "a.safetensors", "sha256": "b" * 64, "weight": 0.5, "summary": "x"}],
    "engine": {"name": "onnx"},
}
VERSIONS = {"torch": "2"}


def pipe(kind: str = "cpu", engine: Any = None, **tiling: Any) -> Any:
    vae = SimpleNamespace(use_tiling=True, tile_sample_min_size=64, tile_overlap_factor=0.25)
    return SimpleNamespace(
        device=torch.device(kind), engine=engine, vae=SimpleNamespace(**vars(vae) | tiling)
    )


def key(
    record: Any = RECORD, made_by: Any = None, versions: Any = VERSIONS, model: str = "m"
) -> dict[str, Any]:
    return run_key(made_by or pipe(), record, versions, lambda: model)()


def changed(part: str, **values: Any) -> dict[str, Any]:
    return {**RECORD, part: {**RECORD[part], **values}}


def test_a_key_holds_all_that_determines_the_bits() -> None:
    assert key() == {
        "settings": {"prompt": "a circle", "seed": 1},
        "inputs": {"image": "c" * 64},
        "device": {"device": "cpu", "dtype": "float32", "threads": 2},
        "loras": [["b" * 64, 0.5]],
        "engine": "onnx",
        "bundle": None,
        "tiling": {"use_tiling": True, "tile_sample_min_size": 64, "tile_overlap_factor": 0.25},
        "versions": {"torch": "2"},
        "model": "m",
    }
    least = {"settings": {}, "device": {"device": "cpu", "dtype": "float32"}}
    bare = key(least, SimpleNamespace(device=torch.device("cpu"), engine=None, vae=None))
    assert (bare["inputs"], bare["loras"], bare["engine"], bare["bundle"]) == ({}, [], "torch", None)
    assert set(bare["tiling"].values()) == {None}


def test_names_and_places_of_files_are_not_in_it() -> None:
    moved = changed("settings", image="/elsewhere/dog.png", video="x", mask="y", image_end="z")
    moved["loras"] = [{**RECORD["loras"][0], "file": "/elsewhere/b.safetensors"}]
    before = copy.deepcopy(moved)
    assert key(moved) == key()
    assert moved == before  # a record is read, not changed


@pytest.mark.parametrize(
    "other",
    [
        {"record": changed("settings", seed=2)},
        {"record": changed("settings", more=1)},
        {"record": changed("inputs", image="d" * 64)},
        {"record": changed("device", threads=3)},
        {"record": changed("device", dtype="bfloat16")},
        {"record": {**RECORD, "loras": []}},
        {"record": {**RECORD, "loras": [{**RECORD["loras"][0], "weight": 1.0}]}},
        {"record": {**RECORD, "loras": [{**RECORD["loras"][0], "sha256": "d" * 64}]}},
        {"record": changed("engine", name="trt")},
        {"made_by": pipe(use_tiling=False)},
        {"made_by": pipe(tile_sample_min_size=32)},
        {"made_by": pipe(tile_overlap_factor=0.5)},
        {"versions": {"torch": "3"}},
        {"model": "n"},
    ],
)
def test_anything_else_changes_it(other: dict[str, Any]) -> None:
    assert key(**other) != key()


def test_a_device_counts_by_its_name_not_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a card of {device.type}")
    record = changed("device", device="cuda:1")
    assert key(record, pipe("cuda:1"))["device"] == {
        "device": "cuda",
        "dtype": "float32",
        "name": "a card of cuda",
    }
    assert key(record, pipe("cuda:1")) == key(changed("device", device="cuda:0"), pipe("cuda:0"))
    # an engine's device is its bundle's business, and threads are the processor's
    assert key(record, pipe("cuda:1", engine=object()))["device"] == {"device": "cuda", "dtype": "float32"}
    assert key(record, pipe("mps"))["device"] == {"device": "mps", "dtype": "float32"}


def test_a_bundle_counts_by_its_records(tmp_path: Path) -> None:
    for name, text in (("manifest.json", "a"), ("ea-bundle.json", "b"), ("dit.engine", "c")):
        (tmp_path / name).write_text(text)
    record = changed("engine", bundle=str(tmp_path))
    first = key(record)["bundle"]
    assert isinstance(first, str)
    assert len(first) == 64
    assert first != file_hash(tmp_path / "manifest.json")
    (tmp_path / "dit.engine").write_text("other")  # its hash is in the manifest
    assert key(record)["bundle"] == first
    for name in ("manifest.json", "ea-bundle.json"):
        (tmp_path / name).write_text("other")
        assert key(record)["bundle"] not in (first, None)
        first = key(record)["bundle"]


def test_the_model_is_hashed_when_the_key_is_wanted() -> None:
    asked = []

    def sha256() -> str:
        asked.append(1)
        return "m"

    record = copy.deepcopy(RECORD)
    made = run_key(pipe(), record, VERSIONS, sha256)
    assert not asked
    record["settings"]["seed"] = 7  # the key is of then
    assert made() == key()
    assert asked == [1]
