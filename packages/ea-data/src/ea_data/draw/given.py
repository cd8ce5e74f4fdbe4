"""Scenes whose first frames, or first and last frames, are given: they teach a model to continue and to join.

A *continued* clip starts anywhere and at any moment of its motion: the shape may still wait, be on its way, or have
arrived, where it then stays. A *bridged* clip stands, moves to another place of the frame in its middle, and stands
again, whatever its caption says. Neither is a sample of its caption alone, so dataset.json marks them (`given`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ea_data.draw.scene import (
    EXTENTS,
    GROW_RADII,
    MARGIN,
    RADII,
    RADIUS_JITTER,
    Combination,
    Scene,
    place,
    split_combinations,
)

Given = Literal["start", "ends"]
#: frames, and so the speed, of a motion over its whole way, as in the clips of `scene.place`
WAY_FRAMES = 18
#: frames of a bridged clip: a chunk of MagViT that is given, one to make, one that is given
BRIDGE_FRAMES = 27
#: share of the continued clips in which the shape still waits; in which it has arrived
_WAITING, _ARRIVED = 0.4, 0.2
#: a waiting shape has at least this share of its way before it
_LEAST_WAY = 0.35


def sample_given(seed: int, index: int, split: str, given: Given, num_frames: int) -> Scene:
    """Scene number `index` with given frames: a pure function of its arguments.

    num_frames: of its clip. Raises ValueError for an unknown split.
    """
    combinations = split_combinations(split)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, 0x61])))
    combination = combinations[int(rng.integers(len(combinations)))]
    return _continued(combination, rng, num_frames) if given == "start" else _bridged(combination, rng)


def _continued(combination: Combination, rng: np.random.Generator, num_frames: int) -> Scene:
    scene = place(combination, rng)
    kind, so_far, delay, across = (float(u) for u in rng.random(4))
    way = (WAY_FRAMES - 1) / max(num_frames - 1, 1)  # the whole way in units of this clip's length
    if kind < _ARRIVED:
        done, begin = 1.0, 0.0
    elif kind < _ARRIVED + _WAITING:
        done, begin = so_far * (1 - _LEAST_WAY), (2 + 7 * delay) / max(num_frames - 1, 1)
    else:
        done, begin = so_far, 0.0
    at = {name: _mix(scene, name, done) for name in ("x", "y", "radius")}
    end = {"x": scene.end_x, "y": scene.end_y}
    # across its way a shape may be anywhere: the motion before may have brought it there
    largest = max(scene.start_radius, scene.end_radius)
    moving = {"left": "x", "right": "x", "up": "y", "down": "y"}.get(scene.motion)
    shares = {"x": across, "y": across if moving else float(rng.random())}
    for axis, name in enumerate(shares):
        if name != moving:
            at[name] = end[name] = _anywhere(scene.shape, axis, largest, shares[name])
    return replace(
        scene,
        start_x=at["x"],
        start_y=at["y"],
        start_radius=at["radius"],
        end_x=end["x"],
        end_y=end["y"],
        begin=begin,
        finish=begin + max(way * (1 - done), 1e-6),
    )


def _bridged(combination: Combination, rng: np.random.Generator) -> Scene:
    scene = place(combination, rng)
    radii = [_radius(combination, rng) for _ in range(2)]
    if combination.motion not in ("grow", "shrink"):
        radii[1] = radii[0]
    x, y = ([_anywhere(scene.shape, axis, r, float(rng.random())) for r in radii] for axis in (0, 1))
    third = (BRIDGE_FRAMES // 3 - 1) / (BRIDGE_FRAMES - 1)
    return replace(
        scene,
        start_x=x[0],
        end_x=x[1],
        start_y=y[0],
        end_y=y[1],
        start_radius=radii[0],
        end_radius=radii[1],
        begin=third,
        finish=1 - third,
    )


def _radius(combination: Combination, rng: np.random.Generator) -> float:
    jitter = 1 + RADIUS_JITTER * (2 * float(rng.random()) - 1)
    if combination.motion in ("grow", "shrink"):
        low, high = GROW_RADII[combination.size]
        return (low + (high - low) * float(rng.random())) * jitter
    return RADII[combination.size] * jitter


def _mix(scene: Scene, name: str, done: float) -> float:
    start, end = getattr(scene, f"start_{name}"), getattr(scene, f"end_{name}")
    return start + (end - start) * done


def _anywhere(shape: str, axis: int, radius: float, share: float) -> float:
    """A coordinate at which the whole shape is within the frame; share: 0..1 of the room there is."""
    low = EXTENTS[shape][axis] * radius + MARGIN
    return low + max(1 - 2 * low, 0.0) * share
