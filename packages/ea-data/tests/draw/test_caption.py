from __future__ import annotations

import numpy as np
import pytest

from ea_data.draw.caption import CLIP_TEMPLATES, DEFAULT_BACKGROUND, caption, parse_prompt, sample_prompts
from ea_data.draw.scene import HELDOUT_COMBINATIONS, Combination, place, sample_scene, split_combinations


def _said(scene, asked):
    return {
        name: value
        for name, value in zip(Combination._fields, scene.combination, strict=True)
        if name in asked
    }


def test_captions_read_back_as_their_scene():
    for index in range(2000):
        scene = sample_scene(1, index, "all")
        text = caption(scene, 1, index)
        asked = parse_prompt(text)
        assert asked == _said(scene, asked), text
        assert {"colour", "shape", "motion"} <= asked.keys(), text
        if "background" not in asked:
            assert scene.background == DEFAULT_BACKGROUND, text


def test_picture_captions_say_nothing_of_motion():
    for index in range(500):
        scene = sample_scene(1, index, "all")
        text = caption(scene, 1, index, is_picture=True)
        asked = parse_prompt(text)
        assert "motion" not in asked, text
        assert asked == _said(scene, asked), text


def test_wording_varies_and_repeats_with_the_seed():
    assert len(set(CLIP_TEMPLATES)) >= 12
    scene = sample_scene(0, 0)
    texts = [caption(scene, 0, index) for index in range(200)]
    assert texts == [caption(scene, 0, index) for index in range(200)]
    assert len(set(texts)) > 60


def test_the_readmes_prompt_is_a_caption_of_the_set():
    scene = place(Combination("red", "circle", "large", "right", "black"), np.random.default_rng(0))
    assert scene.combination in split_combinations("train")
    assert "a red circle moves right" in {caption(scene, 0, index) for index in range(4000)}


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("a red circle moves right", {"colour": "red", "shape": "circle", "motion": "right"}),
        (
            "A Green Triangle falls on a navy blue backdrop",
            {"colour": "green", "shape": "triangle", "motion": "down", "background": "navy"},
        ),
        ("the group's big ball doesn't move", {"size": "large", "shape": "circle", "motion": "still"}),
        (
            "a small red circle gets larger",
            {"size": "small", "colour": "red", "shape": "circle", "motion": "grow"},
        ),
        ("blue square moves from right to left", {"colour": "blue", "shape": "square", "motion": "left"}),
        ("a pink circle on a white background", {"shape": "circle"}),
        ("", {}),
    ],
)
def test_prompts_in_other_words(text, asked):
    assert parse_prompt(text) == asked


def test_prompts_name_everything_and_are_held_out():
    texts = sample_prompts(100, seed=0)
    assert texts == sample_prompts(100, seed=0)
    assert texts != sample_prompts(100, seed=1)
    assert texts[:10] == sample_prompts(10, seed=0)
    combinations = [Combination(**parse_prompt(text)) for text in texts]
    assert set(combinations) == HELDOUT_COMBINATIONS
    assert len(sample_prompts(130)) == 130
    assert Combination(**parse_prompt(sample_prompts(1, split="train")[0])) in split_combinations("train")


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`num_prompts` must be 1 or more"):
        sample_prompts(0)
    with pytest.raises(ValueError, match="`split` must be one of"):
        sample_prompts(1, split="none")
    with pytest.raises(ValueError, match="must be 0 or more"):
        caption(sample_scene(0, 0), -1, 0)
