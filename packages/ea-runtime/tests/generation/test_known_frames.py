"""Known frames: what is known stays, what is not is made; pictures of every kind, and inputs that are refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ea_runtime.errors import UserError
from ea_runtime.generation.inputs import MAX_PICTURE_PIXELS
from ea_runtime.generation.known_frames import deciding_frames, latent_mask
from ea_runtime.generation.pipeline import VideoOutput, VideoPipeline
from ea_runtime.generation.run_state import RunState
from ea_runtime.models.geometry import Geometry
from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae
from ea_runtime.video.fitting import fitted, lost_share, size_like

SMALL: dict[str, Any] = {"num_frames": 18, "height": 32, "width": 48, "num_inference_steps": 6, "seed": 3}
SAMPLERS = ["euler", "euler-a", "dpm++", "pndm", "ddim", "unipc"]


@pytest.fixture
def pipe() -> VideoPipeline:
    return VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder())


def blocks(seed: int, height: int = 32, width: int = 48) -> np.ndarray:
    """A picture of blocks of 8x8, (H, W, 3) uint8."""
    levels = np.random.default_rng(seed).integers(40, 216, (height // 8, width // 8, 3))
    return np.kron(levels, np.ones((8, 8, 1), np.uint8)).astype(np.uint8)


def off(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_first_and_last_picture_are_in_the_video(pipe: VideoPipeline, sampler: str) -> None:
    first, last = blocks(1), blocks(2)
    settings = {**SMALL, "sampler": sampler, "smooth": False}
    frames = pipe("a red circle", image=first, image_end=last, **settings).frames[0]
    assert off(frames[0], first) < 1
    assert off(frames[-1], last) < 1
    assert off(frames[8], first) > 5
    only = pipe("a red circle", image=first, **settings).frames[0]
    assert off(only[0], first) < 1
    assert off(only[-1], last) > 5
    assert off(pipe("a red circle", image_end=last, **settings).frames[0][-1], last) < 1


def test_equal_inputs_give_equal_bits_and_none_give_those_of_before(pipe: VideoPipeline) -> None:
    plain = pipe("a red circle", **SMALL)
    first = pipe("a red circle", image=blocks(1), **SMALL)
    again = pipe("a red circle", image=Image.fromarray(blocks(1)), **SMALL)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(pipe("a red circle", **SMALL).frames, plain.frames)
    everything = pipe(
        "a red circle", video=torch.zeros(1, 3, 18, 32, 48), mask=torch.ones(1, 1, 18, 32, 48), **SMALL
    )
    assert torch.equal(everything.latents, plain.latents)  # all is to be made


def test_each_video_of_a_batch_has_its_own_picture(pipe: VideoPipeline) -> None:
    pictures = torch.from_numpy(np.stack([blocks(1), blocks(2)])).permute(0, 3, 1, 2) / 255
    frames = pipe(["one", "two"], image=pictures, smooth=False, **SMALL).frames
    assert off(frames[0, 0], blocks(1)) < 1
    assert off(frames[1, 0], blocks(2)) < 1


def test_a_region_is_made_and_the_rest_kept(pipe: VideoPipeline, tmp_path: Path) -> None:
    film = np.stack([blocks(1)] * 18)
    mask = Image.new("L", (48, 32))
    mask.paste(255, (0, 0, 24, 32))
    mask.save(tmp_path / "mask.png")
    frames = pipe("a red circle", video=film, mask=str(tmp_path / "mask.png"), smooth=False, **SMALL).frames[
        0
    ]
    assert off(frames[:, :, 24:], film[:, :, 24:]) < 1
    assert off(frames[:, :, :24], film[:, :, :24]) > 5


def test_a_picture_is_changed_in_a_region(pipe: VideoPipeline) -> None:
    mask = torch.zeros(1, 1, 1, 32, 48)
    mask[..., :24] = 1
    settings = {**SMALL, "num_frames": 1, "smooth": False}
    frame = pipe("a red circle", video=blocks(1), mask=mask, **settings).frames[0, 0]
    assert off(frame[:, 24:], blocks(1)[:, 24:]) < 1
    assert off(frame[:, :24], blocks(1)[:, :24]) > 5


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "pndm"])
def test_strength_is_how_far_a_video_is_left(pipe: VideoPipeline, sampler: str) -> None:
    film = np.stack([blocks(1)] * 18)
    settings = {**SMALL, "sampler": sampler, "num_inference_steps": 10, "smooth": False}
    passes: list[int] = []
    found = [
        off(pipe("a red circle", video=film, strength=strength, **settings).frames[0], film)
        for strength in (0.1, 0.5, 1.0)
    ]
    assert found[0] < 0.9 * min(found[1:])
    pipe("a", video=film, strength=0.3, on_step=lambda phase, done, total: passes.append(total), **settings)
    assert passes[-1] == 18
    assert 3 in passes
    usual = pipe("a red circle", video=film, **settings)
    assert np.array_equal(usual.frames, pipe("a red circle", video=film, strength=0.6, **settings).frames)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("more", [{}, {"strength": 0.5}], ids=["whole", "part"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, sampler: str, more: dict[str, Any]) -> None:
    def make(on_step: Any, run: RunState | None) -> VideoOutput:
        pipe = VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder())
        return pipe("a", image=blocks(1), sampler=sampler, on_step=on_step, run=run, **SMALL, **more)

    def end(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("denoising", 2):
            raise Stopped

    def run() -> RunState:
        return RunState(tmp_path / "run", {"a": 1}, first_after=0, every=0)

    whole = make(None, None)
    first = run()
    first.begin()
    with pytest.raises(Stopped):
        make(end, first)
    second = run()
    assert second.begin() is not None
    resumed = make(None, second)
    assert torch.equal(resumed.latents, whole.latents)
    assert np.array_equal(resumed.frames, whole.frames)


@pytest.mark.parametrize("kind", ["png", "CMYK", "16 bits", "transparent", "1x1", "on its side"])
def test_pictures_of_every_kind(pipe: VideoPipeline, tmp_path: Path, kind: str) -> None:
    picture, path = Image.fromarray(blocks(1)), tmp_path / "a.png"
    exif = Image.Exif()
    if kind == "CMYK":
        picture, path = picture.convert("CMYK"), tmp_path / "a.tif"
    elif kind == "16 bits":
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        picture = Image.fromarray(grey)
    elif kind == "transparent":
        picture.putalpha(Image.new("L", picture.size, 0))
    elif kind == "1x1":
        picture = picture.resize((1, 1))
    elif kind == "on its side":
        picture, exif[0x0112] = picture.transpose(Image.Transpose.ROTATE_90), 6
    picture.save(path, exif=exif)
    frame = pipe("a", image=str(path), smooth=False, **SMALL).frames[0, 0]
    wanted = {
        "16 bits": np.repeat(np.asarray(Image.fromarray(blocks(1)).convert("L"))[..., None], 3, 2),
        "transparent": np.full((32, 48, 3), 255, np.uint8),
        "1x1": np.broadcast_to(np.asarray(Image.fromarray(blocks(1)).resize((1, 1))), (32, 48, 3)),
    }.get(kind, blocks(1))
    assert off(frame, wanted) < 3


def refusals(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Inputs that are refused, and words of the line."""
    picture, film = blocks(1), np.stack([blocks(1)] * 18)
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (folder / "text.png").write_text("no picture")
    Image.fromarray(picture).save(
        folder / "moving.gif", save_all=True, append_images=[Image.fromarray(blocks(2))], duration=100
    )
    Image.new("1", (MAX_PICTURE_PIXELS // 8192 + 1, 8192)).save(folder / "large.png")
    return {
        "missing": ({"image": str(folder / "no.png")}, "`image` must be a picture file"),
        "folder": ({"image_end": str(folder)}, "`image_end` must be a picture file"),
        "damaged": ({"image": str(folder / "damaged.png")}, "cannot be read as a picture"),
        "text": ({"image": str(folder / "text.png")}, "cannot be read as a picture"),
        "animated": ({"image": str(folder / "moving.gif")}, "has several pictures"),
        "large": ({"image": str(folder / "large.png")}, "pixels, at most"),
        "a number": ({"image": 7}, "`image` must be a picture"),
        "floats": ({"image": picture / 255.0}, "array (H, W, 3) of uint8"),
        "tensor": ({"image": torch.zeros(3, 8, 8)}, "`image` must have shape (batch, 3, 32, 48)"),
        "both": ({"image": picture, "video": film}, "either `video`, or `image`"),
        "mask alone": ({"mask": picture}, "`mask` is the part"),
        "mask and end": ({"image": picture, "image_end": picture, "mask": picture}, "leave `image_end` out"),
        "mask's length": ({"video": film, "mask": film[:5]}, "got 5"),
        "short": ({"video": film[:5]}, "`video` must have 18 frames or more, got 5"),
        "batch": ({"video": torch.zeros(3, 3, 18, 32, 48)}, "`video` must be of 1 video"),
        "strength 0": ({"image": picture, "strength": 0}, "`strength` must be above 0"),
        "strength 2": ({"image": picture, "strength": 2}, "`strength` must be above 0"),
        "strength alone": ({"strength": 0.5}, "`strength` is for"),
        "fit": ({"image": picture, "fit": "zoom"}, "`fit` must be one of crop, pad, stretch"),
        "fit alone": ({"fit": "pad"}, "`fit` is for"),
        "posterior": ({"image": picture, "posterior": "mean"}, "`posterior` must be one of"),
        "ratio": ({"image": picture, "clip_apply_ratio": 2}, "`clip_apply_ratio` must be"),
    }


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow's own, of a smaller size than ours
def test_what_is_refused_takes_one_line(pipe: VideoPipeline, tmp_path: Path) -> None:
    for name, (inputs, words) in refusals(tmp_path).items():
        with pytest.raises(UserError) as error:
            pipe("a", **SMALL, **inputs)
        assert words in str(error.value), (name, str(error.value))
        assert "\n" not in str(error.value), name


def test_an_end_without_a_start_and_a_single_frame(pipe: VideoPipeline) -> None:
    frame = pipe("a", image_end=blocks(1), smooth=False, **{**SMALL, "num_frames": 1}).frames[0, 0]
    assert off(frame, blocks(1)) < 1


def test_a_crop_is_mentioned(pipe: VideoPipeline) -> None:
    wide = blocks(1, 32, 96)
    cropped = pipe("a", image=wide, **SMALL)
    assert any("50% of it is cut off" in note for note in cropped.notes)
    assert not any("cropped" in note for note in pipe("a", image=wide, fit="pad", **SMALL).notes)


def test_masks_of_latents() -> None:
    magvit, slices = Geometry(), Geometry(is_slice=True, chunk_frames=8, chunk_latents=2)
    assert deciding_frames(18, magvit) == [0, 4, 8, 9, 13, 17]
    assert deciding_frames(1, magvit) == [0]
    assert deciding_frames(16, slices) == [0, 7, 11, 15]
    assert deciding_frames(17, slices) == [0, 4, 8, 12, 16]
    for geometry, count in itertools.product((magvit, slices), (1, 9, 16, 17, 18, 144)):
        if geometry.fits(count):
            assert len(deciding_frames(count, geometry)) == geometry.num_latents(count)
    mask = torch.ones(1, 1, 18, 16, 16)
    mask[:, :, 0] = 0
    mask[:, :, 17, :, :12] = 0
    found = latent_mask(mask, magvit)
    assert found[0, 0, 0].tolist() == [[0, 0], [0, 0]]
    assert found[0, 0, 5].tolist() == [[0, 0.5], [0, 0.5]]
    assert bool((found[0, 0, 1:5] == 1).all())


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_fitting(fit: Any) -> None:
    picture = Image.new("RGB", (100, 50), "red")
    found = fitted(picture, 64, 64, fit, (0, 0, 255))
    assert found.size == (64, 64)
    assert found.getpixel((32, 32)) == (255, 0, 0)
    assert found.getpixel((32, 2)) == ((0, 0, 255) if fit == "pad" else (255, 0, 0))
    assert fitted(picture, 100, 50, fit) is picture
    assert lost_share((100, 50), 64, 64) == 0.5


@pytest.mark.parametrize(
    ("size", "wanted"), [((1920, 1080), (672, 384)), ((500, 500), (512, 512)), ((9, 16), (384, 672))]
)
def test_the_size_that_is_like_a_picture(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    width, height = size_like(size, 672 * 384, 16)
    assert (width % 16, height % 16) == (0, 0)
    assert (width, height) == pytest.approx(wanted, abs=16)
    assert width / height == pytest.approx(size[0] / size[1], rel=0.04)
