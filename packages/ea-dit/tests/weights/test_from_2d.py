"""Picture transformers built by diffusers, and the 3-D models that start from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel, Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ea_dit import Transformer3DModel
from ea_dit.weights.from_2d import map_config

PICTURE: dict[str, Any] = {"num_attention_heads": 4, "attention_head_dim": 24, "num_layers": 4}
PICTURE |= {"in_channels": 4, "out_channels": 8, "sample_size": 16, "patch_size": 2}
PICTURE |= {"cross_attention_dim": 96, "caption_channels": 20, "attention_bias": True}
PICTURE |= {"norm_type": "ada_norm_single", "norm_elementwise_affine": False, "norm_eps": 1e-6}
PICTURE |= {"activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000}
SMALL_MOTION = {"num_attention_heads": 4, "temporal_position_encoding_max_len": 8}
#: Largest relative difference of the outputs. Not zero: the same sums in another order.
TOLERANCE = 1e-6
Save = Callable[..., tuple[Any, Path]]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """save(cls, **config): a random picture model and the folder where diffusers saved it."""

    def make(cls: Any = PixArtTransformer2DModel, **config: Any) -> tuple[Any, Path]:
        model = cls(**{**PICTURE, **config})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.1)
        folder = tmp_path / "picture"
        model.save_pretrained(folder)
        return model.eval(), folder

    return make


def outputs(
    picture: Any, video: Transformer3DModel, size: tuple[int, int], frames: int
) -> tuple[Tensor, Tensor]:
    """(B, 2C, T, H, W) of the picture model, frame by frame, and of the 3-D model."""
    latents = torch.randn(2, 4, frames, *size)
    text, timestep = torch.randn(2, 7, 20), torch.tensor([3, 700])
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, 4:] = 0
    sizes = {"resolution": None, "aspect_ratio": None}
    if video.cfg.has_size_conditions:
        height, width = size
        sizes = {
            "resolution": torch.tensor([[height * 8.0, width * 8.0]] * 2),
            "aspect_ratio": torch.tensor([[height / width]] * 2),
        }
    with torch.no_grad():
        one_by_one = [
            picture(
                latents[:, :, t],
                encoder_hidden_states=text,
                timestep=timestep,
                encoder_attention_mask=mask,
                added_cond_kwargs=sizes,
            ).sample
            for t in range(frames)
        ]
        together = video(latents, timestep, text, mask, sizes).sample
    return torch.stack(one_by_one, dim=2), together


@pytest.mark.parametrize("cls", [Transformer2DModel, PixArtTransformer2DModel])
@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({}, (16, 16)),
        ({}, (8, 12)),  # positions are interpolated
        ({"sample_size": 64}, (12, 8)),
        ({"sample_size": 128}, (16, 16)),  # positions at half the spacing, and size conditions
        ({"sample_size": 128}, (8, 20)),
        ({"sample_size": 64, "interpolation_scale": 1}, (8, 8)),
        ({"sample_size": 256, "interpolation_scale": 4}, (8, 8)),
        ({"norm_elementwise_affine": True, "norm_eps": 1e-5}, (8, 8)),
        ({"caption_channels": None, "cross_attention_dim": 20}, (8, 8)),
    ],
)
def test_each_frame_is_the_picture_models(
    cls: Any, config: dict[str, Any], size: tuple[int, int], save: Save
) -> None:
    picture, folder = save(cls, **config)
    video, report = Transformer3DModel.from_pretrained_2d(
        folder, output_loading_info=True, motion_module_kwargs=SMALL_MOTION
    )
    assert not video.training
    expected, ours = outputs(picture, video, size, frames=3)
    assert float((ours - expected).norm() / expected.norm()) < TOLERANCE
    assert set(report.matched) == set(picture.state_dict())
    assert not report.mismatched
    assert not report.unused
    assert all(".attn_temporal." in name or name.startswith("long_connect_fc.") for name in report.fresh)
    assert f"{len(report.matched)} tensors of the picture model taken over" in report.lines[0]


@pytest.mark.parametrize(
    "overrides",
    [
        {"enable_uvit": False},
        {"motion_module_type": "VanillaGrid", "motion_module_kwargs": {**SMALL_MOTION, "block_size": 2}},
        # parts that would not start as the identity are made to
        {"motion_module_kwargs": {**SMALL_MOTION, "zero_initialize": False}},
    ],
)
def test_inserts_of_every_kind_change_nothing(overrides: dict[str, Any], save: Save) -> None:
    picture, folder = save()
    video = Transformer3DModel.from_pretrained_2d(folder, **overrides)
    expected, ours = outputs(picture, video, (8, 12), frames=2)
    assert float((ours - expected).norm() / expected.norm()) < TOLERANCE
    for key, value in overrides.items():
        assert video.config[key] == value


def test_a_sigma_model_without_size_conditions_gets_idle_ones(save: Save) -> None:
    picture, folder = save(sample_size=128, use_additional_conditions=False)
    video, report = Transformer3DModel.from_pretrained_2d(
        folder, output_loading_info=True, motion_module_kwargs=SMALL_MOTION
    )
    expected, ours = outputs(picture, video, (8, 8), frames=1)
    assert float((ours - expected).norm() / expected.norm()) < TOLERANCE
    assert any(name.startswith("adaln_single.emb.resolution_embedder") for name in report.fresh)


def test_in_the_transformer_folder_of_a_model_and_in_a_subfolder(save: Save, tmp_path: Path) -> None:
    picture, folder = save()
    (tmp_path / "model").mkdir()
    folder.rename(tmp_path / "model" / "transformer")
    for subfolder in (None, "transformer"):
        video = Transformer3DModel.from_pretrained_2d(
            tmp_path / "model", subfolder, motion_module_kwargs=SMALL_MOTION
        )
        assert torch.equal(video.proj_out.weight, picture.proj_out.weight)


def test_shards(save: Save) -> None:
    picture, folder = save()
    picture.save_pretrained(folder, max_shard_size="100KB")
    (folder / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("*.safetensors"))) > 1
    _, report = Transformer3DModel.from_pretrained_2d(
        folder, output_loading_info=True, motion_module_kwargs=SMALL_MOTION
    )
    assert set(report.matched) == set(picture.state_dict())


def test_half_precision_weights_come_as_float32(save: Save) -> None:
    picture, folder = save()
    picture.half().save_pretrained(folder)
    video = Transformer3DModel.from_pretrained_2d(folder, motion_module_kwargs=SMALL_MOTION)
    assert video.dtype == torch.float32
    assert torch.equal(video.proj_out.weight, picture.proj_out.weight.float())


def test_what_found_no_place_is_told(save: Save, caplog: pytest.LogCaptureFixture) -> None:
    _, folder = save()
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors |= {"y_embedding": torch.zeros(3), "pos_embed.pos_embed": torch.zeros(1, 64, 96)}
    tensors["proj_out.bias"] = torch.zeros(5)
    save_file(tensors, path)
    with caplog.at_level("INFO"):
        _, report = Transformer3DModel.from_pretrained_2d(
            folder, output_loading_info=True, motion_module_kwargs=SMALL_MOTION
        )
    assert report.unused == ("y_embedding",)  # the position table is computed: not worth reporting
    assert report.mismatched == ("proj_out.bias",)
    assert "proj_out.bias" not in report.fresh
    assert "1 of another shape, left fresh: proj_out.bias" in caplog.text
    assert "1 without a place, unused: y_embedding" in caplog.text


WEIGHTS = "diffusion_pytorch_model.safetensors"
OUTSIDE = '{"weight_map": {"a": "../b"}}'


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "overrides", "expected"),
    [
        (lambda f: (f / "config.json").unlink(), {}, "the picture model's folder must hold config.json"),
        (lambda f: (f / "config.json").write_text("[1]"), {}, "must hold a JSON object, got list"),
        (lambda f: (f / "config.json").write_text("{"), {}, "is no valid JSON"),
        (lambda f: _config(f, _class_name="UNet2DModel"), {}, "must be one of Transformer2DModel, Pix"),
        (
            lambda f: _config(f, interpolation_scale=2),
            {},
            "`interpolation_scale` must be 1 for sample_size 16",
        ),
        (lambda f: _config(f, use_additional_conditions=True), {}, "`use_additional_conditions` goes with"),
        (lambda f: _config(f, sample_size=None), {}, "must be a positive integer, the picture"),
        (lambda f: _config(f, norm_type="ada_norm_zero"), {}, "`norm_type` must be 'ada_norm_single'"),
        (lambda f: None, {"enable_uvits": True}, "Transformer3DModel has no key `enable_uvits`"),
        (lambda f: save_file({"x": torch.zeros(1)}, f / WEIGHTS), {}, "no tensor of the picture model fits"),
        (lambda f: (f / WEIGHTS).write_bytes(b"no"), {}, "cannot be read"),
        (lambda f: (f / WEIGHTS).rename(f / "x.bin"), {}, "run `ea models convert`"),
        (lambda f: (f / f"{WEIGHTS}.index.json").write_text(OUTSIDE), {}, "must name safetensors files"),
    ],
)
def test_errors_are_one_line(spoil: Any, overrides: dict[str, Any], expected: str, save: Save) -> None:
    _, folder = save()
    spoil(folder)
    with pytest.raises(ValueError) as caught:
        Transformer3DModel.from_pretrained_2d(folder, **overrides)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_that_a_config_leaves_out_are_its_own_class_defaults() -> None:
    mapped = map_config(Transformer3DModel, {"_class_name": "PixArtTransformer2DModel"})
    assert (mapped["sample_size"], mapped["attention_bias"], mapped["caption_channels"]) == (128, True, None)
    short = {"_class_name": "Transformer2DModel", "sample_size": 8}
    assert map_config(Transformer3DModel, short)["attention_head_dim"] == 88
