"""Metrics with networks, on small random ones: the adapters' sums, done again by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ea_runtime.errors import UserError
from ea_runtime.evaluation.clip import Clip
from ea_runtime.evaluation.metric import evenly
from ea_runtime.evaluation.metrics.clip_score import ClipScore, ClipScoreOptions
from ea_runtime.evaluation.metrics.frechet import Fvd, FvdOptions, frechet
from ea_runtime.evaluation.metrics.vbench import VBench, VBenchOptions
from ea_runtime.settings import validate
from ea_runtime.video.clip_pictures import prepare

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noise(seed: int, num_frames: int = 6, prompt: str | None = "red circle") -> Clip:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, 24, 40, 3), np.uint8)
    record = {} if prompt is None else {"settings": {"prompt": prompt}}
    return Clip(f"{seed}.mp4", frames, Path(f"{seed}.mp4"), record)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CLIP with a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    small: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    words = {"[UNK]": 0, "red": 1, "blue": 2, "circle": 3, "[END]": 4}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=small
        | {
            "vocab_size": 8,
            "max_position_embeddings": 8,
            "eos_token_id": 4,
            "bos_token_id": 0,
            "pad_token_id": 0,
        },
        vision_config=small | {"image_size": 16, "patch_size": 8},
        projection_dim=24,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    return folder


def test_the_clip_score_is_the_mean_cosine(clip_folder: Path) -> None:
    from transformers import CLIPModel

    clip, metric = noise(1), ClipScore(ClipScoreOptions(clip=str(clip_folder), frames=3))
    score = metric(clip)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    frames = np.stack([prepare(clip.frames[i], 16, MEAN, STD) for i in (1, 3, 5)])
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([[1, 3]]), pixel_values=torch.from_numpy(frames))
    cosines = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
    assert score == pytest.approx(100 * float(cosines.clamp(min=0).mean()), rel=1e-4, abs=1e-4)
    assert score != metric(noise(1, prompt="blue circle"))  # the twin: the prompt counts
    assert metric(noise(1, prompt=None)) is None
    assert metric(noise(1, prompt="red circle " * 50)) is not None  # longer than the model takes


def test_a_folder_that_is_no_clip_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clip-score: .* is not the folder of a CLIP model"):
        ClipScore(ClipScoreOptions(clip=str(tmp_path)))(noise(1))


def test_frames_are_spread_evenly() -> None:
    assert list(evenly(8, 4)) == [1, 3, 5, 7]
    assert list(evenly(2, 4)) == [0, 1]


class _Network(torch.nn.Module):
    """Means over time and space, as a network with I3D's arguments."""

    def forward(self, x: torch.Tensor, rescale: bool = True, return_features: bool = False) -> torch.Tensor:
        if rescale or not return_features:
            raise RuntimeError("frames are scaled already")
        return x.mean((2, 3, 4))


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "features.pt"
    torch.jit.script(_Network()).save(str(path))
    return path


def test_fvd_of_features_of_a_torchscript_file(network: Path) -> None:
    metric = Fvd(FvdOptions(network=str(network), frames=4, size=8))
    features = metric.features(noise(1))
    expected = noise(1).frames[:4].astype(np.float64).mean((0, 1, 2)) / 127.5 - 1
    assert features == pytest.approx(expected, abs=0.02)  # scaling to 8x8 keeps the mean
    sets = [np.stack([metric.features(noise(seed)) for seed in seeds]) for seeds in (range(4), range(4, 8))]
    assert metric.distance(sets[0], sets[0]) == pytest.approx(0, abs=1e-9)
    assert metric.distance(*sets) > 1e-6
    with pytest.raises(UserError, match=r"it has 3 frames, 4 are compared; set fvd\.frames"):
        metric.features(noise(1, num_frames=3))
    with pytest.raises(UserError, match="two videos or more in each folder, got 4 and 1"):
        metric.distance(sets[0], sets[1][:1])


def test_the_frechet_distance_of_known_gaussians() -> None:
    """Of equal covariances it is the squared distance of the means; of one dimension, (m1 - m2)² + (s1 - s2)²."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=(50, 4))
    assert frechet(one, one + np.array([3, 0, 4, 0])) == pytest.approx(25)
    line = np.array([[0.0], [2.0]])
    assert frechet(line, 3 * line + 1) == pytest.approx((4 - 1) ** 2 + (3 - 1) ** 2 * 2)


def test_a_file_that_is_no_network_is_one_line(tmp_path: Path, network: Path) -> None:
    path = tmp_path / "none.pt"
    path.write_bytes(b"none")
    with pytest.raises(UserError, match=r"fvd: '.*none\.pt' is not a TorchScript file"):
        Fvd(FvdOptions(network=str(path), frames=4)).features(noise(1))


def test_vbench_is_run_once_and_its_values_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the shape of VBench 0.1.5; the package itself is not installed here."""
    calls = []

    class Fake:
        def __init__(self, device: Any, full_info: str, output: str) -> None:
            self.output = Path(output)
            self.output.mkdir()

        def evaluate(self, **asked: Any) -> None:
            calls.append(asked)
            videos = sorted(Path(asked["videos_path"]).iterdir())
            assert [video.name for video in videos] == list(asked["prompt_list"])
            rows = [{"video_path": str(one), "video_results": 0.5 + n} for n, one in enumerate(videos)]
            found = {name: [0.5, rows] for name in asked["dimension_list"]}
            (self.output / f"{asked['name']}_eval_results.json").write_text(json.dumps(found))

    module = ModuleType("vbench")
    module.VBench = Fake  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "vbench", module)
    metric = VBench(VBenchOptions(dimensions=("dynamic_degree",), device="cpu"))
    paths = [tmp_path / f"{name}.mp4" for name in "ab"]
    for path in paths:
        path.write_bytes(b"")
    metric.prepare([*paths, tmp_path / "c.webm"], ["red", None, "blue"])
    assert [metric(Clip(path.name, noise(1).frames, path)) for path in paths] == [
        {"dynamic_degree": 0.5},
        {"dynamic_degree": 1.5},
    ]
    assert [list(call["prompt_list"].values()) for call in calls] == [["red", ""]]
    assert calls[0]["mode"] == "custom_input"
    with pytest.raises(UserError, match=r"it judges \.mp4 and \.gif only, got 'c\.webm'"):
        metric(Clip("c", noise(1).frames, tmp_path / "c.webm"))
    with pytest.raises(
        UserError, match=r"no 'dynamic' of videos of any prompt; did you mean 'dynamic_degree'"
    ):
        validate(VBenchOptions, {"dimensions": ["dynamic"]}, "metric 'vbench'")
