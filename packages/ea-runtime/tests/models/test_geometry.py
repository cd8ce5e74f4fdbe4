"""Pixels and latents: the numbers of a model's configs, and for each wrong number the nearest that fit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_runtime.errors import UserError
from ea_runtime.models.geometry import (
    MAX_PIXELS,
    Geometry,
    check_int,
    latent_channels,
    latent_scale,
    motion_settings,
    short,
    takes_known_frames,
    takes_picture,
)

MAGVIT = Geometry()
SLICE = Geometry(is_slice=True, chunk_frames=8, chunk_latents=2)
SHORT = Geometry(max_latent_frames=7)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- configs -------------------------------------------------------------------------------------------------


def test_the_numbers_of_v2() -> None:
    assert Geometry.from_configs() == Geometry(4, 8, 16, 9, 3, False, None, 0.18215)
    assert (MAGVIT.temporal_ratio, SLICE.temporal_ratio, MAX_PIXELS) == (4, 4, 268_435_456)
    assert Geometry(chunk_frames=4, chunk_latents=1).temporal_ratio == 3
    with pytest.raises(AttributeError):
        MAGVIT.scale = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "holder", [dict, lambda **values: SimpleNamespace(**values)], ids=["mapping", "object"]
)
def test_a_vaes_config(holder: Any) -> None:
    vae = {
        "down_block_types": [
            "SpatialDownBlock3D",
            "TemporalBlock",
            "SpatialTemporalDownBlock3D",
            "SpatialLast",
        ],
        "latent_channels": 16,
        "mini_batch_encoder": 8,
        "mini_batch_decoder": 2,
        "slice_compression_vae": True,
        "scaling_factor": 0.5,
    }
    found = Geometry.from_configs(holder(**vae))
    assert found == Geometry(16, 4, 8, 8, 2, True, None, 0.5)  # the last block halves nothing
    assert Geometry.from_configs(holder(block_out_channels=[1, 2, 3])).spatial_ratio == 4
    assert Geometry.from_configs(holder(ch_mult=[1, 2])).spatial_ratio == 2


@pytest.mark.parametrize(
    ("denoiser", "multiple", "positions"),
    [
        ({"patch_size": 4}, 32, None),
        ({"motion_module_kwargs": {"block_size": 2}}, 16, 4096),
        ({"motion_module_type": "VanillaGrid"}, 16, None),
        ({"motion_module_type": "VanillaGrid", "motion_module_kwargs": {"block_size": 3}}, 48, 4096),
        ({"motion_module_type": "VanillaGrid", "motion_module_kwargs": {"a": 1}}, 16, 4096),
        ({"motion_module_kwargs": {"temporal_position_encoding_max_len": 24}}, 16, 24),
        ({"motion_module_kwargs": {"temporal_position_encoding": False}}, 16, None),
        ({"motion_module_kwargs": {"temporal_position_encoding": True}}, 16, 4096),
    ],
)
def test_a_denoisers_config(denoiser: dict[str, Any], multiple: int, positions: int | None) -> None:
    found = Geometry.from_configs(None, denoiser)
    assert (found.size_multiple, found.max_latent_frames) == (multiple, positions)


def test_motion_modules_of_even_and_odd_blocks() -> None:
    both = {
        "basic_block_type": "global_motionmodule",
        "motion_module_kwargs": {"other": 1},
        "motion_module_kwargs_even": {"temporal_position_encoding_max_len": 24},
        "motion_module_kwargs_odd": {"temporal_position_encoding_max_len": 16},
    }
    assert motion_settings(both) == [both["motion_module_kwargs_even"], both["motion_module_kwargs_odd"]]
    assert Geometry.from_configs(None, both).max_latent_frames == 16
    assert motion_settings({**both, "basic_block_type": "motionmodule"}) == [{"other": 1}]
    assert motion_settings(None) == motion_settings({"motion_module_kwargs": {}}) == []


@pytest.mark.parametrize(
    ("into", "out", "known", "channels"),
    [(12, 8, True, 4), (4, 8, False, 4), (8, 8, False, 8), (None, 8, False, None), (12, None, False, 12)],
)
def test_channels_of_known_frames(
    into: int | None, out: int | None, known: bool, channels: int | None
) -> None:
    config = {"in_channels": into, "out_channels": out}
    assert takes_known_frames(config) is known
    assert takes_picture(config) is known
    assert takes_picture({**config, "enable_clip_in_inpaint": True}) is known
    assert takes_picture({**config, "enable_clip_in_inpaint": False}) is False
    assert latent_channels(config) == channels
    assert Geometry.from_configs({"latent_channels": 16}, config).latent_channels == (channels or 16)


def test_a_scale() -> None:
    assert latent_scale({"scaling_factor": 0.1825}) == latent_scale(None) == latent_scale({}) == 0.18215
    assert latent_scale({"scaling_factor": 1}) == 1.0


# --- frames --------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None)
@given(st.sampled_from([MAGVIT, SLICE, Geometry(chunk_frames=5, chunk_latents=2)]), st.integers(1, 200))
def test_frames_to_latents_and_back(geometry: Geometry, frames: int) -> None:
    if not geometry.fits(frames):
        assert "use " in refused(geometry.check_num_frames, frames)
        return
    latents = geometry.num_latents(frames)
    assert geometry.check_num_frames(frames) == frames
    pieces = geometry.pieces(frames)
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(frames))
    assert all(piece.stop - piece.start <= geometry.chunk_frames for piece in pieces)
    if not geometry.is_slice or frames % 8 in (0, 1):
        assert geometry.num_frames(latents) == frames
    assert geometry.latent_shape(2, frames, 32, 48) == (2, 4, latents, 4, 6)


def test_pieces_of_the_slice_vae() -> None:
    assert SLICE.pieces(9) == [slice(0, 1), slice(1, 9)]
    assert SLICE.pieces(12) == [slice(0, 8), slice(8, 12)]
    assert MAGVIT.pieces(9) == [slice(0, 9)]
    assert MAGVIT.pieces(1) == [slice(0, 1)]


def test_numbers_that_fit() -> None:
    assert [n for n in range(-9, 20) if MAGVIT.fits(n)] == [1, 9, 18]
    assert [n for n in range(-9, 14) if SLICE.fits(n)] == [1, 4, 5, 8, 9, 12, 13]


@pytest.mark.parametrize(
    ("geometry", "value", "message"),
    [
        (MAGVIT, 2, "`num_frames` must be 1 or a multiple of 9, got 2; use 1 or 9"),
        (MAGVIT, 10, "got 10; use 9 or 18"),
        (MAGVIT, 17, "got 17; use 9 or 18"),
        (MAGVIT, 0, "got 0; use 1"),
        (MAGVIT, -20, "got -20; use 1"),
        (SLICE, 3, "`num_frames` must be a multiple of 4, or one more, got 3; use 1 or 4"),
        (SLICE, 11, "got 11; use 9 or 12"),
        (SHORT, 27, "`num_frames` must be at most 18 for this denoiser, got 27; use 18"),
        (SHORT, 19, "`num_frames` must be at most 18 for this denoiser"),
        (SHORT, 17, "use 9 or 18"),
        (MAGVIT, "9", "`num_frames` must be a whole number, got str '9'"),
    ],
)
def test_a_wrong_number_of_frames_gets_the_nearest(geometry: Geometry, value: Any, message: str) -> None:
    assert message in refused(geometry.check_num_frames, value)


def test_the_most_frames_that_positions_allow() -> None:
    assert SHORT.check_num_frames(18) == 18
    assert Geometry(max_latent_frames=6).check_num_frames(18) == 18
    assert "at most 9 " in refused(Geometry(max_latent_frames=5).check_num_frames, 18)
    assert "at most 1 " in refused(Geometry(max_latent_frames=1).check_num_frames, 9)
    slices = Geometry(is_slice=True, chunk_frames=8, chunk_latents=2, max_latent_frames=3)
    assert "at most 12 for this denoiser, got 13; use 12" in refused(slices.check_num_frames, 13)


@pytest.mark.parametrize("latents", [2, 4, 100])
def test_latents_of_no_video(latents: int) -> None:
    line = refused(MAGVIT.num_frames, latents)
    assert line == f"`latents` must have 1 latent frame or a multiple of 3, got {latents}"
    assert SLICE.num_frames(latents) == 4 * latents


# --- sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "use"),
    [
        (16, 17, "16x16 or 32x16"),
        (31, 32, "32x16 or 32x32"),
        (0, 16, "16x16"),
        (-5, 40, "32x16 or 48x16"),
        (15, 1, "16x16"),
    ],
)
def test_a_wrong_size_gets_the_nearest(height: int, width: int, use: str) -> None:
    line = refused(MAGVIT.check_size, height, width)
    assert (
        line
        == f"`width` and `height` must be multiples of 16, got {width}x{height} (width x height); use {use}"
    )


def test_a_size_has_a_limit() -> None:
    assert MAGVIT.check_size(32, 48) == (32, 48)
    assert MAGVIT.check_size(32, 48, 32 * 48) == (32, 48)
    assert Geometry(size_multiple=1).check_size(1, 1) == (1, 1)
    assert "must give at most 1,535 pixels, got 48x32; use up to 32x32" in refused(
        MAGVIT.check_size, 32, 48, 1535
    )
    assert "`width` must be a whole number" in refused(MAGVIT.check_size, 32, 1.5)
    assert "`height` must be a whole number" in refused(MAGVIT.check_size, None, 32)


@pytest.mark.parametrize(
    ("arguments", "use"),
    [
        ((1, 18, 32, 32, 18431), "use num_frames 9 or size 16x16"),
        ((2, 9, 32, 32, 18431), "2 videos of 9 frames of 32x32 are 18,432 pixels, at most 18,431 may"),
        ((2, 9, 32, 32, 18431), "use num_frames 1 or size 16x16 or fewer prompts at a time"),
        ((1, 1, 32, 32, 1023), "are 1,024 pixels, at most 1,023 may be asked for at once; use size 16x16"),
        ((1, 9, 16, 16, 255), "use a smaller size"),
        ((2, 9, 16, 16, 255), "use fewer prompts at a time"),
    ],
)  # fmt: skip
def test_too_many_pixels_get_what_fits(arguments: tuple[int, ...], use: str) -> None:
    line = refused(MAGVIT.check_budget, *arguments)
    assert use in line
    assert ("videos" in line) is (arguments[0] > 1)
    *request, limit = arguments
    MAGVIT.check_budget(*request, request[0] * request[1] * request[2] * request[3])  # pyright: ignore
    assert limit < request[0] * request[1] * request[2] * request[3]
    MAGVIT.check_budget(1, 1, 16384, 16384)
    refused(MAGVIT.check_budget, 1, 1, 16384, 16400)


# --- whole numbers -------------------------------------------------------------------------------------------


class Own:
    """A number of a library, such as numpy's."""

    def __index__(self) -> int:
        return 3


def test_whole_numbers_within_bounds() -> None:
    assert [check_int("n", value, 3, 5) for value in (3, 5, Own())] == [3, 5, 3]
    assert type(check_int("n", Own())) is int
    assert check_int("n", -7) == -7
    assert check_int("n", 10**9, 3) == 10**9
    assert refused(check_int, "n", 2, 3, 5) == "`n` must be a whole number from 3 to 5, got 2"
    assert refused(check_int, "n", 6, 3, 5) == "`n` must be a whole number from 3 to 5, got 6"
    assert refused(check_int, "n", 2, 3) == "`n` must be a whole number of 3 or more, got 2"
    for value in (True, False, 1.0, "1", None):
        assert refused(check_int, "n", value) == f"`n` must be a whole number, got {short(value)}"


def test_a_value_in_a_line_is_short() -> None:
    assert short("x" * 38) == f"str '{'x' * 38}'"
    assert short("x" * 39) == f"str '{'x' * 36}..."
    assert len(short("x" * 39)) == len("str ") + 40
