"""The way that is chosen as memory shrinks, and the settings that fit when none does; of V2's published shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ea_runtime.models.geometry import Geometry
from ea_runtime.models.quantize import Quantize
from ea_runtime.planning.calibration import Calibration
from ea_runtime.planning.choose import make_forecast
from ea_runtime.planning.forecast import SPARE, Forecast
from ea_runtime.planning.parts import Part
from ea_runtime.planning.phases import CUDA_CONTEXT, Planner
from ea_runtime.planning.room import Room
from ea_runtime.planning.setting import Setting
from ea_runtime.planning.words import lines, refusal

VAE = {"block_out_channels": [128, 256, 512, 512]}
TEXT = {"d_model": 4096, "num_heads": 64, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "is_gated_act": True}
PARTS = {
    "vae": Part("vae", VAE, 200_000_000),
    "denoiser": Part("denoiser", {}, 1_400_000_000),
    "text": Part("text", TEXT, 4_800_000_000, wide=1_000_000_000, table=130_000_000),
}
SETTING = Setting(frames=144, height=512, width=512, steps=30)


def forecast(
    free: float,
    setting: Setting = SETTING,
    *,
    parts: dict[str, Part] = PARTS,
    quantize: Quantize | None = None,
    **how: Any,
) -> Forecast:
    """On a card with that many GB free."""
    room = Room("cuda", "a card", int(free * 1e9), 64 * 10**9, "bfloat16")
    planner = Planner(parts, Geometry.from_configs(VAE, {}), "cuda", "bfloat16", Calibration(), quantize)
    return make_forecast(planner, setting, room, "V2", **how)


def test_the_cheapest_way_that_fits() -> None:
    plenty = forecast(80)
    assert (plenty.fits, plenty.way.name) == (True, "all parts stay in memory")
    weights = 2 * (200_000_000 + 1_400_000_000 + 4_800_000_000)
    assert plenty.phase("denoising").device_bytes > weights + CUDA_CONTEXT
    less = forecast(plenty.peak / 1e9 * 1.02)
    assert less.way.drops_text
    assert less.peak < plenty.peak - 7 * 10**9
    assert "otherwise" in less.way.why
    large = replace(SETTING, frames=9, height=1024, width=1024)
    whole = forecast(80, large)
    tiled = forecast(max(p.device_bytes for p in forecast(16, large).phases) / 1e9 * 1.05, large)
    assert whole.way.name == "all parts stay in memory"
    assert tiled.way.is_tiled
    assert tiled.phase("decoding").device_bytes < whole.phase("decoding").device_bytes - 9.6e9
    several = replace(SETTING, batch=4)
    assert forecast(34, several, can_drop_text=False).way.batch in (1, 2)


def test_int8_is_chosen_where_nothing_exact_fits() -> None:
    layers = {f"transformer_blocks.{n}.ff.net.2.weight": (1152, 4608) for n in range(200)}
    parts = {**PARTS, "denoiser": replace(PARTS["denoiser"], layers=layers)}
    saved = 200 * (
        1152 * 4608 - 5 * 1152
    )  # of bfloat16's two bytes a weight; a scale and a zero for each row
    short = replace(SETTING, frames=9, height=256, width=256)
    least = max(p.device_bytes for p in forecast(1, short, parts=parts).phases)
    just = least / 1e9 / (1 - SPARE) - 0.05
    assert not forecast(just, short, parts=parts).fits
    found = forecast(just, short, parts=parts, can_quantize=True)
    assert (found.fits, found.way.quantize) == (True, "int8")
    assert found.way.name.startswith("denoiser in int8")
    assert "otherwise" in found.way.why
    asked = forecast(80, short, parts=parts, quantize=Quantize({"denoiser": "int8"}))
    plain = forecast(80, short, parts=parts, can_quantize=True)
    assert plain.way.quantize == ""  # memory is plenty
    one = 1152 * 4608 * 2  # a layer's weight, brought back
    gained = plain.phase("denoising").device_bytes - asked.phase("denoising").device_bytes
    assert gained == saved - one


def test_a_text_encoder_that_is_still_needed_stays() -> None:
    plenty = forecast(80)
    kept = forecast(plenty.peak / 1e9 * 1.02, can_drop_text=False)
    assert not kept.way.drops_text
    assert not kept.fits


def test_the_largest_setting_that_fits() -> None:
    refused = forecast(16, replace(SETTING, frames=288, height=768, width=768))
    assert not refused.fits
    frames, size = refused.nearest
    count, edge = int(frames.split()[1]), int(size.split("x")[1])
    assert count % 9 == 0
    assert forecast(16, replace(SETTING, frames=count, height=768, width=768)).fits
    assert not forecast(16, replace(SETTING, frames=count + 9, height=768, width=768)).fits
    assert forecast(16, replace(SETTING, frames=288, height=edge, width=edge)).fits
    assert not forecast(16, replace(SETTING, frames=288, height=edge + 16, width=edge + 16)).fits
    assert refusal(refused).endswith(f"the largest that fits: num_frames {count} or size {edge}x{edge}")


def test_nothing_fits() -> None:
    refused = forecast(2)
    assert refused.nearest == ()
    assert "a smaller model, or more memory" in refusal(refused)


def test_seconds_are_unknown_until_measured() -> None:
    assert forecast(80).seconds is None
    assert any("ea plan --calibrate" in line for line in lines(forecast(80)))
    rates = {"linear": 1e14, "convolution": 1e14, "attention": 1e14, "moved": 1e12, "calls": 1e5, "disk": 1e9}
    planner = Planner(
        PARTS, Geometry.from_configs(VAE, {}), "cuda", "bfloat16", Calibration(rates=rates | {"imports": 5.0})
    )
    room = Room("cuda", "a card", 80 * 10**9, 64 * 10**9, "bfloat16")
    once = make_forecast(planner, SETTING, room, "V2")
    twice = make_forecast(planner, replace(SETTING, steps=60), room, "V2")
    assert once.seconds is not None
    assert twice.phase("denoising").seconds == pytest.approx(2 * (once.phase("denoising").seconds or 0))
    # 30 steps of V2 at 512x512x144 are about 30 x 2 x 2 x 1.4 G x 49,152 multiply-adds and more
    assert once.phase("denoising").flops > 30 * 4 * 0.7e9 * 49_152


def test_offloading_where_memory_is_short() -> None:
    plenty = forecast(80, offload="auto")
    assert plenty.way.offload == "none"
    weights = {name: 2 * part.elements for name, part in PARTS.items()}
    parts = {
        name: replace(part, waiting=part.elements * 9 // 10, group=part.elements // 30)
        for name, part in PARTS.items()
    }
    planner = Planner(parts, Geometry.from_configs(VAE, {}), "cuda", "bfloat16", Calibration())

    def found(free: float, **how: Any) -> Forecast:
        room = Room("cuda", "a card", int(free * 1e9), 64 * 10**9, "bfloat16")
        return make_forecast(planner, replace(SETTING, frames=9), room, "V2", can_drop_text=False, **how)

    first, model, group = (found(80, offload=mode) for mode in ("none", "model", "group"))
    text = {one.way.offload: one.phase("text").device_bytes for one in (first, model, group)}
    assert text["none"] - text["model"] == weights["vae"] + weights["denoiser"]
    assert text["model"] - text["group"] == weights["text"] - weights["text"] // 10 - weights["text"] // 30
    assert group.host_peak > sum(weights.values())
    assert found(model.peak / 1e9 * 1.05, offload="auto").way.offload == "model"
    short = found(group.peak / 1e9 * 1.05, offload="auto")
    assert (short.way.offload, short.fits) == ("group", True)
    assert "otherwise" in short.way.why
    assert not found(group.peak / 1e9 * 1.05).fits  # the twin: without it nothing fits
