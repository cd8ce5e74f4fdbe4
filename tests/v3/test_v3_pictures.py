"""V3's picture tokens: which frame CLIP sees, how it is prepared, what counts when it is not known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ea_runtime import VideoPipeline
from ea_runtime.errors import UserError
from ea_runtime.models.check import check_folder
from ea_runtime.models.clip_config import Preprocessing, read_clip_vision, read_preprocessing
from ea_runtime.models.image_encoder import ImageEncoder

SMALL: dict[str, Any] = {"num_frames": 16, "height": 32, "width": 48, "num_inference_steps": 4, "seed": 3}


def picture(seed: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def latents(pipe: VideoPipeline, prompt: Any = "a red circle", **more: Any) -> torch.Tensor:
    return pipe(prompt, output="latents", **(SMALL | more)).latents


@pytest.mark.parametrize("size", [(60, 45), (45, 60), (224, 224), (1, 300)])
@pytest.mark.parametrize("crop", [224, 32])
def test_preparing_equals_transformers(size: tuple[int, int], crop: int) -> None:
    """CLIPImageProcessor on Pillow, which transformers uses as long as torchvision is missing."""
    from transformers.models.clip import image_processing_pil_clip as theirs

    value = Image.fromarray(picture(1, *size))
    found = Preprocessing(size=crop, crop_size=crop).pixels(value)
    processor = theirs.CLIPImageProcessorPil(
        size={"shortest_edge": crop}, crop_size={"height": crop, "width": crop}
    )
    wanted = processor(images=value, return_tensors="np")["pixel_values"][0]
    assert found.shape == wanted.shape == (3, crop, crop)
    assert np.abs(found - wanted).max() < 1e-6
    other = Preprocessing(size=crop, crop_size=crop, resample=2).pixels(value)
    assert size in ((224, 224), (1, 300)) or np.abs(other - wanted).max() > 1e-2  # the twin: another filter


def test_preparing_by_hand() -> None:
    """One colour keeps its value through resizing; a crop of columns takes the middle ones."""
    grey = Image.new("RGB", (40, 20), (51, 102, 255))
    found = Preprocessing(size=10, crop_size=10).pixels(grey)
    wanted = (np.array([0.2, 0.4, 1.0]) - [0.48145466, 0.4578275, 0.40821073]) / [
        *(0.26862954, 0.26130258, 0.27577711)
    ]
    assert np.abs(found - wanted[:, None, None]).max() < 1e-6
    ramp = Image.fromarray(np.broadcast_to(np.arange(20, dtype=np.uint8)[None, :, None], (10, 20, 3)).copy())
    columns = Preprocessing(size=10, crop_size=10, do_normalize=False).pixels(ramp)[0, 0] * 255
    assert columns.round().tolist() == list(range(5, 15))


def test_the_first_frame_is_what_clip_sees(v3_pipe: VideoPipeline, v3_source: Path) -> None:
    """The embedding is that of the picture at the video's size, by transformers' own class; a given one wins."""
    from transformers import CLIPVisionModelWithProjection

    first, pixels = picture(1), Preprocessing(size=32, crop_size=32)
    clip: Any = CLIPVisionModelWithProjection.from_pretrained(str(v3_source / "image_encoder"))
    with torch.no_grad():
        values = torch.from_numpy(pixels.pixels(Image.fromarray(first)))[None]
        embeds = clip(pixel_values=values).image_embeds
    own = latents(v3_pipe, image=first)
    assert torch.equal(own, latents(v3_pipe, image=first, clip_image_embeds=embeds))
    other = latents(v3_pipe, image=first, clip_image_embeds=embeds * 3)
    assert not torch.equal(own, other), "the twin: another embedding gives another video"
    nothing = latents(v3_pipe, image=first, clip_image_embeds=embeds * 0)  # zeros stand for no picture
    assert torch.allclose(nothing, latents(v3_pipe, image=first, clip_apply_ratio=0.0), atol=1e-4)
    assert not torch.allclose(nothing, own, atol=1e-4)
    film = np.stack([first] * 16)
    mask = torch.ones(1, 1, 16, 32, 48)
    mask[:, :, 0] = 0
    assert torch.equal(latents(v3_pipe, video=film, mask=mask), own)
    found = v3_pipe("a", image=first, **SMALL)
    assert found.timings["encoding"] > 0
    assert not any("image_encoder" in note for note in found.notes)


def test_without_a_known_first_frame_there_is_no_picture(
    v3_pipe: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text alone, an end alone, a video to change, a region: as in the reference, whose picture is None then."""
    seen: list[int] = []
    encode = ImageEncoder.encode

    def counted(self: ImageEncoder, pictures: Any) -> torch.Tensor:
        seen.append(len(pictures))
        return encode(self, pictures)

    monkeypatch.setattr(ImageEncoder, "encode", counted)
    film = np.stack([picture(1)] * 16)
    region = torch.ones(1, 1, 16, 32, 48)
    region[..., :24] = 0
    for inputs in ({}, {"image_end": picture(1)}, {"video": film}, {"video": film, "mask": region}):
        latents(v3_pipe, **inputs)
    assert seen == []
    latents(v3_pipe, image=picture(1), image_end=picture(2))
    assert seen == [1]
    pair = torch.from_numpy(np.stack([picture(1), picture(2)])).permute(0, 3, 1, 2) / 255
    both = latents(v3_pipe, ["one", "two"], image=pair)
    assert seen == [1, 2]
    for row, (prompt, one) in enumerate(zip(("one", "two"), pair, strict=True)):
        assert torch.equal(both[row : row + 1], latents(v3_pipe, prompt, image=one, seed=3 + row))


def test_a_folder_without_the_encoder_says_so(v3_pipe: VideoPipeline, v3_folder: Path) -> None:
    shutil.rmtree(v3_folder / "image_encoder")
    pipe = VideoPipeline.from_pretrained(v3_folder, device="cpu", dtype="float32")
    found = pipe("a red circle", image=picture(1), output="latents", **SMALL)
    (note,) = [note for note in found.notes if "image_encoder/" in note]
    assert "\n" not in note
    assert torch.equal(found.latents, latents(v3_pipe, image=picture(1), clip_apply_ratio=0.0))
    assert not pipe("a red circle", output="latents", **SMALL).notes


def test_a_model_that_takes_no_picture(v3_folder: Path) -> None:
    """12 channels without CLIP: nothing is encoded, nothing is missed, and an embedding is refused."""
    weights = v3_folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({n: t for n, t in load_file(weights).items() if not n.startswith("clip_projection")}, weights)
    path = v3_folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"enable_clip_in_inpaint": False}))
    pipe = VideoPipeline.from_pretrained(v3_folder, device="cpu", dtype="float32")
    assert pipe.image_encoder is None
    assert not pipe("a red circle", image=picture(1), output="latents", **SMALL).notes
    with pytest.raises(UserError, match="`clip_image_embeds` is for models"):
        latents(pipe, image=picture(1), clip_image_embeds=torch.zeros(1, 768))
    shutil.rmtree(v3_folder / "image_encoder")
    assert check_folder(v3_folder).notes == []


def test_what_does_not_fit_takes_one_line(v3_folder: Path) -> None:
    part = v3_folder / "image_encoder"
    config = json.loads((part / "config.json").read_text())
    cases = [
        ({"model_type": "siglip", "architectures": None}, "must be of a CLIP picture encoder"),
        ({"projection_dim": 512}, "must be 768"),
        ({"image_size": 10**6}, "`image_size`"),
        ({"image_size": 4096, "patch_size": 1}, "patches"),
        ({"num_hidden_layers": 500}, "does not fit weights"),
        ({"hidden_act": "__import__('os').system('x')"}, "`hidden_act`"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "load code"),
        ({"hidden_size": 24}, "does not fit its config.json"),
        ({"image_size": 64}, "the encoder takes 64x64"),
    ]
    for change, words in cases:
        (part / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError) as error:
            ImageEncoder(v3_folder)
        assert words in str(error.value), (change, str(error.value))
        assert "\n" not in str(error.value)
    (part / "config.json").write_text(json.dumps(config | {"tower": 1}))
    assert read_clip_vision(v3_folder)[1] == ["tower"]
    for change, words in [
        ({"size": {"longest_edge": 32}}, "`size`"),
        ({"crop_size": 64}, "at most `size`"),
        ({"do_resize": False}, "do_resize"),
        ({"image_std": [1.0, 0.0, 1.0]}, "image_std"),
    ]:
        (part / "preprocessor_config.json").write_text(json.dumps({"size": 32, "crop_size": 32} | change))
        with pytest.raises(UserError, match=words):
            read_preprocessing(v3_folder, 32)
    (part / "preprocessor_config.json").unlink()
    assert read_preprocessing(v3_folder, 32)[1] is None
