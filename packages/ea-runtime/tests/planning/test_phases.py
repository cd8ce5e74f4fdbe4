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


@pytest.mark.parametrize(
    ("setting", "pieces"),
    [
        ({"frames": 27}, 2),  # what is made, and its mask
        ({"frames": 27, "windows": 3}, 4),  # each window's, and what it carries on from the one before
        ({"frames": 27, "has_known": True}, 9),  # a video, its mask, and what the denoiser sees of it
        ({"frames": 27, "has_known": True, "known_pictures": 1}, 5),
        ({"frames": 27, "has_known": True, "known_pictures": 2}, 8),
        ({"frames": 9, "has_known": True, "known_pictures": 2}, 3),
    ],
)
def test_pieces_of_one_colour_are_encoded_once(setting: dict[str, int], pieces: int) -> None:
    planner = Planner(PARTS, Geometry.from_configs(VAE, V3), "cuda", "bfloat16", Calibration())
    found = planner.encoding(replace(SETTING, **setting), Way("all"))  # pyright: ignore[reportArgumentType]
    single = planner.encoding(replace(SETTING, frames=9, has_known=True), Way("all"))
    assert found.flops == pieces / 3 * single.flops


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_each_phase_touches_what_no_earlier_one_held(kind: str) -> None:
    rates = {"imports": 1.0, "disk": 1e9, "touched": 1e9}
    calibration = Calibration(rates=rates, ready_bytes=1_000_000)
    planner = Planner(PARTS, Geometry.from_configs(VAE, V3), kind, "float32", calibration)
    phases = planner.phases(SETTING, Way("all"))
    touched = [phase.work.get("touched", 0) for phase in phases]
    if kind == "cuda":
        assert not any(touched)
        return
    highest = planner.program_bytes(SETTING)
    for phase, size in zip(phases, touched, strict=True):
        if phase.name == "text":
            highest += (
                1_000_000 + 4_000_000
            )  # what loading leaves ready; its weights are pages of their files
        assert size == max(phase.host_bytes - highest, 0)
        highest = max(highest, phase.host_bytes)
        loading = 1.0 + phase.disk_bytes / 1e9 if phase.name == "loading" else 0.0
        assert phase.seconds == pytest.approx(size / 1e9 + loading)
    assert sum(touched) == highest - planner.program_bytes(SETTING) - 5_000_000
    assert sum(size > 0 for size in touched) >= 3


def test_only_a_videos_file_has_a_codec_to_open() -> None:
    planner = Planner(PARTS, Geometry.from_configs(VAE, V3), "cpu", "float32", Calibration())
    found = {
        kind: planner.decoding(replace(SETTING, kind=kind), Way("all")).work.get("writers", 0)
        for kind in ("mp4", "png", None)
    }
    assert found == {"mp4": 1, "png": 0, None: 0}


def test_weights_that_wait_are_copied_to_new_memory_in_each_pass() -> None:
    parts = PARTS | {"denoiser": replace(PARTS["denoiser"], waiting=1_000_000_000)}
    planner = Planner(parts, Geometry.from_configs(VAE, V3), "cpu", "float32", Calibration())
    plain, waiting = (planner.denoising(SETTING, Way("all", offload=one)).work for one in ("none", "group"))
    added = {name: waiting[name] - plain[name] for name in waiting if waiting[name] != plain[name]}
    assert added == {"moved": 16_000_000_000, "mapped": 8_000_000_000}  # 2 steps of 4 GB


@pytest.mark.parametrize(("batch", "has_guidance", "texts"), [(1, False, 1), (1, True, 2), (4, True, 5)])
def test_each_video_has_a_prompt_and_all_have_one_negative_prompt(
    batch: int, has_guidance: bool, texts: int
) -> None:
    planner = Planner(PARTS, Geometry.from_configs(VAE, V3), "cpu", "float32", Calibration())
    one, found = (
        planner.text(replace(SETTING, batch=count, has_guidance=guided), Way("all", batch=count))
        for count, guided in ((1, False), (batch, has_guidance))
    )
    assert found.flops == texts * one.flops
    assert found.host_bytes == one.host_bytes
