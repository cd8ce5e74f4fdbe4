"""`clip-aesthetic` on a tiny CLIP with random weights: the adapter's sum, done again by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ea_data.protocols import Frames
from ea_data.score.aesthetic import ClipAestheticOptions, ClipAestheticScorer, prepare, read_head
from ea_runtime.errors import UserError

WIDTH = 24


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=WIDTH,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def save_head(path: Path, sizes: list[int], names: list[str]) -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Sequential(*(nn.Linear(i, o) for i, o in itertools.pairwise(sizes)))
    state = {}
    for name, layer in zip(names, layers, strict=True):
        state |= {f"{name}weight": layer.weight.detach().clone(), f"{name}bias": layer.bias.detach().clone()}
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    return layers


FORMS = {
    "one layer": ([WIDTH, 1], [""], "head.safetensors"),
    # as sac+logos+ava1-l14-linearMSE.pth: the dropouts between have numbers and no weights
    "five layers": ([WIDTH, 12, 8, 6, 4, 1], [f"layers.{n}." for n in (0, 2, 4, 6, 7)], "head.pth"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_score_is_the_head_on_the_normed_embedding(clip: Path, tmp_path: Path, form: str) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    sizes, names, file = FORMS[form]
    head = save_head(tmp_path / file, sizes, names)
    frames = np.random.default_rng(0).integers(0, 256, (3, 48, 80, 3)).astype(np.uint8)
    scorer = ClipAestheticScorer(ClipAestheticOptions(clip=str(clip), head=str(tmp_path / file)))
    assert scorer.missing() == []
    score = scorer(Frames(frames, np.arange(3.0)), {})

    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = processor([Image.fromarray(frame) for frame in frames], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        embeds = CLIPVisionModelWithProjection.from_pretrained(clip).eval()(pixels).image_embeds
        expected = head(nn.functional.normalize(embeds))[:, 0].tolist()
    assert score.values == pytest.approx(expected, abs=1e-5)
    assert score.value == pytest.approx(np.mean(expected), abs=1e-5)


@pytest.mark.parametrize("size", [(48, 80), (80, 48), (33, 32), (20, 20)])
def test_frames_are_prepared_as_transformers_does(size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessor

    frame = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = processor(Image.fromarray(frame), return_tensors="np")["pixel_values"][0]
    mean, std = processor.image_mean, processor.image_std
    assert np.abs(prepare(frame, 32, tuple(mean), tuple(std)) - expected).max() < 1e-5


def test_the_folder_s_own_normalisation_is_used(clip: Path, tmp_path: Path) -> None:
    save_head(tmp_path / "head.pth", [WIDTH, 1], [""])
    frames = Frames(np.full((1, 32, 32, 3), 200, np.uint8), np.zeros(1))
    options = ClipAestheticOptions(clip=str(clip), head=str(tmp_path / "head.pth"))
    plain = ClipAestheticScorer(options)(frames, {}).value
    file = clip / "preprocessor_config.json"
    try:
        file.write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}))
        assert ClipAestheticScorer(options)(frames, {}).value != plain
        file.write_text(json.dumps({"image_mean": [0.5]}))
        with pytest.raises(UserError, match="must be three numbers"):
            ClipAestheticScorer(options)(frames, {})
    finally:
        file.unlink()


def test_each_missing_path_has_its_line() -> None:
    lines = ClipAestheticScorer(ClipAestheticOptions(head="/no/head.pth")).missing()
    assert len(lines) == 2
    assert "`clip` is not set" in lines[0]
    assert "'/no/head.pth'" in lines[1]


def test_a_head_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_head(tmp_path / "head.pth", [WIDTH, 4, 1], ["0.", "1."])
    assert read_head(tmp_path / "head.pth", WIDTH)(torch.zeros(2, WIDTH)).shape == (2, 1)
    with pytest.raises(UserError, match=r"from 768 \(this CLIP's width\) to 1, got layers 24x4 -> 4x1"):
        read_head(tmp_path / "head.pth", 768)
    save_file({"conv.weight": torch.zeros(1, 2, 3), "conv.bias": torch.zeros(1)}, tmp_path / "no.safetensors")
    with pytest.raises(UserError, match="must hold linear layers alone"):
        read_head(tmp_path / "no.safetensors", WIDTH)


def test_a_folder_that_is_no_clip_is_one_line(tmp_path: Path) -> None:
    save_head(tmp_path / "head.pth", [WIDTH, 1], [""])
    options = ClipAestheticOptions(clip=str(tmp_path), head=str(tmp_path / "head.pth"))
    with pytest.raises(UserError, match="cannot be loaded as CLIP"):
        ClipAestheticScorer(options)(Frames(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1)), {})
