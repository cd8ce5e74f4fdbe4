"""A drawn scene: its contents, sampling and rendering.

Coordinates are fractions: x of the frame's width, y of its height (downwards), radii of its shorter side.
Time runs from 0 (first frame) to 1 (last frame), so a motion always spans the clip, whatever its frame count.

Shape legend: T frames, H height, W width.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (225, 35, 35),
    "green": (35, 185, 60),
    "blue": (45, 95, 255),
    "yellow": (250, 220, 40),
    "purple": (165, 50, 205),
    "white": (248, 248, 248),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle")
SIZES: tuple[str, ...] = ("small", "large")
MOTIONS: tuple[str, ...] = ("left", "right", "up", "down", "grow", "shrink", "still")
BACKGROUNDS: dict[str, RGB] = {"black": (0, 0, 0), "gray": (112, 112, 112), "navy": (16, 26, 84)}

# Half extents of a shape of radius 1, in x and y. A square of half side 0.9 and a triangle 10% smaller than a
# circle's box keep the three alike in weight and leave the large ones room to travel.
EXTENTS: dict[str, tuple[float, float]] = {
    "circle": (1.0, 1.0),
    "square": (0.9, 0.9),
    "triangle": (1.08, 1.08 * 3**0.5 / 2),  # equilateral, point up, centred by its box
}
# Area of a shape of radius 1.
AREAS: dict[str, float] = {"circle": np.pi, "square": 4 * 0.9**2, "triangle": 1.08**2 * 3**0.5}

RADII: dict[str, float] = {"small": 0.14, "large": 0.24}
# Grow runs from the first to the second radius, shrink back. Size means the mean radius here, so it can be told
# apart: 0.14 and 0.255, jittered by RADIUS_JITTER, never meet.
GROW_RADII: dict[str, tuple[float, float]] = {"small": (0.07, 0.21), "large": (0.15, 0.36)}
RADIUS_JITTER = 0.05
POSITION_JITTER = 0.06
MIN_TRAVEL = 0.4  # of the side travelled along
MARGIN = 0.005  # between the shape's extent and the frame's edge

#: (scene, height, width, num_frames) -> float32 (T, H, W) in 0..1
Cover = Callable[["Scene", int, int, int], np.ndarray]
Split = Literal["train", "heldout", "all"]
NUM_HELDOUT = 100


class Combination(NamedTuple):
    """The five attributes that a caption can name; 756 combinations in all."""

    colour: str
    shape: str
    size: str
    motion: str
    background: str


@dataclass(frozen=True)
class Scene:
    """One drawn scene. Positions and radii are fractions (see the top of this file), linear from start to
    end.

    `phase` (0..1) is the moment that a one-frame picture of this scene shows. The shape moves from time `begin` to
    `finish`, and stands before and after.
    """

    colour: str
    shape: str
    size: str
    motion: str
    background: str
    start_x: float
    start_y: float
    end_x: float
    end_y: float
    start_radius: float
    end_radius: float
    phase: float = 0.5
    begin: float = 0.0
    finish: float = 1.0

    @property
    def combination(self) -> Combination:
        return Combination(self.colour, self.shape, self.size, self.motion, self.background)


COMBINATIONS: tuple[Combination, ...] = tuple(
    Combination(*values) for values in itertools.product(COLOURS, SHAPES, SIZES, MOTIONS, BACKGROUNDS)
)


def _choose_heldout() -> frozenset[Combination]:
    """Takes combinations in the order of a fixed hash, unless one would take the last of a pair of values.

    Each pair of attribute values keeps at least half of its combinations in training (the rarest pairs have
    18), so the held-out split asks for new combinations of known things, never for unknown things.
    """
    ranked = sorted(
        COMBINATIONS, key=lambda c: hashlib.sha256(("ea-drawn-1:" + ":".join(c)).encode()).digest()
    )
    pairs = {c: list(itertools.combinations(enumerate(c), 2)) for c in COMBINATIONS}
    total = Counter(itertools.chain.from_iterable(pairs.values()))
    left = total.copy()
    chosen: list[Combination] = []
    for combination in ranked:
        if len(chosen) == NUM_HELDOUT:
            break
        if all(2 * (left[pair] - 1) >= total[pair] for pair in pairs[combination]):
            chosen.append(combination)
            left.subtract(pairs[combination])
    return frozenset(chosen)


HELDOUT_COMBINATIONS: frozenset[Combination] = _choose_heldout()
_SPLITS: dict[str, tuple[Combination, ...]] = {
    "train": tuple(c for c in COMBINATIONS if c not in HELDOUT_COMBINATIONS),
    "heldout": tuple(c for c in COMBINATIONS if c in HELDOUT_COMBINATIONS),
    "all": COMBINATIONS,
}


def split_combinations(split: str) -> tuple[Combination, ...]:
    """The combinations of a split, in a fixed order. Raises ValueError for an unknown split."""
    if split not in _SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(_SPLITS)}, got {split!r}")
    return _SPLITS[split]


def sample_scene(seed: int, index: int, split: Split | str = "train") -> Scene:
    """Scene number `index` of the set with this seed: a pure function of its arguments.

    Combinations are uniform over the split. Raises ValueError for a negative seed or index and an unknown
    split.
    """
    combinations = split_combinations(split)
    if seed < 0 or index < 0:
        raise ValueError(f"`seed` and `index` must be 0 or more, got {seed} and {index}")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    return place(combinations[int(rng.integers(len(combinations)))], rng)


def place(combination: Combination, rng: np.random.Generator) -> Scene:
    """A scene of this combination with seeded jitter of start, perpendicular position, speed and radius.

    The shape stays inside the frame throughout; left, right, up and down travel at least MIN_TRAVEL of their
    side.
    """
    _, shape, size, motion, _ = combination
    jitter_x, jitter_y, jitter_radius, jitter_start, jitter_end, phase = (float(u) for u in rng.random(6))
    scale = 1 + RADIUS_JITTER * (2 * jitter_radius - 1)
    radii = GROW_RADII[size] if motion in ("grow", "shrink") else (RADII[size], RADII[size])
    first, last = (radius * scale for radius in (radii if motion != "shrink" else reversed(radii)))
    x = 0.5 + POSITION_JITTER * (2 * jitter_x - 1)
    y = 0.5 + POSITION_JITTER * (2 * jitter_y - 1)
    start, end = [x, y], [x, y]
    if motion in ("left", "right", "up", "down"):
        axis = 0 if motion in ("left", "right") else 1
        low = EXTENTS[shape][axis] * first + MARGIN
        slack = min(POSITION_JITTER, (1 - 2 * low - MIN_TRAVEL) / 2)
        assert slack > 0, f"a {size} {shape} has no room to move {motion}"
        near, far = low + slack * jitter_start, 1 - low - slack * jitter_end
        start[axis], end[axis] = (near, far) if motion in ("right", "down") else (far, near)
    else:
        phase = 0.5  # a picture of a growing shape shows its mean radius, which is what its size means
    return Scene(*combination, start[0], start[1], end[0], end[1], first, last, phase)


def trajectory(scene: Scene, num_frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre x, centre y and radius of every frame, each (T,) float64, in fractions."""
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be 1 or more, got {num_frames}")
    time = np.linspace(0.0, 1.0, num_frames) if num_frames > 1 else np.array([scene.phase])
    if (scene.begin, scene.finish) != (0.0, 1.0):
        time = np.clip((time - scene.begin) / (scene.finish - scene.begin), 0.0, 1.0)
    return (
        scene.start_x + (scene.end_x - scene.start_x) * time,
        scene.start_y + (scene.end_y - scene.start_y) * time,
        scene.start_radius + (scene.end_radius - scene.start_radius) * time,
    )


def coverage(
    shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Coverage of each pixel by a shape: float32 (T, H, W) in 0..1.

    x, y, radius: (T,) in fractions. Squares are exact (a product of two overlaps); circles and triangles come
    from their signed distance in pixels, clipped to one pixel around the edge.
    """
    side = min(height, width)
    r = (np.asarray(radius, np.float32) * side)[:, None]  # T 1, pixels
    half = np.float32(0.5)
    centre_x, centre_y = np.asarray(x, np.float32) * width, np.asarray(y, np.float32) * height
    dx = (np.arange(width, dtype=np.float32) + half) - centre_x[:, None]  # T W
    dy = (np.arange(height, dtype=np.float32) + half) - centre_y[:, None]  # T H
    if shape == "circle":
        distance = np.sqrt((dx * dx)[:, None, :] + (dy * dy)[:, :, None])  # T H W
        return np.clip((r + half)[:, :, None] - distance, 0, 1)
    if shape == "square":
        a = EXTENTS["square"][0] * r
        across = np.clip(np.minimum(dx + half, a) - np.maximum(dx - half, -a), 0, 1)  # T W
        down = np.clip(np.minimum(dy + half, a) - np.maximum(dy - half, -a), 0, 1)  # T H
        return down[:, :, None] * across[:, None, :]  # T H W
    if shape == "triangle":
        half_height = np.float32(EXTENTS["triangle"][1]) * r  # T 1
        # Both slanted edges meet at the apex (0, -half_height); the outward normal of the right one is
        # (cos 30, -sin 30), and |dx| makes the left one the same.
        across = np.float32(3**0.5 / 2) * np.abs(dx)  # T W
        down = half * (dy + half_height)  # T H
        slant = across[:, None, :] - down[:, :, None]  # T H W
        above_base = np.clip(half_height + half - dy, 0, 1)  # T H
        return np.clip(half - slant, 0, 1) * above_base[:, :, None]
    raise ValueError(f"`shape` must be one of {', '.join(SHAPES)}, got {shape!r}")


def filled(scene: Scene, height: int, width: int, num_frames: int) -> np.ndarray:
    """Coverage of each pixel by the filled shape: float32 (T, H, W) in 0..1."""
    return coverage(scene.shape, *trajectory(scene, num_frames), height, width)


def render(
    scene: Scene, height: int = 64, width: int = 64, num_frames: int = 18, cover: Cover = filled
) -> np.ndarray:
    """Draws a scene, anti-aliased: uint8 RGB (T, H, W, 3) in 0..255. One frame shows the moment
    `scene.phase`.

    cover: the coverage of each pixel. Raises ValueError for sizes below 16 pixels (the shapes could not be told
    apart) and num_frames below 1.
    """
    if height < 16 or width < 16:
        raise ValueError(f"`height` and `width` must be 16 or more, got {height} and {width}")
    levels = cover(scene, height, width, num_frames)  # T H W
    levels *= np.float32(255)
    levels += np.float32(0.5)
    # One look-up instead of a float blend of three channels: twice as fast, and exact to half a level.
    low = np.asarray(BACKGROUNDS[scene.background], np.float32)
    high = np.asarray(COLOURS[scene.colour], np.float32)
    step = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    palette = np.rint(low + (high - low) * step).astype(np.uint8)  # 256 3
    return palette[levels.astype(np.uint8)]  # T H W 3
