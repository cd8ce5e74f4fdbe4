"""Known frames by their tensors: which latents they give, which are put back, and from which step on they count.

All in float32 on the CPU.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from ea_runtime.generation.denoise import NoisePredictor, denoise
from ea_runtime.generation.known_frames import (
    KnownFrames,
    deciding_frames,
    encode_known_frames,
    first_step,
    latent_mask,
    latent_spans,
    noised,
    nothing_given,
)
from ea_runtime.models.geometry import Geometry

MAGVIT = Geometry(scale=0.5)
SLICE = Geometry(is_slice=True, chunk_frames=8, chunk_latents=2)
CHANNELS = {"in_channels": 12, "out_channels": 8}


class Vae(nn.Module):
    """Latents are means over a chunk's thirds and over 8x8 pixels, of three channels and their sum; counts passes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.passes: list[tuple[int, Any]] = []

    def encode_video(self, frames: Tensor, generators: Any = None) -> Tensor:
        self.passes.append((frames.shape[2], generators))
        count = 3 if frames.shape[2] == 9 else -(-frames.shape[2] // 9) * 3
        means = nn.functional.adaptive_avg_pool3d(frames, (count, frames.shape[3] // 8, frames.shape[4] // 8))
        latents = torch.cat([means, means.sum(1, keepdim=True)], dim=1)
        for row, generator in enumerate(generators or ()):
            latents[row] += torch.randn(latents[row].shape, generator=generator)
        return latents


def video(batch: int = 1, frames: int = 18) -> Tensor:
    return torch.rand(batch, 3, frames, 16, 16, generator=torch.Generator().manual_seed(0))


def mask(frames: int = 18, known: int = 1) -> Tensor:
    """To make all but the first `known` frames."""
    found = torch.ones(1, 1, frames, 16, 16)
    found[:, :, :known] = 0
    return found


def known(**more: Any) -> KnownFrames:
    latents = torch.arange(2 * 4 * 3.0).reshape(2, 4, 3, 1, 1)
    return KnownFrames(
        latents, torch.tensor([0.0, 1.0, 0.5]).reshape(1, 1, 3, 1, 1).repeat(2, 1, 1, 1, 1), **more
    )


# --- frames and latents --------------------------------------------------------------------------------------


def test_the_frames_of_each_latent_frame() -> None:
    assert latent_spans(9, MAGVIT) == [range(1), range(1, 5), range(5, 9)]
    assert latent_spans(18, MAGVIT)[3:] == [range(9, 10), range(10, 14), range(14, 18)]
    assert latent_spans(1, MAGVIT) == [range(1)]
    assert latent_spans(8, SLICE) == [range(4), range(4, 8)]
    assert latent_spans(9, SLICE) == [range(1), range(1, 5), range(5, 9)]
    assert deciding_frames(18, MAGVIT) == [0, 4, 8, 9, 13, 17]
    assert deciding_frames(8, SLICE) == [0, 7]
    for geometry in (MAGVIT, SLICE, Geometry(chunk_latents=9)):  # the last shortens no time
        for frames in (n for n in range(1, 60) if geometry.fits(n)):
            spans = latent_spans(frames, geometry)
            assert [i for span in spans for i in span] == list(range(frames))
            assert len(spans) == geometry.num_latents(frames)


def test_a_mask_of_latents_is_the_share_of_pixels_to_be_made() -> None:
    to_make = mask(9, known=5)
    to_make[:, :, :, :4, :8] = 1
    found = latent_mask(to_make, MAGVIT)
    assert found.shape == (1, 1, 3, 2, 2)
    assert found[0, 0, :, 0, 0].tolist() == [0.5, 0.5, 1.0]
    assert found[0, 0, :, 1, 1].tolist() == [0.0, 0.0, 1.0]


# --- encoding ------------------------------------------------------------------------------------------------


def test_latents_are_those_of_the_video_in_the_denoisers_scale() -> None:
    vae, frames = Vae(), video(2)
    found = encode_known_frames(vae, MAGVIT, {}, frames, mask(), posterior="mode")
    whole = torch.cat([Vae().encode_video(one * 2 - 1) for one in frames.split(9, dim=2)], dim=2) * 0.5
    assert torch.allclose(found.latents, whole)
    assert found.to_make.shape == (2, 1, 6, 2, 2)
    assert found.to_make[1, 0, :, 0, 0].tolist() == [0, 1, 1, 1, 1, 1]
    assert (found.inputs, found.clip, found.keeps) == (None, None, True)
    assert vae.passes == [(9, None)] * 4  # a row and a piece at a time
    assert not found.latents.requires_grad


def test_latents_and_masks_are_float32_whatever_the_video_and_the_vae_are() -> None:
    found = encode_known_frames(Vae().bfloat16(), MAGVIT, {}, video().double(), mask(), posterior="mode")
    assert (found.latents.dtype, found.to_make.dtype) == (torch.float32, torch.float32)


def test_noise_is_added_where_the_latents_are() -> None:
    scheduler = SimpleNamespace(
        timesteps=torch.tensor([9, 3]), add_noise=lambda latents, noise, timesteps: timesteps
    )
    found = noised(scheduler, torch.zeros(1, device="meta"), torch.zeros(1), 1)
    assert (found.device.type, found.shape) == ("meta", (1,))


def test_a_pixel_is_to_be_made_above_half() -> None:
    grey = torch.full((1, 1, 9, 16, 16), 0.5)
    assert encode_known_frames(Vae(), MAGVIT, {}, video(1, 9), grey).to_make.max() == 0
    assert encode_known_frames(Vae(), MAGVIT, {}, video(1, 9), grey + 0.01).to_make.min() == 1


@pytest.mark.parametrize("posterior", ["sample", "mode"])
@pytest.mark.parametrize("is_seeded", [True, False])
def test_the_posterior_is_drawn_if_asked_for_with_each_videos_generator(
    posterior: str, is_seeded: bool
) -> None:
    def draw(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    vae, frames = Vae(), video(2)
    generators = [draw(1), draw(2)] if is_seeded else None
    found = encode_known_frames(vae, MAGVIT, {}, frames, mask(), posterior=posterior, generators=generators)
    mean = encode_known_frames(Vae(), MAGVIT, {}, frames, mask(), posterior="mode").latents
    if posterior == "mode" or not is_seeded:
        assert torch.equal(found.latents, mean)
        return
    assert [one for one, _ in vae.passes] == [18, 18]  # the noise of a whole video at once
    with pytest.raises(ValueError, match="argument"):  # a generator for each video
        encode_known_frames(vae, MAGVIT, {}, frames, mask(), generators=[draw(1)])
    for row, seed in ((0, 1), (1, 2)):
        noise = torch.randn(4, 6, 2, 2, generator=draw(seed)) * 0.5
        assert torch.allclose(found.latents[row] - noise, mean[row], atol=1e-6)


def test_a_denoiser_with_channels_sees_the_mask_and_black_where_it_makes() -> None:
    frames, clip = video(1), torch.ones(1, 768)
    found = encode_known_frames(
        Vae(), MAGVIT, CHANNELS, frames, mask(18, 9), posterior="mode", clip=clip, clip_apply_ratio=0.25
    )
    assert found.inputs is not None
    masks, shown = found.inputs.split(4, dim=1)
    # a mask is encoded as it is, 0 and 1; what is to be made is black, -1
    assert torch.allclose(masks[:, :3, :3], torch.zeros(1, 3, 3, 2, 2))
    assert torch.allclose(masks[:, :3, 3:], torch.full((1, 3, 3, 2, 2), 0.5))
    assert torch.allclose(shown[:, :, :3], found.latents[:, :, :3])
    assert torch.allclose(shown[:, :3, 3:], torch.full((1, 3, 3, 2, 2), -0.5))
    assert (found.clip is clip, found.clip_apply_ratio, found.keeps) == (True, 0.25, False)
    assert found.to_make.min() == 1
    kept = encode_known_frames(Vae(), MAGVIT, CHANNELS, frames, mask(18, 9), keep_known=True)
    assert (kept.keeps, kept.clip) == (True, None)
    assert kept.to_make[0, 0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]


def test_pieces_of_one_colour_and_equal_ones_are_encoded_once() -> None:
    vae = Vae()
    grey = torch.full((1, 3, 36, 16, 16), 0.25)
    found = encode_known_frames(vae, MAGVIT, {}, grey, mask(36), posterior="mode")
    assert [one for one, _ in vae.passes] == [9]
    assert torch.allclose(found.latents[:, :3], torch.full((1, 3, 12, 2, 2), -0.25))
    vae = Vae()
    same = video(1, 9).repeat(1, 1, 3, 1, 1)
    same[:, :, 18:] = 0.5
    same[:, :, 20, 0, 0] = 0.75  # nearly of one colour
    found = encode_known_frames(vae, MAGVIT, {}, same, mask(27), posterior="mode")
    assert [one for one, _ in vae.passes] == [9, 9]
    assert torch.equal(found.latents[:, :, :3], found.latents[:, :, 3:6])
    assert not torch.equal(found.latents[:, :, 6:], found.latents[:, :, 3:6])
    # pieces that begin with one colour are not of one colour, and grey ones are known after others, too
    vae, mixed = Vae(), torch.full((1, 3, 36, 16, 16), 0.25)
    mixed[:, :, 9:18] = video(1, 9)
    mixed[:, :, 27:] = video(1, 9).flip(4)
    mixed[:, :, 27, 0, 0] = mixed[:, :, 9, 0, 0]
    found = encode_known_frames(vae, MAGVIT, {}, mixed, mask(36), posterior="mode")
    assert len(vae.passes) == 3
    assert torch.equal(found.latents[:, :, 6:9], found.latents[:, :, :3])
    assert not torch.equal(found.latents[:, :, 9:], found.latents[:, :, 3:6])
    # one colour of another length is another piece
    vae = Vae()
    encode_known_frames(vae, SLICE, {}, torch.zeros(1, 3, 9, 16, 16), mask(9), posterior="mode")
    assert sorted(one for one, _ in vae.passes) == [1, 8]


# --- in a run ------------------------------------------------------------------------------------------------


class Scheduler:
    """Adds step times noise."""

    timesteps = torch.tensor([30, 20, 10])

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        assert timesteps.shape == (1,)
        return latents + noise * float(timesteps[0])


@pytest.mark.parametrize(("step", "level"), [(0, 20.0), (1, 10.0), (2, 0.0)])
def test_known_latents_are_put_back_at_the_noise_of_the_next_step(step: int, level: float) -> None:
    one, x = known(), torch.full((2, 4, 3, 1, 1), -7.0)
    noise = torch.full_like(x, 0.5)
    found = one.put_back(x, noise, Scheduler(), step)
    place = one.latents + 0.5 * level
    assert torch.equal(found[:, :, 0], place[:, :, 0])
    assert torch.equal(found[:, :, 1], x[:, :, 1])
    assert torch.allclose(found[:, :, 2], (place[:, :, 2] + x[:, :, 2]) / 2)
    assert known(keeps=False).put_back(x, noise, Scheduler(), step) is x
    assert torch.equal(noised(Scheduler(), x, noise, step), x + 0.5 * (30 - 10 * step))


@pytest.mark.parametrize(("first", "done"), [(0, 0), (1, 0), (0, 2), (1, 1)])
def test_a_run_that_starts_late_counts_its_steps_from_the_first_of_all(first: int, done: int) -> None:
    """first: of a part of the noise (strength). done: passes that a resumed run had made."""
    predicted, put_back = [], []

    class Steps(Scheduler):
        init_noise_sigma = 1.0

        def scale_model_input(self, x: Tensor, timestep: Tensor) -> Tensor:
            return x

        def step(self, noise: Tensor, timestep: Tensor, x: Tensor, return_dict: bool) -> tuple[Tensor]:
            return (x - noise,)

    class Predict:
        dtype = torch.float32

        def __init__(self) -> None:
            self.known = SimpleNamespace(put_back=self.put_back)

        def __call__(self, x: Tensor, timestep: Tensor, step: int) -> Tensor:
            assert timestep == Steps.timesteps[step]
            predicted.append(step)
            return x / 2

        def put_back(self, x: Tensor, noise: Tensor, scheduler: Any, step: int) -> Tensor:
            put_back.append(step)
            return x

    x = torch.ones(1, 4, 1, 2, 2)
    resumed = (done, x) if done else None
    denoise(cast("NoisePredictor", Predict()), Steps(), x, [], lambda *_: None, resumed=resumed, first=first)
    assert predicted == put_back == [*range(first + done, 3)]


def test_rows_and_devices_take_all_tensors_along() -> None:
    clip, inputs = torch.arange(2.0)[:, None], torch.arange(2.0).reshape(2, 1, 1, 1, 1)
    one = known(clip=clip, inputs=inputs, clip_apply_ratio=0.75, keeps=False)
    part = one.rows(1, 2)
    for name in ("latents", "to_make", "clip", "inputs"):
        assert torch.equal(getattr(part, name), getattr(one, name)[1:]), name
    assert (part.clip_apply_ratio, part.keeps) == (0.75, False)
    bare = known().rows(0, 1)
    assert (len(bare.latents), bare.clip, bare.inputs) == (1, None, None)
    moved = one.to(torch.device("meta"))
    assert {getattr(moved, name).device.type for name in ("latents", "to_make", "clip", "inputs")} == {"meta"}
    assert known().to(torch.device("meta")).clip is None
    with pytest.raises(AttributeError):
        one.keeps = True  # pyright: ignore[reportAttributeAccessIssue]


def test_clip_counts_in_the_last_share_of_the_steps() -> None:
    one = known(clip=torch.ones(2, 768))
    assert one.clip_apply_ratio == 0.5
    assert [one.is_clip_on(step, 4) for step in range(4)] == [False, False, True, True]
    whole = known(clip=torch.ones(2, 768), clip_apply_ratio=1.0)
    assert [whole.is_clip_on(step, 2) for step in range(2)] == [True, True]
    none = known(clip=torch.ones(2, 768), clip_apply_ratio=0.0)
    assert none.is_clip_on(3, 4) is False
    assert known().is_clip_on(3, 4) is False


@pytest.mark.parametrize(
    ("count", "strength", "first"),
    [
        (10, 1.0, 0),
        (10, 0.55, 5),
        (10, 0.1, 9),
        (10, 0.01, 9),
        (10, 0.0, 9),
        (10, 2.0, 0),
        (1, 0.5, 0),
        (3, 0.999, 1),
    ],
)
def test_the_step_at_which_a_part_of_the_noise_is_in(count: int, strength: float, first: int) -> None:
    told: list[int] = []
    scheduler = SimpleNamespace(timesteps=torch.arange(count), set_begin_index=told.append)
    assert first_step(scheduler, strength) == first
    assert told == ([first] if first else [])
    assert first_step(SimpleNamespace(timesteps=torch.arange(count)), strength) == first


def test_a_pass_without_known_frames() -> None:
    latents = torch.ones(2, 4, 3, 1, 1)
    assert nothing_given({"in_channels": 4, "out_channels": 8}, latents) == {}
    given = nothing_given(CHANNELS, latents)["inpaint_latents"]
    assert given.shape == (2, 8, 3, 1, 1)
    assert given.abs().max() == 0
