"""Phases of a plan: what is counted once for all videos, and what for each."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ea_runtime.models.geometry import Geometry
from ea_runtime.planning.calibration import Calibration
from ea_runtime.planning.forecast import Way
from ea_runtime.planning.parts import Part
from ea_runtime.planning.phases import Planner
from ea_runtime.planning.setting import Setting

VAE = {"block_out_channels": [128, 256, 512, 512]}
V3 = {"in_channels": 12, "out_channels": 8}
PARTS = {
    "vae": Part("vae", VAE, 200_000_000),
    "denoiser": Part("denoiser", V3, 1_400_000_000),
    "text": Part(
        "text", {"d_model": 64, "num_heads": 2, "d_kv": 32, "d_ff": 128, "num_layers": 2}, 1_000_000
    ),
}
SETTING = Setting(frames=18, height=256, width=256, steps=2)


@pytest.mark.parametrize("has_known", [False, True])
def test_known_frames_are_encoded_one_video_after_the_other(has_known: bool) -> None:
    planner = Planner(PARTS, Geometry.from_configs(VAE, V3), "cuda", "bfloat16", Calibration())
    one, four = (
        planner.encoding(replace(SETTING, batch=batch, has_known=has_known), Way("all", batch=batch))
        for batch in (1, 4)
    )
    assert four.device_bytes == one.device_bytes
    assert four.host_bytes - one.host_bytes == 3 * 8 * 4 * 18 * 256 * 256
    # what stands for no known frames is of one colour, and encoded once for all
    assert four.flops == (4 if has_known else 1) * one.flops
