"""Outlined shapes: with the edge of a filled one, hollow inside, and judged by the check as well as filled ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ea_data.draw.check import check_clip, measure, summarise
from ea_data.draw.hull import core_fill, fill_hulls
from ea_data.draw.scene import COLOURS, SHAPES, Scene, coverage, render, sample_scene
from ea_data.draw.style import STROKE, STYLES, outline, render_style, style_caption
from ea_data.draw.write import DrawConfig, write_set

ATTRIBUTES = ("colour", "shape", "size", "motion", "background")


def still(shape: str, radius: float = 0.24) -> Scene:
    return Scene("red", shape, "large", "still", "black", 0.5, 0.5, 0.5, 0.5, radius, radius)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 128)])
def test_a_stroke_of_one_width_inside_the_edge(shape: str, height: int, width: int) -> None:
    stroke = outline(still(shape), height, width, 1)[0]
    x, y, radius = (np.array([value]) for value in (0.5, 0.5, 0.24))
    filled = coverage(shape, x, y, radius, height, width)[0]
    assert (stroke <= filled + 1e-6).all()
    # the outer edge is that of the filled shape: every row and column starts with it
    for axis in (0, 1):
        assert np.allclose(stroke.max(axis), filled.max(axis), atol=0.35)
    perimeter = (
        {"circle": 2 * np.pi, "square": 8 * 0.9, "triangle": 6 * 1.08}[shape] * 0.24 * min(height, width)
    )
    thickness = STROKE * min(height, width)
    corners = {"circle": np.pi, "square": 4, "triangle": 3 * 3**0.5}[shape] * thickness**2
    assert stroke.sum() == pytest.approx(perimeter * thickness - corners, rel=0.03)


def test_filled_is_what_render_draws() -> None:
    scene = sample_scene(0, 3)
    assert np.array_equal(render_style(scene, "filled"), render(scene))
    with pytest.raises(ValueError, match="`style` must be one of filled, outline, got 'dotted'"):
        render_style(scene, "dotted")
    with pytest.raises(ValueError, match="must be 16 or more, got 8 and 64"):
        render_style(scene, "outline", 8)


def test_the_check_reads_outlines_and_tells_the_style() -> None:
    items = {style: [] for style in STYLES}
    for index in range(24):
        scene = sample_scene(11, index, "all")
        asked = dict(zip(ATTRIBUTES, scene.combination, strict=True))
        for style in STYLES:
            items[style].append(check_clip("", render_style(scene, style), str(index), asked))
    for style, checked in items.items():
        report = summarise(checked)
        assert report.counts["all"] == (24, 24), [item for item in checked if not all(item.right.values())]
        assert report.fill == pytest.approx(1.0 if style == "filled" else 0.06, abs=0.08)
        assert all((item.verdict.fill > 0.5) == (style == "filled") for item in checked)


@pytest.mark.parametrize("shape", SHAPES)
def test_blurred_and_noisy_outlines(shape: str) -> None:
    frames = render_style(still(shape), "outline", num_frames=6).astype(float)
    blurred = (
        frames
        + np.roll(frames, 1, 1)
        + np.roll(frames, -1, 1)
        + np.roll(frames, 1, 2)
        + np.roll(frames, -1, 2)
    ) / 5
    noisy = blurred + np.random.default_rng(0).normal(0, 10, frames.shape)
    verdict = measure(noisy.clip(0, 255).round().astype(np.uint8))
    assert (verdict.shape, verdict.colour, verdict.motion) == (shape, "red", "still")
    assert verdict.fill < 0.3


def test_hulls_fill_rings_and_leave_the_rest() -> None:
    ring = outline(still("circle"), 64, 64, 1)
    x = y = np.array([0.5])
    filled = coverage("circle", x, y, np.array([0.24]), 64, 64)
    assert np.abs(fill_hulls(ring, ring > 0.5) - filled).sum() < 0.02 * filled.sum()
    assert core_fill(ring, ring > 0.5)[0] < 0.01
    assert core_fill(filled, filled > 0.5)[0] > 0.99
    assert np.isnan(core_fill(ring, np.zeros_like(ring, bool))[0])


def test_captions_end_in_the_trigger_word() -> None:
    assert style_caption("a red circle. the background is navy.", "outline") == (
        "a red circle. the background is navy, inkline"
    )
    assert style_caption("a red circle", "filled") == "a red circle"


def test_a_set_in_a_new_look(tmp_path: Path) -> None:
    write_set(tmp_path / "set", DrawConfig(num_clips=0, num_pictures=3, style="outline"))
    rows = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert len(rows) == 3
    assert all(row["text"].endswith(", inkline") and row["type"] == "image" for row in rows)
    truth = [json.loads(line) for line in (tmp_path / "set" / "truth.jsonl").read_text().splitlines()]
    assert {line["style"] for line in truth} == {"outline"}
    assert set(COLOURS) >= {line["scene"]["colour"] for line in truth}
