from __future__ import annotations

from typing import Any

from torch import nn

from ea_lora.keys import LAYOUTS, PARTS, find_targets, flatten, is_target


def test_targets_of_a_network(small: Any) -> None:
    denoiser = small.make_pipe().denoiser
    expected = {"proj_in", "mix", "proj_out"}
    expected |= {f"blocks.{i}.{name}" for i in (0, 1) for name in ("to_q", "net.0", "net.1")}
    assert set(find_targets(denoiser)) == expected  # the 3x3 convolution and the norm are none
    assert set(find_targets(denoiser, include=["*.to_[qkv]"])) == {"blocks.0.to_q", "blocks.1.to_q"}
    assert set(find_targets(denoiser, exclude=["blocks.*", "mix"])) == {"proj_in", "proj_out"}


def test_modules_whose_hooks_would_be_dead_are_no_targets() -> None:
    # multi-head attention reads out_proj.weight and never calls the module
    assert find_targets(nn.MultiheadAttention(8, 2)) == {}
    heads = nn.MultiheadAttention(8, 2).out_proj
    others = (
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, (1, 3)),
        nn.Conv2d(4, 4, 1, padding=1, padding_mode="reflect"),
        nn.LayerNorm(4),
    )
    assert [is_target(module) for module in (heads, *others)] == [False] * 5
    assert find_targets(nn.Linear(4, 4)) == {}  # a network itself has no name that a file could give
    for module in (nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv3d(4, 4, 1)):
        assert is_target(module) is True


def test_words_that_files_and_models_share() -> None:
    """Each is in files or on the command line: none may be lost."""
    assert PARTS == ("denoiser", "text")
    assert LAYOUTS == ("kohya", "diffusers", "peft", "comfyui")
    assert flatten("blocks.0.attn1.to_q") == "blocks_0_attn1_to_q"
