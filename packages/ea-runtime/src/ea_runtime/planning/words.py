"""A forecast in words and as a table."""

from __future__ import annotations

from typing import Any

from ea_runtime.planning.forecast import Forecast
from ea_runtime.planning.units import in_flops, in_gb, in_seconds

_TITLES = {
    "loading": "loading the weights",
    "text": "reading the prompt",
    "encoding": "encoding known frames",
    "denoising": "denoising",
    "decoding": "decoding and writing",
}
_DEVICES = {"cpu": "this machine", "cuda": "the card", "mps": "this Mac"}


def table(forecast: Forecast) -> Any:
    """A rich table, one row for each phase."""
    from rich.table import Table

    is_split = forecast.device == "cuda"
    found = Table(box=None, header_style="bold", pad_edge=False)
    found.add_column("phase")
    for column in ("card memory", "machine memory") if is_split else ("memory",):
        found.add_column(column, justify="right")
    found.add_column("arithmetic", justify="right")
    found.add_column("time", justify="right")
    for phase in forecast.phases:
        sizes = [phase.device_bytes, phase.host_bytes] if is_split else [phase.host_bytes]
        is_peak = phase.device_bytes == forecast.peak
        found.add_row(
            _TITLES[phase.name],
            *(in_gb(size) for size in sizes),
            in_flops(phase.flops) if phase.flops else "-",
            in_seconds(phase.seconds),
            style="bold" if is_peak else None,
        )
    return found


def lines(forecast: Forecast) -> list[str]:
    """The request, the verdict and why, in lines."""
    f, where = forecast, _DEVICES[forecast.device]
    found = [f"peak {in_gb(f.peak)} on {where}, where {in_gb(f.usable)} can be used"]
    if f.device == "cuda":
        found.append(
            f"peak {in_gb(f.host_peak)} in the machine's memory; {in_gb(f.host_free)} are free there"
        )
    disk = f"disk: {in_gb(f.disk_read)} of weights are read"
    if f.disk_written:
        disk += f"; a run over 30 s keeps up to {in_gb(f.disk_written)} next to its output until it is done"
    found.append(disk)
    total = f"time {in_seconds(f.seconds)}, {in_flops(f.flops)}"
    if f.seconds is None:
        total += "; `ea plan --calibrate` measures this machine once, in about 10 s"
    found.append(total)
    if f.fits:
        found.append(f"it fits: {f.way.name}" + (f" ({f.way.why})" if f.way.why else ""))
    else:
        found.append(refusal(f))
    return [*found, *(f"note: {note}" for note in f.notes)]


def refusal(forecast: Forecast) -> str:
    """One line for a plan that does not fit."""
    f = forecast
    needs = "needs" if f.frames == 1 and f.batch == 1 else "need"
    what = "a picture" if f.frames == 1 else f"{f.frames} frames"
    batch = f"{f.batch} x " if f.batch > 1 else ""
    use = " or ".join(f.nearest) or "a smaller model, or more memory"
    is_host = f.device == "cuda" and f.peak <= f.usable
    need, free, where = (
        (f.host_peak, f.host_usable, "this machine") if is_host else (f.peak, f.usable, _DEVICES[f.device])
    )
    return (
        f"{batch}{what} of {f.width}x{f.height} {needs} {in_gb(need)} on {where}, where {in_gb(free)} can be used; "
        f"the largest that fits: {use}"
    )


def what(forecast: Forecast) -> str:
    """One line that names what is planned."""
    f = forecast
    video = "a picture" if f.frames == 1 else f"{f.frames} frames"
    batch = f"{f.batch} x " if f.batch > 1 else ""
    where = f"on {f.device} ({f.device_name}), {f.dtype}"
    return f"{f.model}: {batch}{video}, {f.width}x{f.height}, {f.steps} steps, {where}"
