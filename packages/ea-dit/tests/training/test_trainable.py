from __future__ import annotations

import pytest

from ea_dit.training.frame_crop import crop_lengths, draw_length
from ea_dit.training.trainable import choose

NAMES = [
    "pos_embed.proj.weight",
    "transformer_blocks.0.attn1.to_q.weight",
    "transformer_blocks.0.attn_temporal.x.weight",
    "transformer_blocks.11.ff.net.2.weight",
    "scale_shift_table",
    "proj_out.weight",
]


def test_each_stage_by_default() -> None:
    assert list(choose(NAMES, "finetune")) == NAMES
    assert list(choose(NAMES, "align")) == [name for name in NAMES if "temporal" not in name]
    assert list(choose(NAMES, "motion")) == ["transformer_blocks.0.attn_temporal.x.weight"]


def test_a_dot_is_everything_as_in_easyanimate() -> None:
    assert list(choose(NAMES, "finetune", ["."])) == NAMES


def test_low_gives_way_to_patterns_but_not_to_the_stages_own_choice() -> None:
    both = choose(NAMES, "finetune", ["proj_out"], ["proj", "blocks.11"])
    assert both == {
        "pos_embed.proj.weight": True,
        "transformer_blocks.11.ff.net.2.weight": True,
        "proj_out.weight": False,
    }
    own = choose(NAMES, "finetune", low=["blocks.11"])
    assert [name for name, is_low in own.items() if is_low] == ["transformer_blocks.11.ff.net.2.weight"]
    assert list(own) == NAMES


@pytest.mark.parametrize(
    ("stage", "pattern", "expected"),
    [
        ("finetune", "transformer_block.0.attn1", "near: transformer_blocks"),
        ("finetune", "zzz", "names begin with pos_embed, transformer_blocks, scale_shift_table, proj_out"),
        ("align", "attn_temporal", "matches no parameter that stage 'align' may train"),
    ],
)
def test_a_pattern_that_matches_nothing_names_near_ones(stage: str, pattern: str, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        choose(NAMES, stage, [pattern])
    assert expected in str(caught.value)


def test_lengths_of_a_cropped_clip() -> None:
    assert crop_lengths(144, 9) == [1, *range(9, 145, 9)]
    assert crop_lengths(144, 8) == [1, *range(8, 145, 8)]
    assert crop_lengths(9, 9) == [1, 9]
    assert crop_lengths(20, 9) == [1, 9, 18, 20]
    assert crop_lengths(1, 9) == [1]
    assert draw_length(1, 9, 3) == 1


def test_nine_batches_in_ten_keep_the_longest() -> None:
    drawn = [draw_length(144, 9, seed) for seed in range(20_000)]
    assert drawn == [draw_length(144, 9, seed) for seed in range(20_000)]
    shares = {length: drawn.count(length) / len(drawn) for length in crop_lengths(144, 9)}
    assert shares[144] == pytest.approx(0.9, abs=0.01)
    for length, share in shares.items():
        if length != 144:
            assert share == pytest.approx(0.1 / 16, abs=0.003), length
