"""Two signatures compared, step by step, against the definitions in plain loops and float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ea_data.filter import alignment
from ea_data.filter.alignment import Likeness
from ea_data.media.signature import COLOURS, GRID, RATE, Signature

F = GRID * GRID


def likeness(**values: Any) -> Likeness:
    names = [field.name for field in dataclasses.fields(Likeness)]
    return Likeness(**{**dict.fromkeys(names, 0.0), "moved": (9.0, 9.0), **values})


def film(seed: int, frames: int, steps: float = 12) -> np.ndarray:
    """Pictures that drift into each other: float32 (T, F), levels 0 to 255."""
    drawn = np.random.default_rng(seed)
    still = np.kron(drawn.normal(0, 45, (GRID // 2, GRID // 2)), np.ones((2, 2))).ravel()
    moving = drawn.normal(0, steps, (frames, F)).cumsum(0)
    return np.clip(128 + still + moving, 0, 255).astype(np.float32)


def signature(frames: np.ndarray, seed: int = 0) -> Signature:
    colour = np.random.default_rng(seed).integers(
        -90, 90, (-(-len(frames) // RATE), COLOURS, COLOURS, 2), np.int8
    )
    return Signature(frames.round().astype(np.uint8).reshape(-1, GRID, GRID), colour)


def pair(one: np.ndarray, other: np.ndarray, share: float = 0.6, speed: float = 1.0) -> Any:
    return alignment._Pair(signature(one), signature(other, 1), share, speed)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.astype(float).ravel(), other.astype(float).ravel())[0, 1])


@pytest.mark.parametrize(
    ("found", "asked"),
    [
        ([None], 1),
        ([likeness(change=0.97)], 1),
        ([likeness(change=0.49)], 1),
        ([likeness(change=0.9, moved=(0.99, 9))], 1),
        ([likeness(change=0.5, moved=(1, 0.5)), None, None], 3),
        ([likeness(change=0.9), likeness(change=0.99, scene=0.1), likeness(change=0.98, scene=0.1)], 3),
        ([likeness(change=0.9, scene=0.9), likeness(change=0.99), likeness(change=0.1)], 3),
        ([likeness(change=0.9), None, likeness(change=0.95)], 3),
    ],
)
def test_other_speeds_are_tried_where_clips_drift_apart(
    found: list[Likeness | None], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds: list[float] = []

    class Pair:
        def __init__(self, one: str, other: str, share: float, speed: float) -> None:
            assert (one, other, share) == ("one", "other", 0.6)
            speeds.append(speed)

        def best(self) -> Likeness | None:
            return found[len(speeds) - 1]

    monkeypatch.setattr(alignment, "_Pair", Pair)
    best = alignment.compare("one", "other", 0.6)  # type: ignore[arg-type]
    assert speeds == [1, 25 / 24, 24 / 25][:asked]
    assert best is max((one for one in found if one), key=lambda one: one.change + one.scene, default=None)


def test_a_pair_has_the_first_clip_as_it_is_and_the_second_at_its_speed() -> None:
    one, other = film(1, 12).round(), film(2, 9).round()
    plain = pair(one, other)
    assert (plain.first.dtype, plain.second.dtype) == (np.float32, np.float32)
    assert np.array_equal(plain.first, one)
    assert np.array_equal(plain.second, other)
    assert np.array_equal(pair(one, other, speed=2).second, other[[0, 2, 4, 6]])
    halves = pair(one, other, speed=0.5).second
    assert np.array_equal(halves[::2], other[:-1])
    np.testing.assert_allclose(halves[1::2], (other[1:] + other[:-1]) / 2)


@pytest.mark.parametrize(
    ("frames", "share", "least"), [(10, 0.6, 6), (10, 0.55, 6), (3, 0.2, 3), (6, 0.2, 4), (1, 0.6, 1)]
)
def test_how_many_frames_clips_must_share(frames: int, share: float, least: int) -> None:
    assert pair(film(1, frames), film(2, 12), share).least == least
    assert pair(film(1, 12), film(2, frames), share).least == least


#: eighths of a frame
AROUND_0 = [0, -4, 4, -2, 2, -1, 1]
AROUND_5 = [40 + place for place in AROUND_0]


@pytest.mark.parametrize(
    ("fit", "best", "looked"),
    [
        # nearer and nearer to 0.3: by halves, quarters and eighths
        (lambda at: 1 - abs(at - 0.3), 0.25, [0, -4, 4, 2, 6, 1, 3, 40, 36, 44, 34, 38, 33, 35]),
        (lambda at: 1 - abs(at + 0.3), -0.25, [0, -4, 4, -2, -6, -1, -3, 40, 36, 44, 34, 38, 33, 35]),
        # one that cannot be better
        (lambda at: 1.99 if at == 0 else 0.5 if at == 5 else 0.4, 0, [0, *AROUND_5]),
        (lambda at: 1.5 if at == 5 else None, 5, [*AROUND_0, *AROUND_5]),
        (lambda at: None, None, [*AROUND_0, *AROUND_5]),
    ],
)
def test_a_whole_offset_is_refined_to_an_eighth(
    fit: Callable[[float], float | None], best: float | None, looked: list[int]
) -> None:
    one = pair(film(1, 6), film(1, 6))
    seen: list[float] = []

    def look(offset: float) -> Likeness | None:
        seen.append(offset)
        value = fit(offset)
        return None if value is None else likeness(start=offset, change=value)

    one.coarse, one.look = lambda: [0, 5], look
    found = one.best()
    assert (found and found.start) == best
    assert sorted(at * 8 for at in seen) == sorted(looked)  # none twice


def coarse_by_definition(first: np.ndarray, second: np.ndarray, least: int) -> list[int]:
    first, second = first.astype(float), second.astype(float)
    ranked = []
    for offset in range(least - len(second), len(first) - least + 1):
        places = [(t + offset, t) for t in range(len(second)) if 0 <= t + offset < len(first)]
        frames = np.mean([correlation(first[t], second[u]) for t, u in places])
        ones = np.stack([first[t] for t, _ in places]) - first.mean(0)
        others = np.stack([second[u] for _, u in places]) - second.mean(0)
        powers = (ones**2).sum(), (others**2).sum()
        change = (ones * others).sum() / np.sqrt(powers[0] * powers[1] + 1)
        is_still = min(powers) < len(places) * F * 0.5**2
        if frames >= 0.6 and (change >= 0.4 or is_still):
            ranked.append((-(frames + change), -offset))
    return [-offset for _, offset in sorted(ranked)][:2]


def still(seed: int, frames: int, level: float) -> np.ndarray:
    """The same picture again and again, each time with other changes of `level` levels."""
    drawn = np.random.default_rng(seed).normal(0, level, (frames, F))
    return np.clip(film(seed, 1) + drawn, 0, 255).astype(np.float32)


COARSE = {
    "part": lambda: (film(1, 20), film(1, 20)[6:18]),
    "part, the other way": lambda: (film(1, 20)[6:18], film(1, 20)),
    "paler": lambda: (film(1, 20)[6:18] / 4 + 96, film(1, 20)),
    "later": lambda: (film(3, 24)[:16], film(3, 24)[5:]),
    "again and again": lambda: (np.tile(film(4, 5, 30), (4, 1)), film(4, 5, 30)),
    "still": lambda: (np.tile(film(5, 1), (12, 1)), still(5, 12, 30)),
    "both still": lambda: (still(5, 12, 0.3), still(5, 12, 0.4)),
    "moves little": lambda: (still(5, 12, 0.8), still(5, 12, 0.8)[3:]),
    "moves a little": lambda: (still(6, 12, 3), np.concatenate([still(7, 4, 3), still(6, 12, 3)])),
    "another way": lambda: (film(8, 12), film(8, 12)[::-1]),
    "another": lambda: (film(1, 12), film(2, 12)),
    "one": lambda: (film(1, 1), film(1, 1)),
}


@pytest.mark.parametrize("case", COARSE)
def test_the_two_best_whole_offsets(case: str) -> None:
    one = pair(*COARSE[case]())
    assert one.coarse() == coarse_by_definition(one.first, one.second, one.least)


def looked_at(one: Any, offset: float) -> tuple[Any, ...] | None:
    """The measures of `look`: shown, fitted, seen, start."""
    given: list[tuple[Any, ...]] = []
    one.measure = lambda *values: given.append(values) or "measured"
    found = one.look(offset)
    assert (found == "measured", found is None) == ((True, False) if given else (False, True))
    if not given:
        return None
    shown, fitted, seen, start, of = given[0]
    assert of == offset
    assert np.array_equal(fitted, alignment._fitted(shown, seen))
    return shown, fitted, seen, start


@pytest.mark.parametrize(
    ("offset", "begin", "end"),
    [
        (2, 0, 10),
        (4, 0, 8),
        (-3, 3, 10),
        (0, 0, 10),
        (2.5, 0, 9),
        (-1.25, 2, 10),
        (6, 0, 6),
        (7, 0, 5),
        (-4, 4, 10),
    ],
)
def test_a_run_is_all_that_overlaps_where_it_agrees(offset: float, begin: int, end: int) -> None:
    one = pair(np.tile(film(1, 1), (12, 1)), np.tile(film(1, 1), (10, 1)))
    assert one.least == 6
    found = looked_at(one, offset)
    assert found is not None
    shown, _, seen, start = found
    assert (start, len(seen)) == (begin, end - begin)
    places = np.arange(begin, end) + offset
    np.testing.assert_allclose(shown, alignment._at(one.first, places))
    assert np.array_equal(seen, one.second[begin:end])


def test_what_overlaps_too_little_is_not_looked_at() -> None:
    one = pair(np.tile(film(1, 1), (12, 1)), np.tile(film(1, 1), (10, 1)))
    assert [looked_at(one, offset) is None for offset in (7, 8, 7.5, -5, -6, -5.5)] == [
        False, True, True, False, True, True,
    ]  # fmt: skip
    assert looked_at(pair(film(1, 1), film(1, 1)), 0) is not None
    assert looked_at(pair(film(1, 1), film(2, 1)), 0) is None
    assert looked_at(pair(film(1, 2), film(1, 2)), 1) is not None


def with_frames(frames: np.ndarray, places: list[int], other: np.ndarray) -> np.ndarray:
    frames = frames.copy()
    frames[places] = other
    return frames


@pytest.mark.parametrize(
    ("wrong", "run"),
    [
        ([0, 1, 2], (3, 10)),
        ([8, 9], (0, 8)),
        ([4], (0, 10)),  # a single one is read over
        ([2, 3, 9], (4, 9)),
        ([4, 5], None),  # 4 frames are too few
        ([0, 1, 2, 6, 7], None),
    ],
)
def test_frames_that_disagree_end_a_run(wrong: list[int], run: tuple[int, int] | None) -> None:
    first = film(1, 10, 2)
    one = pair(first, with_frames(first, wrong, np.concatenate([film(20 + i, 1) for i in wrong])))
    found = looked_at(one, 0)
    assert (found is None) == (run is None)
    if found is not None and run is not None:
        assert (found[3], found[3] + len(found[2])) == run
        assert np.array_equal(found[2], one.second[slice(*run)])
        assert np.array_equal(found[0], one.first[slice(*run)])


@pytest.mark.parametrize(
    ("ones", "others", "is_alike"),
    [
        (0.5, 0.5, True),
        (0.5, 40, False),
        (40, 0.5, False),
        (1, 1, False),
        (1, 0.5, False),
        (0.5, 1, False),
        (2, 2, False),
    ],
)
def test_frames_in_which_there_is_nothing_to_see_agree(ones: float, others: float, is_alike: bool) -> None:
    """ones, others: levels of two patterns that have nothing in common, in frames 0 to 2."""
    down = np.tile([[1.0], [-1.0]], (GRID // 2, GRID)).ravel()
    across = np.tile([1.0, -1.0], (GRID, GRID // 2)).ravel()
    first = film(1, 10, 0)
    one = pair(first, first)
    one.first = with_frames(first, [0, 1, 2], 100 + ones * down)
    one.second = with_frames(first, [0, 1, 2], 100 + others * across)
    found = looked_at(one, 0)
    assert found is not None
    assert found[3] == (0 if is_alike else 3)


@pytest.mark.parametrize("most", [90, 1])
def test_what_is_measured(most: int) -> None:
    """most: levels of colour; less than one level in all is compared, too."""
    drawn = np.random.default_rng(3)
    first, second = film(1, 24, 6), film(1, 24, 6)[4:20]
    one = pair(first, second)
    one.speed = 2.0
    one.colours = tuple(drawn.integers(-most, most + 1, (9, COLOURS, COLOURS, 2), np.int8) for _ in "ab")
    shown, seen = film(1, 12, 6), film(1, 12, 6) + drawn.normal(0, 20, (12, F)).astype(np.float32)
    fitted = shown * 0.9 + 5
    found = one.measure(shown, fitted, seen, 3, 1.5)
    a, b = fitted.astype(float).mean(0), seen.astype(float).mean(0)
    covered = set(np.argsort(np.abs(a - b))[-(F // 10) :])
    fields = [i for i in range(F) if i not in covered]
    sides = [(i, i + GRID) for i in range(F - GRID)] + [(i, i + 1) for i in range(F) if (i + 1) % GRID]
    slopes = np.array([(a[j] - a[i], b[j] - b[i]) for i, j in sides])
    clear = np.array([(a[j] - a[i], b[j] - b[i]) for i, j in sides if not {i, j} & covered])
    assert (found.start, found.end) == (4.5 / RATE, 16.5 / RATE)
    assert found.change == pytest.approx(correlation(fitted - a, seen - b), rel=1e-4)
    assert found.scene == pytest.approx(correlation(a[fields], b[fields]), rel=1e-4)
    assert found.gradient == pytest.approx(correlation(clear[:, 0], clear[:, 1]), rel=1e-4)
    whole = min(correlation(a, b), correlation(slopes[:, 0], slopes[:, 1]))
    assert found.whole == pytest.approx(whole, rel=1e-4)
    spreads = sorted(float((of - of.mean(0)).std()) for of in (shown.astype(float), seen.astype(float)))
    assert found.moved == pytest.approx(tuple(spreads), rel=1e-4)
    assert found.spread == pytest.approx(min(shown.mean(0).std(), seen.mean(0).std()), rel=1e-4)
    # 4.5 to 16.5 frames of the first clip, 6 to 30 of the second
    colours = [of.astype(float).mean(0) for of in (one.colours[0][1:4], one.colours[1][2:8])]
    sizes = [float(np.sqrt((of**2).mean())) for of in colours]
    assert found.hue == pytest.approx((colours[0] * colours[1]).mean() / sizes[0] / sizes[1], rel=1e-4)
    assert found.tint == pytest.approx(np.sqrt(((colours[0] - colours[1]) ** 2).mean()), rel=1e-4)
    assert found.colour == pytest.approx(min(sizes), rel=1e-4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.start = 0.0


def test_grey_clips_have_no_hue() -> None:
    one = pair(film(1, 8), film(1, 8))
    one.colours = tuple(np.zeros((2, COLOURS, COLOURS, 2), np.int8) for _ in "ab")
    found = one.measure(one.first, one.first, one.second, 0, 0)
    assert (found.hue, found.tint, found.colour) == (0, 0, 0)


def test_the_best_run_of_two_cuts() -> None:
    """All steps together: 5 of 6 seconds are the same, from the second one on."""
    whole = film(11, 40, 4)
    found = alignment.compare(signature(whole[:24]), signature(whole[4:32]), 0.6)
    assert found is not None
    assert (found.start, found.end) == (1, 6)
    assert found.fit == pytest.approx(2, abs=0.01)
    assert alignment.compare(signature(whole[:24]), signature(film(12, 24)), 0.6) is None


@pytest.mark.parametrize("speed", [25 / 24, 24 / 25])
def test_a_film_at_the_speed_of_television(speed: float) -> None:
    drawn = np.random.default_rng(13)
    whole = film(13, 1) + alignment._at(drawn.normal(0, 12, (50, F)), np.arange(0, 49, 0.25))
    whole = whole.clip(0, 255).astype(np.float32)
    faster = alignment._at(whole, np.arange(0, 150 / speed) * speed)
    plain = alignment._Pair(signature(whole[:150]), signature(faster), 0.6, 1).best()
    assert plain is not None
    assert plain.change < 0.9
    found = alignment.compare(signature(whole[:150]), signature(faster), 0.6)
    assert found is not None
    assert found.fit > 1.97
