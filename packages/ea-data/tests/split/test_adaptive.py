"""`adaptive` cuts at the exact frame, and neither at flashes nor in dissolves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ea_data.protocols import Cut, Span, Spans
from ea_data.split.adaptive import AdaptiveOptions, AdaptiveSplitter
from ea_data.split.same_shot import is_flash, is_other_light
from ea_runtime.errors import UserError


def cuts_of(given: tuple[Path, Any], **options: Any) -> list[int]:
    """The frames of the hard cuts."""
    spans = AdaptiveSplitter(AdaptiveOptions(**options))(*given)
    assert isinstance(spans, Spans)
    assert all(cut.start == cut.end for cut in spans.cuts)
    return [round(cut.start * given[1].fps) for cut in spans.cuts]


def test_clips_begin_at_the_first_frame_of_a_shot(tmp_path: Path, films: Any) -> None:
    given = films.write(tmp_path / "a.mp4", films.shot(1, 50, 0), films.shot(2, 41, 3), films.shot(3, 45, 5))
    splitter = AdaptiveSplitter(AdaptiveOptions(min_seconds=1))
    spans = splitter(*given)
    assert isinstance(spans, Spans)
    assert spans == [Span(0.0, pytest.approx(50 / 24)), Span(50 / 24, 91 / 24), Span(91 / 24, 136 / 24)]
    assert spans.cuts == (Cut(50 / 24, 50 / 24), Cut(91 / 24, 91 / 24))
    assert spans.lost == ()


def test_flashes_do_not_cut_nor_hide_a_cut(tmp_path: Path, films: Any) -> None:
    one, other = films.shot(1, 60, 0), films.shot(2, 50, 3)
    lit = films.flash(one, 10, 30, 52)  # the last one six frames before the cut
    assert cuts_of(films.write(tmp_path / "a.mp4", lit, other)) == [60]


def test_a_strobe_does_not_cut(tmp_path: Path, films: Any) -> None:
    one = films.shot(4, 72, 2)
    assert cuts_of(films.write(tmp_path / "a.mp4", films.flash(one, *range(4, 70, 5)))) == []


def test_shaking_and_fast_pans_do_not_cut(tmp_path: Path, films: Any) -> None:
    rng = np.random.default_rng(0)
    still = films.shot(5, 1, 4, 0.0)[0]
    shaken = np.stack([np.roll(still, tuple(rng.integers(-4, 5, 2)), (0, 1)) for _ in range(48)])
    assert cuts_of(films.write(tmp_path / "a.mp4", shaken)) == []
    assert cuts_of(films.write(tmp_path / "b.mp4", films.shot(6, 48, 1, 0.5))) == []


def test_the_last_cut_of_a_video_is_judged_too(tmp_path: Path, films: Any) -> None:
    given = films.write(tmp_path / "a.mp4", films.shot(1, 40, 0), films.shot(2, 4, 3))
    assert cuts_of(given) == [40]


def test_a_wide_window_works_as_well(tmp_path: Path, films: Any) -> None:
    given = films.write(tmp_path / "a.mp4", films.shot(1, 50, 0), films.shot(2, 60, 3))
    assert cuts_of(given, window=20) == [50]


def test_interlaced_frames_are_seen_without_their_combs(tmp_path: Path, films: Any) -> None:
    path, info = films.write(tmp_path / "a.mp4", films.shot(1, 50, 0), films.shot(2, 41, 3))
    assert cuts_of((path, replace(info, is_interlaced=True))) == [50]


def test_what_is_no_video_is_one_line(tmp_path: Path, films: Any) -> None:
    path, info = films.write(tmp_path / "a.mp4", films.shot(1, 10, 0))
    path.write_bytes(b"no video at all" * 100)
    with pytest.raises(UserError, match=r"a\.mp4.* cannot be read as a video"):
        AdaptiveSplitter(AdaptiveOptions())(path, info)


@pytest.mark.parametrize("wrong", [{"ratio": 1}, {"min_content": 300}, {"window": 0}, {"min_seconds": 11}])
def test_options_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        AdaptiveOptions.model_validate(wrong)


def test_a_flash_is_told_from_a_cut() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.integers(0, 256, (2, 9, 16, 3), dtype=np.uint8)
    assert is_flash(np.stack([one, one]), np.stack([other, other, one]))
    assert not is_flash(np.stack([one, one]), np.stack([other, other, other]))


def test_another_light_is_told_from_another_shot(films: Any) -> None:
    one, other = films.shot(1, 1, 0)[0][::5, ::5], films.shot(2, 1, 0)[0][::5, ::5]
    moved = np.roll(one, (1, 2), (0, 1))
    assert is_other_light(one, (moved * 0.4).astype(np.uint8))
    assert not is_other_light(one, other)
    assert not is_other_light(one, np.zeros_like(one))
    # black bars are alike in all shots
    barred = [frame.copy() for frame in (one, other)]
    for frame in barred:
        frame[:4] = frame[-4:] = 0
    assert not is_other_light(*barred)
