"""The way that is chosen as memory shrinks, and the settings that fit when none does; of V2's published shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ea_runtime.models.geometry import Geometry
from ea_runtime.models.quantize import CHOSEN, QUANTIZED_OFFLOADS, Quantize
from ea_runtime.planning.calibration import Calibration
from ea_runtime.planning.choose import _last, make_forecast, ways, with_forms
from ea_runtime.planning.forecast import SPARE, Forecast, Phase, Way
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


def test_fewer_bits_are_chosen_where_nothing_exact_fits() -> None:
    layers = {f"transformer_blocks.{n}.ff.net.2.weight": (1152, 4608) for n in range(200)}
    parts = {**PARTS, "denoiser": replace(PARTS["denoiser"], layers=layers)}
    saved = 200 * (
        1152 * 4608 - 5 * 1152
    )  # of bfloat16's two bytes a weight; a scale and a zero for each row
    short = replace(SETTING, frames=9, height=256, width=256)
    least = max(p.device_bytes for p in forecast(1, short, parts=parts).phases)
    just = least / 1e9 / (1 - SPARE) - 0.05
    assert not forecast(just, short, parts=parts).fits
    found = forecast(just, short, parts=parts, forms=CHOSEN)
    assert (found.fits, found.way.quantize) == (True, "int8")
    assert found.way.name.startswith("denoiser in int8")
    unscaled = forecast(just, short, parts=parts, forms=CHOSEN[1:])  # where torchao is not installed
    assert (unscaled.fits, unscaled.way.quantize) == (True, "fp8-unscaled")
    # diffusers' hooks bring as much with them as the packages do
    plain_program = forecast(80, short, parts=parts).host_peak
    assert unscaled.host_peak > plain_program + 180_000_000
    assert "otherwise" in found.way.why
    asked = forecast(80, short, parts=parts, quantize=Quantize({"denoiser": "int8"}))
    plain = forecast(80, short, parts=parts, forms=CHOSEN)
    assert plain.way.quantize == ""  # memory is plenty
    one = 1152 * 4608 * 2  # a layer's weight, brought back
    gained = plain.phase("denoising").device_bytes - asked.phase("denoising").device_bytes
    assert gained == saved - one
    # each step brings all layers back: read from int8, written as numbers, and times their scales
    moved = asked.phase("denoising").work["swept"] - plain.phase("denoising").work.get("swept", 0)
    assert moved == short.steps * 200 * (1152 * 4608 + 5 * 1152 + 3 * one)


def test_tiles_are_only_taken_where_they_may_be() -> None:
    large = replace(SETTING, frames=9, height=1024, width=1024)
    just = max(p.device_bytes for p in forecast(16, large).phases) / 1e9 * 1.05
    assert forecast(just, large).way.is_tiled
    exact = forecast(just, large, can_tile=False)
    assert (exact.fits, exact.way.is_tiled) == (False, False)


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


# --- with a planner of made-up bytes -------------------------------------------------------------------------


@dataclass(frozen=True)
class Bytes:
    """A planner whose phases take 100 bytes and what `cost` says of a setting and a way; notes what it was asked."""

    cost: Callable[[Setting, Way], int]
    geometry: Geometry = field(default_factory=Geometry)
    dtype: str = "bfloat16"
    quantize: Any = None
    parts: Any = field(
        default_factory=lambda: {
            "vae": Part("vae", {}, 1, stored=(3, 4)),
            "text": Part("text", {}, 1, stored=(5,)),
        }
    )
    host: int = 10
    asked: list[Way] = field(default_factory=list)

    def phases(self, setting: Setting, way: Way) -> tuple[Phase, ...]:
        self.asked.append(way)
        size = 100 + self.cost(setting, way) - 50 * (self.quantize is not None)
        return (Phase("loading", 1, self.host), Phase("denoising", size, 1))


def chosen(
    cost: Callable[[Setting, Way], int], free: int, setting: Setting = SETTING, **how: Any
) -> Forecast:
    own = {name: how.pop(name) for name in ("quantize", "host") if name in how}
    kind = how.pop("kind", "cuda")
    planner: Any = Bytes(cost, **own)
    return make_forecast(
        planner, setting, Room(kind, "a card", free, how.pop("host_free", 1000), "bfloat16"), "V2", **how
    )


def named(setting: Setting, **how: Any) -> list[str]:
    return [way.name for way in ways(setting, **{"can_drop_text": False, **how})]


def test_ways_from_the_cheapest_on() -> None:
    whole, tiled, dropped = (
        "all parts stay in memory",
        "decoded in tiles",
        "text encoder dropped once the prompt is read",
    )
    assert named(SETTING) == [whole, tiled]
    assert named(SETTING, was_tiled=True) == [tiled]
    assert named(SETTING, can_drop_text=True) == [whole, dropped, tiled, f"{tiled}, {dropped}"]
    two = replace(SETTING, batch=5)
    assert named(two, was_tiled=True) == [
        tiled,
        f"{tiled}, 2 videos at a time",
        f"{tiled}, 1 videos at a time",
    ]
    assert named(two, was_tiled=True, together=2) == [tiled, f"{tiled}, 1 videos at a time"]
    assert [way.batch for way in ways(two, can_drop_text=False, was_tiled=True)] == [5, 2, 1]
    assert named(SETTING, offloads=("none", "model", "group", "sequential"), can_drop_text=True)[4:] == [
        "model offload: one network at a time on the card",
        "model offload: one network at a time on the card, decoded in tiles",
        "group offload: one block at a time",
        "group offload: one block at a time, decoded in tiles",
        "sequential offload: one layer at a time",
        "sequential offload: one layer at a time, decoded in tiles",
    ]
    first, drops = list(ways(SETTING, can_drop_text=True))[:2]
    assert (first.drops_text, first.is_tiled, first.offload) == (False, False, "none")
    assert drops.holds == {"denoising": ("denoiser", "vae"), "decoding": ("denoiser", "vae")}


def test_a_forecast_says_what_was_asked_and_what_it_takes() -> None:
    found = chosen(lambda setting, way: 0, 200, replace(SETTING, batch=2), held=7, notes=("a note",))
    assert {name: getattr(found, name) for name in ("model", "frames", "height", "width", "steps", "batch")} == {
        "model": "V2", "frames": 144, "height": 512, "width": 512, "steps": 30, "batch": 2,
    }  # fmt: skip
    assert (found.device, found.device_name, found.dtype, found.notes) == (
        "cuda",
        "a card",
        "bfloat16",
        ("a note",),
    )
    assert (found.free, found.host_free) == (207, 1007)
    assert (found.disk_read, found.disk_written) == (12, 3 * 144 * 512 * 512 * 2)
    assert chosen(lambda setting, way: 0, 200, replace(SETTING, kind=None)).disk_written == 0
    assert (found.fits, found.nearest, found.way.why, found.peak) == (True, (), "", 100)
    assert found.usable == int(0.97 * 207)


def test_memory_is_left_on_the_device_and_on_the_machine() -> None:
    def fits(free: int, **how: Any) -> bool:
        return chosen(lambda setting, way: 0, free, **how).fits

    assert (fits(104), fits(103)) == (True, False)  # 3% are left
    assert chosen(lambda setting, way: -3, 100).fits  # 97 of 100
    assert (fits(103, held=1), fits(102, held=1)) == (True, False)
    assert (fits(999, host=97, host_free=100), fits(999, host=98, host_free=100)) == (True, False)
    assert fits(999, host=98, host_free=100, kind="cpu")  # the device's memory is the machine's
    assert fits(999, host=98, host_free=99, held=3)


def test_the_first_way_that_fits_is_taken_and_says_why() -> None:
    def cost(setting: Setting, way: Way) -> int:
        return -30 * way.is_tiled - 20 * way.drops_text

    found = chosen(cost, 85)
    assert (found.way.name, found.peak) == ("text encoder dropped once the prompt is read", 80)
    assert found.way.why == "otherwise 0 kB would be needed, and 0 kB can be used"
    assert chosen(cost, 75).way.name == "decoded in tiles"
    least = chosen(cost, 10)
    assert (least.fits, least.way.why) == (False, "")
    assert least.way.name == "decoded in tiles, text encoder dropped once the prompt is read"
    # a way that takes no less than the first has nothing to explain
    assert chosen(lambda setting, way: 0, 10).way.name == "all parts stay in memory"
    assert (
        chosen(lambda setting, way: -90 * (setting.frames < 9), 50, can_drop_text=False).nearest[0]
        == "num_frames 1"
    )


@pytest.mark.parametrize(
    ("kind", "quantize", "tried"),
    [
        ("cpu", None, {"none", "group"}),
        ("cuda", None, {"none", "model", "group"}),
        ("mps", None, {"none"}),
        ("cuda", "int8", {"none", "model"}),
    ],
)
def test_offloading_that_is_tried_by_itself(kind: str, quantize: str | None, tried: set[str]) -> None:
    form = None if quantize is None else Quantize({"denoiser": quantize})
    seen: set[str] = set()

    def cost(setting: Setting, way: Way) -> int:
        seen.add(way.offload)
        return 0

    chosen(cost, 10, replace(SETTING, frames=1), kind=kind, quantize=form, offload="auto")
    assert seen == tried & set(QUANTIZED_OFFLOADS) if quantize else seen == tried
    seen.clear()
    chosen(cost, 10, replace(SETTING, frames=1), kind=kind, quantize=form, offload="sequential")
    assert seen == {"sequential"}


def test_int8_comes_after_every_exact_way() -> None:
    found = chosen(lambda setting, way: 0, 60, forms=["int8"], offload="auto")
    assert (found.way.name, found.way.quantize, found.peak) == ("denoiser in int8", "int8", 50)
    tiled = chosen(lambda setting, way: -20 * way.is_tiled, 40, forms=["int8"], can_drop_text=False)
    assert (tiled.way.name, tiled.fits) == ("denoiser in int8, decoded in tiles", True)
    assert chosen(lambda setting, way: 0, 60).way.quantize == ""
    planner: Any = Bytes(lambda setting, way: 0)
    plain = list(ways(SETTING, can_drop_text=False, offloads=("none", "group", "model")))
    assert [way.quantize for _, way in with_forms(planner, plain, [])] == [""] * len(plain)
    both = list(with_forms(planner, plain, ["int8"]))
    exact, rest = both[: len(plain)], both[len(plain) :]
    assert all(own is planner for own, _ in exact)
    assert all(own.quantize == Quantize({"denoiser": "int8"}) for own, _ in rest)
    assert {way.offload for _, way in rest} == {"none", "model"} & set(QUANTIZED_OFFLOADS)
    already: Any = Bytes(lambda setting, way: 0, quantize=Quantize({"denoiser": "nf4"}))
    assert len(list(with_forms(already, plain, ["int8"]))) == len(plain)


def test_the_nearest_settings_keep_the_shape() -> None:
    def cost(setting: Setting, way: Way) -> int:
        return setting.frames * setting.height * setting.width // 1000

    wide = replace(SETTING, frames=36, height=96, width=192)
    found = chosen(cost, 500, wide)
    assert found.nearest == ("num_frames 18", "size 128x64")
    assert chosen(cost, 500, replace(wide, frames=18)).fits
    assert not chosen(cost, 500, replace(wide, frames=27)).fits
    assert chosen(cost, 500, replace(wide, height=64, width=128)).fits
    assert not chosen(cost, 500, replace(wide, height=80, width=160)).fits
    assert chosen(lambda setting, way: 0, 10, wide).nearest == ()
    square = replace(SETTING, frames=1, height=720, width=720)  # 416 of 720 is 416, though not in float64
    assert chosen(lambda setting, way: setting.height, 533, square).nearest == ("size 416x416",)


@pytest.mark.parametrize("count", range(6))
def test_the_last_value_that_fits(count: int) -> None:
    values = [3, 5, 7, 11, 13]
    expected = values[count - 1] if count else None
    assert _last(values, lambda value: value in values[:count]) == expected
    assert _last([], lambda value: True) is None
