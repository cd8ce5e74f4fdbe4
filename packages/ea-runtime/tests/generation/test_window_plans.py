"""Plans of windows by their numbers, without a network: where each begins, what it knows, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_runtime.errors import UserError
from ea_runtime.generation.windows import (
    JOINS,
    MAX_FRAMES,
    Window,
    Windows,
    is_whole,
    own_window,
    plan_windows,
    recorded_settings,
    settled_window,
    windows_of,
    with_recorded_window,
)
from ea_runtime.models.geometry import Geometry
from ea_runtime.models.layout import GenerationDefaults

MAGVIT = Geometry()
SLICE = Geometry(is_slice=True, chunk_frames=8, chunk_latents=2)
OWN = GenerationDefaults(num_frames=36)


def refused(call: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_window_has_its_latents_its_frames_and_what_it_knows() -> None:
    assert plan_windows(MAGVIT, 36, 18).all == (
        Window(0, 6, 0, 18),
        Window(3, 9, 9, 27, 3, 0, 9),
        Window(6, 12, 18, 36, 3, 0, 9),
    )
    second = plan_windows(MAGVIT, 36, 18).all[1]
    assert (second.num_latents, second.num_frames, second.first_made) == (6, 18, 18)
    # the slice VAE: frame 0 alone, where the length is odd
    assert plan_windows(SLICE, 25, 16).all == (
        Window(0, 3, 0, 9),
        Window(1, 5, 1, 17, 2, 0, 8),
        Window(3, 7, 9, 25, 2, 0, 8),
    )
    with pytest.raises(AttributeError):
        second.start = 0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AttributeError):
        plan_windows(MAGVIT, 36).is_loop = True  # pyright: ignore[reportAttributeAccessIssue]


def test_one_piece() -> None:
    whole = Windows(36, 12, (Window(0, 12, 0, 36),))
    for window in (None, 36, 45):
        assert plan_windows(MAGVIT, 36, window) == whole
    assert (len(whole), whole.longest, whole.joins, whole.is_pixels) == (1, 36, [], False)
    assert plan_windows(MAGVIT, 36, None, join="pixels").is_pixels is False
    assert whole.noise_places == list(range(12))
    assert plan_windows(SLICE, 13, 13).all == (Window(0, 4, 0, 13),)  # no number of chunks


def test_the_last_window_ends_with_the_video_and_may_share_more() -> None:
    found = plan_windows(MAGVIT, 45, 36)
    assert [(one.start, one.stop, one.before) for one in found.all] == [(0, 12, 0), (3, 15, 9)]
    assert found.joins == [36]
    assert (found.longest, len(found), found.num_latents) == (36, 2, 15)
    assert found.noise_places == [*range(12), 9, 10, 11]
    quarter = plan_windows(MAGVIT, 108, 72)  # 8 chunks: 2 of them are shared
    assert [(one.start, one.before) for one in quarter.all] == [(0, 0), (12, 12)]
    quarter = plan_windows(MAGVIT, 144, 72)
    assert [(one.start, one.before) for one in quarter.all] == [(0, 0), (18, 6), (24, 18)]


def test_the_noise_of_later_windows_is_that_of_the_firsts_end() -> None:
    assert plan_windows(MAGVIT, 63, 36).noise_places == [*range(12), *range(3, 12)]
    assert plan_windows(MAGVIT, 54, 36, loop=True).noise_places == [*range(12), *range(6, 12)]


def test_pixels_need_two_windows() -> None:
    assert JOINS == ("latents", "pixels")
    assert plan_windows(MAGVIT, 36, 18, join="pixels").is_pixels is True
    assert plan_windows(MAGVIT, 27, 18, join="pixels").is_pixels is True
    assert plan_windows(MAGVIT, 36, 18).is_pixels is False
    assert plan_windows(MAGVIT, 36, 18).join == "latents"


def test_a_loop_leads_into_its_first_frame() -> None:
    found = plan_windows(MAGVIT, 54, 36, loop=True)
    assert [(w.start, w.stop, w.before, w.after) for w in found.all] == [(0, 12, 0, 0), (9, 21, 3, 3)]
    closing = found.all[-1]
    assert (closing.first, closing.last, closing.frames_before) == (27, 54 + 9, 9)
    assert (found.is_loop, found.joins) == (True, [36, 0])
    assert plan_windows(MAGVIT, 54, 36, loop=True, join="latents").join == "latents"
    none = plan_windows(MAGVIT, 54, None, loop=True)
    assert [(w.start, w.stop, w.before, w.after) for w in none.all] == [(0, 6, 0, 0), (3, 21, 3, 3)]


@pytest.mark.parametrize(
    ("frames", "window", "closing"),
    [
        (36, 18, (6, 15, 3, 3)),  # too short for both ends and a piece between them, so it is longer
        (45, 27, (9, 18, 3, 3)),
        (18, 72, (0, 9, 3, 3)),  # shares no more than there is
    ],
)
def test_the_last_window_of_a_loop(frames: int, window: int, closing: tuple[int, ...]) -> None:
    last = plan_windows(MAGVIT, frames, window, loop=True).all[-1]
    assert (last.start, last.stop, last.before, last.after) == closing


@pytest.mark.parametrize(
    ("geometry", "frames", "words"),
    [
        (MAGVIT, 9, "`loop` needs a multiple of 9 frames and at least 18, got 9; use 18"),
        (MAGVIT, 1, "got 1; use 18"),
        (SLICE, 20, "`loop` needs a multiple of 8 frames and at least 16, got 20; use 16"),
        (SLICE, 41, "got 41; use 40"),
    ],
)
def test_lengths_that_are_no_loop(geometry: Geometry, frames: int, words: str) -> None:
    assert words in refused(plan_windows, geometry, frames, 2 * geometry.chunk_frames, loop=True)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    geometry=st.sampled_from([MAGVIT, SLICE]),
    chunks=st.integers(2, 9),
    length=st.integers(2, 40),
    loop=st.booleans(),
)
def test_noise_is_that_of_the_first_window_and_each_frame_is_made_once(
    geometry: Geometry, chunks: int, length: int, loop: bool
) -> None:
    windows = plan_windows(
        geometry, length * geometry.chunk_frames, chunks * geometry.chunk_frames, loop=loop
    )
    made = [i for one in windows.all for i in range(one.start + one.before, one.stop - one.after)]
    assert made == list(range(windows.num_latents))
    frames = [i for one in windows.all for i in range(one.first_made, min(one.last, windows.num_frames))]
    assert frames[: windows.num_frames] == list(range(windows.num_frames))
    drawn = max(one.num_latents for one in windows.all)
    assert all(0 <= place < drawn for place in windows.noise_places)
    assert len(windows.noise_places) == windows.num_latents
    settings_of = {"num_frames": windows.num_frames, "window": chunks * geometry.chunk_frames, "loop": loop}
    assert windows_of(settings_of, geometry) == windows
    again = with_recorded_window(recorded_settings(settings_of))
    assert windows_of(again, geometry) == windows


# --- as asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "window", "loop", "found"),
    [
        (36, None, False, None),
        (45, None, False, 36),
        (36, None, True, 36),
        (36, 36, False, None),
        (27, 36, False, None),
        (45, 45, False, 45),
        (45, 54, False, 45),
        (45, 18, False, 18),
        (18, 36, True, 36),
        (45, 45, True, 45),
    ],
)
def test_a_window_is_recorded_where_it_counts(
    frames: int, window: int | None, loop: bool, found: int | None
) -> None:
    assert settled_window(MAGVIT, OWN, frames, window, loop) == found


@pytest.mark.parametrize(
    ("window", "words"),
    [
        (0, "`window` must be a whole number of 1 or more, got 0"),
        ("18", "`window` must be a whole number of 1 or more, got str '18'"),
        (9, "`window` must be at least 18 frames, two chunks of the VAE, got 9; use 18"),
        (20, "`window` must be 1 or a multiple of 9, got 20; use 18 or 27"),
    ],
)
def test_a_window_that_cannot_be(window: Any, words: str) -> None:
    assert words in refused(settled_window, MAGVIT, OWN, 45, window, False)
    short = replace(MAGVIT, max_latent_frames=6)
    assert "`window` must be at most 18 for this denoiser, got 27" in refused(
        settled_window, short, OWN, 45, 27, False
    )


@pytest.mark.parametrize(
    ("geometry", "own", "found"),
    [
        (MAGVIT, 36, 36),
        (MAGVIT, 40, 36),
        (MAGVIT, 9, 18),
        (MAGVIT, 1, 18),
        (MAGVIT, 18, 18),
        (MAGVIT, 19, 18),
        (MAGVIT, 27, 27),
        (replace(MAGVIT, max_latent_frames=11), 36, 27),
        (replace(MAGVIT, max_latent_frames=12), 36, 36),
        (replace(MAGVIT, max_latent_frames=3), 36, 18),
        (SLICE, 17, 17),
    ],
)
def test_the_models_own_window(geometry: Geometry, own: int, found: int) -> None:
    assert own_window(geometry, GenerationDefaults(num_frames=own)) == found


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ({"num_frames": 18}, True),
        ({"num_frames": 18, "window": 18}, True),
        ({"num_frames": 18, "window": 27}, True),
        ({"num_frames": 27, "window": 18}, False),
        ({"num_frames": 18, "window": 18, "loop": True}, False),
        ({"num_frames": 18, "loop": True}, False),
    ],
)
def test_what_is_made_in_one_piece_is_recorded_without_a_window(given: dict[str, Any], whole: bool) -> None:
    assert is_whole(given) is whole
    kept = {name: value for name, value in given.items() if name != "window" or not whole}
    assert recorded_settings(given) == kept
    assert with_recorded_window({"num_frames": 18}) == {"num_frames": 18, "window": 18}
    assert with_recorded_window({"num_frames": 27, "window": 18}) == {"num_frames": 27, "window": 18}
    assert MAX_FRAMES == 100_000
