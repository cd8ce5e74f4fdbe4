"""The numbers that the comparison of two signatures is made of, against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest

from ea_data.filter import alignment
from ea_data.media.signature import COLOURS, GRID

F = GRID * GRID


def film(seed: int, frames: int, steps: float = 12) -> np.ndarray:
    """Pictures that drift into each other: float32 (T, F), levels 0 to 255."""
    drawn = np.random.default_rng(seed)
    still = np.kron(drawn.normal(0, 45, (GRID // 2, GRID // 2)), np.ones((2, 2))).ravel()
    moving = drawn.normal(0, steps, (frames, F)).cumsum(0)
    return np.clip(128 + still + moving, 0, 255).astype(np.float32)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.astype(float).ravel(), other.astype(float).ravel())[0, 1])


def test_sums_along_diagonals() -> None:
    pairs = np.random.default_rng(1).normal(0, 1, (4, 6))
    offsets = np.arange(-5, 4)
    wanted = [sum(pairs[t, u] for t in range(4) for u in range(6) if t - u == offset) for offset in offsets]
    np.testing.assert_allclose(alignment._along_diagonals(pairs, offsets), wanted)
    np.testing.assert_allclose(alignment._along_diagonals(pairs, offsets[2:4]), wanted[2:4])


def fitted_by_definition(shown: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Least squares over the frame, its slopes, and its slopes times the distance from the middle; then within 0.3."""
    grid = shown.reshape(-1, GRID, GRID).astype(float)
    middle = (GRID - 1) / 2
    away = (np.arange(GRID) - middle) / middle
    down, across = np.gradient(grid, axis=1), np.gradient(grid, axis=2)
    parts = [grid, across, down, across * away, down * away[:, None], np.ones_like(grid)]
    columns = np.stack([part.ravel() for part in parts], 1)
    factors = np.linalg.lstsq(columns, seen.ravel().astype(float), rcond=None)[0]
    warp = factors[1:5] / factors[0]
    if (np.abs(warp) > 0.3).any():
        moved = columns[:, 0] + columns[:, 1:5] @ warp.clip(-0.3, 0.3)
        columns = np.stack([moved, np.ones(len(moved))], 1)
        factors = np.linalg.lstsq(columns, seen.ravel().astype(float), rcond=None)[0]
    return (columns @ factors).reshape(seen.shape)


def slopes_of(frames: np.ndarray) -> dict[str, np.ndarray]:
    grid = frames.reshape(-1, GRID, GRID)
    away = np.linspace(-1, 1, GRID)
    down, across = np.gradient(grid, axis=1), np.gradient(grid, axis=2)
    found = {"down": down, "right": across, "higher": down * away[:, None], "wider": across * away}
    return {name: part.reshape(frames.shape) for name, part in found.items()}


@pytest.mark.parametrize("way", ["down", "right", "higher", "wider"])
@pytest.mark.parametrize("shift", [0.0, 0.2, -0.2, 0.4, -0.4])
def test_a_clip_is_fitted_in_brightness_contrast_shift_and_size(way: str, shift: float) -> None:
    shown = film(1, 3)
    moved = shown + shift * slopes_of(shown)[way]
    seen = (0.7 * moved + 8).astype(np.float32)
    found = alignment._fitted(shown, seen)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, fitted_by_definition(shown, seen), atol=0.05)
    if abs(shift) < 0.3:
        np.testing.assert_allclose(found, seen, atol=0.05)
    else:  # a shift that large is not taken back
        assert np.abs(found - seen).max() > 1


def test_black_frames_are_fitted_by_brightness() -> None:
    found = alignment._fitted(np.zeros((2, F), np.float32), np.full((2, F), 50, np.float32))
    np.testing.assert_allclose(found, np.full((2, F), 50), atol=0.01)


def test_factors_of_columns() -> None:
    drawn = np.random.default_rng(1)
    parts = drawn.normal(0, 100, (50, 3)).astype(np.float32)
    wanted = parts @ np.array([2, -0.5, 0.25], np.float32)
    found = alignment._solved(parts, wanted)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [2, -0.5, 0.25], rtol=1e-4)
    # a column of nothing, and how much less the others are taken for: a millionth, and a thousandth of a level
    np.testing.assert_allclose(alignment._solved(parts * [0, 1, 1], wanted)[0], 0)
    tall = alignment._solved(np.full((1, 1), 1000, np.float32), np.full(1, 1000, np.float32))
    np.testing.assert_allclose(tall, [1 / (1 + 1e-6)], rtol=1e-7)
    low = alignment._solved(np.ones((1, 1), np.float32), np.ones(1, np.float32))
    np.testing.assert_allclose(low, [1 / 1.001001], rtol=1e-6)


def test_nearly_equal_columns_are_kept_apart_in_float64() -> None:
    parts = np.array([[1000, 1000], [1000, 1001], [1000, 999]], np.float32)
    squares = (parts.T @ parts).astype(float)
    squares += np.diag(np.diag(squares) * 1e-6 + 1e-3)
    wanted = np.array([1000, 1010, 995], np.float32)
    exact = np.linalg.solve(squares, (parts.T @ wanted).astype(float))
    np.testing.assert_allclose(alignment._solved(parts, wanted), exact, rtol=1e-6)


def test_frames_between_frames() -> None:
    frames = film(1, 3)
    found = alignment._at(frames, np.array([0, 0.25, 1, 1.5, 2]))
    assert found.dtype == np.float32
    a, b, c = frames
    np.testing.assert_allclose(found, [a, 0.75 * a + 0.25 * b, b, (b + c) / 2, c], rtol=1e-5)


@pytest.mark.parametrize(
    ("agrees", "run"),
    [
        ("", (0, 0)),
        ("....", (0, 0)),
        ("###", (0, 3)),
        ("#.#..##", (0, 3)),
        (".##", (1, 3)),  # not read over at the edges
        ("##.", (0, 2)),
        ("#..##.", (3, 5)),
        ("##..##", (0, 2)),  # the first of equals
        ("#..####", (3, 7)),
        ("#.#", (0, 3)),
        ("##.#.", (0, 4)),
        (".#.##", (1, 5)),
        ("#", (0, 1)),
    ],
)
def test_the_longest_run(agrees: str, run: tuple[int, int]) -> None:
    given = np.array([one == "#" for one in agrees], bool)
    assert alignment._longest(given) == run
    assert "".join(".#"[int(one)] for one in given) == agrees


def test_frames_are_made_of_mean_0_and_length_1() -> None:
    frames = np.concatenate([film(1, 2), np.full((1, F), 7, np.float32)])
    found = alignment._normal(frames)
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 0], rtol=1e-5)
    low = film(1, 1) * 1e-5  # shorter than 1, and seen all the same
    np.testing.assert_allclose(np.linalg.norm(alignment._normal(low), axis=1), 1, rtol=1e-4)


def test_correlations() -> None:
    one, other = film(1, 2), film(2, 2)
    assert alignment._correlation(one, other) == pytest.approx(correlation(one, other), abs=1e-5)
    assert alignment._correlation(one * 1e-4, one * 1e-4 + 5) == pytest.approx(1, abs=1e-3)
    assert alignment._correlation(one, np.full_like(one, 3)) == 0


def test_differences_of_neighbours_and_which_of_them_are_seen() -> None:
    frame, is_seen = film(1, 1)[0], np.random.default_rng(1).random(F) > 0.3
    places = [(i, i + GRID) for i in range(F - GRID)] + [(i, i + 1) for i in range(F) if (i + 1) % GRID]
    assert alignment._gradient(frame).tolist() == [frame[j] - frame[i] for i, j in places]
    assert alignment._sides(is_seen).tolist() == [bool(is_seen[i] and is_seen[j]) for i, j in places]


@pytest.mark.parametrize(
    ("start", "end", "seconds"),
    [
        (0, 8, slice(0, 2)),
        (5.9, 6.1, slice(1, 2)),
        (6.1, 14.1, slice(2, 4)),
        (4, 4, slice(1, 2)),
        (30, 40, slice(4, 5)),
        (0, 99, slice(0, 5)),
    ],
)
def test_the_mean_colour_of_a_run(start: float, end: float, seconds: slice) -> None:
    colour = np.random.default_rng(1).integers(-99, 99, (5, COLOURS, COLOURS, 2), np.int8)
    wanted = colour[seconds].astype(float).mean(0).ravel()
    np.testing.assert_allclose(alignment._mean_colour(colour, start, end), wanted, rtol=1e-5)
