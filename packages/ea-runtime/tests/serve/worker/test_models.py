from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ea_runtime.generation.requests import ModelRequest
from ea_runtime.serve.catalogue import Catalogue
from ea_runtime.serve.worker import models as module
from ea_runtime.serve.worker.models import Models

REQUEST = ModelRequest(num_frames=9, height=64, width=64, guidance_scale=2.0)


@pytest.fixture
def three(tmp_path: Path) -> Catalogue:
    """Three models, as files."""
    pytest.importorskip("ea_vae")
    pytest.importorskip("ea_dit")
    from ea_runtime.models.layout import bundled_folder

    for name in "abc":
        shutil.copytree(bundled_folder("tiny"), tmp_path / name)
    return Catalogue([tmp_path])


def names(models: Models) -> list[str]:
    return [Path(folder).name for folder in models.folders]


def test_models_stay_while_they_fit_and_the_oldest_goes_first(three: Catalogue) -> None:
    free = 1 << 40
    models = Models("cpu", free=lambda device: free)
    first, seconds = models.get(three.model("a"), REQUEST)
    assert seconds > 0
    models.get(three.model("b"), REQUEST)
    again, seconds = models.get(three.model("a"), REQUEST)
    assert (again is first, seconds) == (True, 0.0)
    assert names(models) == ["b", "a"]
    free = 0  # from now on nothing fits next to another
    models.get(three.model("c"), REQUEST)
    assert names(models) == ["c"]


def test_a_loaded_model_needs_no_room_for_its_weights(three: Catalogue) -> None:
    asked: list[bool] = []
    models = Models("cpu")
    real = models._needed

    def needed(folder: Path, request: ModelRequest, *, with_weights: bool, offload: str) -> int:
        assert offload == "none"
        asked.append(with_weights)
        assert real(folder, request, with_weights=True) - real(folder, request, with_weights=False) > 1 << 20
        return real(folder, request, with_weights=with_weights)

    models._needed = needed
    models.get(three.model("a"), REQUEST)
    models.get(three.model("a"), REQUEST)
    assert asked == [True, False]


def test_a_long_video_needs_the_room_of_a_window_and_a_picture_encoder_its_own(three: Catalogue) -> None:
    models, folder = Models("cpu"), Path(three.model("a").folder)
    long, whole = (replace(REQUEST, num_frames=n, window=w) for n, w in ((720, 18), (720, 720)))
    needed = models._needed(folder, replace(REQUEST, num_frames=18), with_weights=True)
    assert models._needed(folder, long, with_weights=True) == needed
    assert models._needed(folder, whole, with_weights=True) > needed
    (folder / "image_encoder").mkdir()
    save_file({"weight": torch.zeros(1 << 20)}, folder / "image_encoder" / "model.safetensors")
    assert models._needed(folder, replace(REQUEST, num_frames=18), with_weights=True) == pytest.approx(
        needed + 1.1 * 4 * (1 << 20), abs=2
    )


def test_a_changed_model_is_loaded_again(three: Catalogue) -> None:
    models = Models("cpu")
    first, _ = models.get(three.model("a"), REQUEST)
    before = first.sha256()
    config = Path(three.model("a").folder) / "vae" / "config.json"
    config.write_text(config.read_text() + "\n")
    second, seconds = models.get(three.model("a"), REQUEST)
    assert second is not first
    assert seconds > 0
    assert second.sha256() != before


def test_all_others_can_be_dropped(three: Catalogue) -> None:
    models = Models("cpu")
    for name in "ab":
        models.get(three.model(name), REQUEST)
    assert models.drop_others(three.model("a"))
    assert names(models) == ["a"]
    assert not models.drop_others(three.model("a"))
    models.drop(three.model("a").folder)
    assert names(models) == []


def test_memory_that_is_free_is_counted() -> None:
    assert module.free_bytes(torch.device("cpu")) > 1 << 20
