"""The looks in which a scene can be drawn: filled shapes, or their outlines as strokes of one width.

An outline lies inside the filled shape's edge, so a scene has the same place, size and motion in every style.
"""

from __future__ import annotations

import numpy as np

from ea_data.draw.scene import EXTENTS, Scene, coverage, filled, render, trajectory

#: width of a stroke, as a fraction of the frame's shorter side: 3.5 pixels of 64
STROKE = 0.055
#: the last word of a style's captions, the trigger word for a LoRA; filled shapes need none
TRIGGERS: dict[str, str] = {"outline": "inkline"}
#: distance from a shape's centre of mass to its edge, for radius 1 (of a triangle: to its sides)
_INNER = {"circle": 1.0, "square": EXTENTS["square"][0], "triangle": 1.08 * 3**0.5 / 3}


def outline(scene: Scene, height: int, width: int, num_frames: int) -> np.ndarray:
    """Coverage of each pixel by the stroke: float32 (T, H, W) in 0..1. A shape thinner than it is filled."""
    x, y, radius = trajectory(scene, num_frames)
    outer = coverage(scene.shape, x, y, radius, height, width)
    inner_radius = np.maximum(radius - STROKE / _INNER[scene.shape], 0)
    if scene.shape == "triangle":
        # both triangles have one centre of mass, a sixth of their height below the middle of their box
        drop = EXTENTS["triangle"][1] / 3 * min(height, width) / height
        y = y + drop * (radius - inner_radius)
    inner = coverage(scene.shape, x, y, inner_radius, height, width)
    inner[inner_radius == 0] = 0
    return np.clip(outer - inner, 0, 1)


STYLES = {"filled": filled, "outline": outline}


def render_style(
    scene: Scene, style: str, height: int = 64, width: int = 64, num_frames: int = 18
) -> np.ndarray:
    """`scene.render` in a style: uint8 RGB (T, H, W, 3). Raises ValueError for an unknown style, and as it does."""
    if style not in STYLES:
        raise ValueError(f"`style` must be one of {', '.join(STYLES)}, got {style!r}")
    return render(scene, height, width, num_frames, STYLES[style])


def style_caption(text: str, style: str) -> str:
    """A scene's caption in a style: with its trigger word after a comma."""
    return f"{text.rstrip('.')}, {TRIGGERS[style]}" if style in TRIGGERS else text
