from __future__ import annotations

from typing import Any

from torch import nn

from ea_lora.keys import find_targets, is_target


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
    assert is_target(nn.Conv3d(4, 4, 1))
    assert not is_target(nn.Conv2d(4, 4, 1, groups=2))
    assert not is_target(nn.Conv2d(4, 4, (1, 3)))
