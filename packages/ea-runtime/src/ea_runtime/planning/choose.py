"""A forecast: the cheapest way that fits, or the largest setting that does."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ea_runtime.models.quantize import QUANTIZED_OFFLOADS, Quantize
from ea_runtime.planning.forecast import SPARE, Forecast, Phase, Way
from ea_runtime.planning.phases import Planner
from ea_runtime.planning.room import Room
from ea_runtime.planning.setting import Setting
from ea_runtime.planning.units import in_gb

#: after the prompt is read the text encoder is not needed: nothing changes but memory
_WITHOUT_TEXT: dict[str, tuple[str, ...]] = dict.fromkeys(("denoising", "decoding"), ("denoiser", "vae"))
#: kinds of offloading in words
OFFLOADS = {
    "none": "all parts stay in memory",
    "model": "model offload: one network at a time on the card",
    "group": "group offload: one block at a time",
    "sequential": "sequential offload: one layer at a time",
}
#: those that are tried for a device, the cheapest first; "sequential" is only taken if it is asked for
_TRIED = {"cpu": ("none", "group"), "cuda": ("none", "model", "group")}
#: bytes of a frame's pixel in the frames that a long run keeps on disk
_SAVED = 3


def ways(
    setting: Setting,
    *,
    can_drop_text: bool,
    was_tiled: bool = False,
    can_tile: bool = True,
    together: int | None = None,
    offloads: Sequence[str] = ("none",),
) -> Iterator[Way]:
    """All ways, the cheapest first: smaller batches and offloading cost time, tiles change the picture a little.

    can_drop_text: no later prompt needs the encoder. was_tiled: tiles are asked for. can_tile: they may be taken
    unasked. together: videos denoised together at first; None: all. offloads: the kinds of offloading to try, in this
    order.
    """
    batch = together = together or setting.batch
    while batch:
        for offload in offloads:
            for is_tiled in (True,) if was_tiled else (False, True)[: 1 + can_tile]:
                for drops in (False, True) if can_drop_text and offload == "none" else (False,):
                    names = [OFFLOADS[offload]] * (offload != "none") + ["decoded in tiles"] * is_tiled
                    names += ["text encoder dropped once the prompt is read"] * drops
                    names += [f"{batch} videos at a time"] * (batch < together)
                    holds = _WITHOUT_TEXT if drops else {}
                    name = ", ".join(names) or OFFLOADS["none"]
                    yield Way(name, holds, is_tiled, batch, offload=offload)
        batch //= 2


def make_forecast(
    planner: Planner,
    setting: Setting,
    room: Room,
    model: str,
    *,
    can_drop_text: bool = True,
    was_tiled: bool = False,
    can_tile: bool = True,
    together: int | None = None,
    held: int = 0,
    notes: tuple[str, ...] = (),
    forms: Sequence[str] = (),
    offload: str = "none",
) -> Forecast:
    """The forecast of a setting on a device.

    can_drop_text, was_tiled, can_tile, together: as for `ways`. held: bytes that this process has already, of those
    that are counted (a loaded pipeline). notes: lines to pass on. offload: of generation/offload.py, or "auto": the
    cheapest.
    forms: those of models/quantize.py that the denoiser may be kept in if nothing else fits, the first that does.
    """
    offloads = _TRIED.get(room.kind, ("none",)) if offload == "auto" else (offload,)
    if planner.quantize is not None and offload == "auto":
        offloads = tuple(one for one in offloads if one in QUANTIZED_OFFLOADS)
    free, host_free = room.free + held, room.host_free + held

    def fits(phases: tuple[Phase, ...]) -> bool:
        device, host = max(p.device_bytes for p in phases), max(p.host_bytes for p in phases)
        return device <= (1 - SPARE) * free and (room.is_shared or host <= (1 - SPARE) * host_free)

    def tried(one: Setting) -> tuple[Way, tuple[Phase, ...], bool]:
        last: tuple[Way, tuple[Phase, ...], bool] | None = None
        first = None
        found = ways(
            one,
            can_drop_text=can_drop_text,
            was_tiled=was_tiled,
            can_tile=can_tile,
            together=together,
            offloads=offloads,
        )
        for own, way in with_forms(planner, list(found), forms):
            phases = own.phases(one, way)
            peak = max(phase.device_bytes for phase in phases)
            first = peak if first is None else first
            last = last if last is not None and _peak(last[1]) <= peak else (way, phases, False)
            if fits(phases):
                return (way if peak >= first else replace(way, why=_why(first, free)), phases, True)
        assert last is not None
        return last

    way, phases, is_fit = tried(setting)
    nearest = () if is_fit else tuple(_nearest(setting, planner, lambda one: tried(one)[2]))
    written = _SAVED * setting.frames * setting.height * setting.width * setting.batch
    stored = sum(sum(part.stored) for part in planner.parts.values())
    return Forecast(
        model=model,
        frames=setting.frames,
        height=setting.height,
        width=setting.width,
        steps=setting.steps,
        batch=setting.batch,
        device=room.kind,
        device_name=room.name,
        dtype=planner.dtype,
        phases=phases,
        free=free,
        host_free=host_free,
        disk_read=stored,
        disk_written=written if setting.kind is not None else 0,
        way=way,
        fits=is_fit,
        nearest=nearest,
        notes=notes,
    )


def with_forms(planner: Planner, found: list[Way], forms: Sequence[str]) -> Iterator[tuple[Planner, Way]]:
    """The ways with what plans them, then the same with the denoiser's weights in each form, which changes the result a
    little."""
    yield from ((planner, way) for way in found)
    if planner.quantize is not None:
        return
    for form in forms:
        smaller = replace(planner, quantize=Quantize({"denoiser": form}))
        for way in found:
            if way.offload not in QUANTIZED_OFFLOADS:
                continue
            rest = "" if way.name == OFFLOADS["none"] else f", {way.name}"
            yield smaller, replace(way, name=f"denoiser in {form}{rest}", quantize=form)


def _peak(phases: tuple[Phase, ...]) -> int:
    return max(phase.device_bytes for phase in phases)


def _why(peak: int, free: int) -> str:
    return f"otherwise {in_gb(peak)} would be needed, and {in_gb((1 - SPARE) * free)} can be used"


def _nearest(setting: Setting, planner: Planner, fits: Callable[[Setting], bool]) -> Iterator[str]:
    """The longest video of that size, and the largest size of that length, that fit."""
    geometry = planner.geometry
    counts = [n for n in range(1, setting.frames) if geometry.fits(n)]
    count = _last(counts, lambda n: fits(replace(setting, frames=n)))
    if count is not None:
        yield f"num_frames {count}"
    step = geometry.size_multiple
    short = min(setting.height, setting.width)

    def sized(edge: int) -> Setting:
        height, width = (size * edge // short // step * step for size in (setting.height, setting.width))
        return replace(setting, height=height, width=width)

    edge = _last(range(step, short, step), lambda n: fits(sized(n)))
    if edge is not None:
        yield f"size {sized(edge).width}x{sized(edge).height}"


def _last(values: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The last of rising values that fits, if the smaller ones do as well."""
    count = bisect_right(values, False, key=lambda value: not fits(value))
    return values[count - 1] if count else None
