"""Records of a plan: phases, ways, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PHASES = ("loading", "text", "encoding", "denoising", "decoding")
#: share of the free memory that is left to the system and to rounding
SPARE = 0.03
ALL_PARTS = ("text", "denoiser", "vae")


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run: its name for people, and the parts that the device holds in each phase.

    holds: phase -> parts; what is not named holds all. is_tiled: decoding works tile by tile. batch: videos denoised
    together. why: what makes it needed. offload: where weights wait that are not in use (generation/offload.py).
    quantize: the form of the denoiser's weights, if the plan chose one.
    """

    name: str
    holds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    is_tiled: bool = False
    batch: int = 1
    why: str = ""
    quantize: str = ""
    offload: str = "none"

    def parts_in(self, phase: str) -> tuple[str, ...]:
        """Parts on the device in a phase."""
        return self.holds.get(phase, ALL_PARTS)

    @property
    def drops_text(self) -> bool:
        """True if the text encoder leaves memory once the prompt is read."""
        return "text" not in self.parts_in("denoising")


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run. device_bytes, host_bytes: the peak on the device, and in the machine's memory; equal on a CPU.

    work: FLOPs by kind, and bytes "moved" (memory/meter.py); on a CPU "touched": bytes that no earlier phase held, and
    "writers": of videos, that are opened. disk_bytes: read from files. seconds: None without a calibration.
    """

    name: str
    device_bytes: int
    host_bytes: int
    work: Mapping[str, int] = field(default_factory=dict)
    disk_bytes: int = 0
    seconds: float | None = None

    @property
    def flops(self) -> int:
        """Arithmetic, multiply-adds counted as two."""
        return sum(
            self.work.get(kind, 0) for kind in ("linear", "convolution", "wide", "winograd", "attention")
        )


@dataclass(frozen=True, slots=True)
class Forecast:
    """The memory and time of one generation.

    model, frames, height, width, steps, batch: what is asked. device: "cpu", "cuda" or "mps"; device_name in words.
    phases: in order. free, host_free: bytes free on the device, and of the machine. disk_read, disk_written: bytes of
    the weights, and of frames kept next to the output while it is made. way: the cheapest that fits, or else the one
    that takes least. nearest: settings that fit, in words, if what is asked does not. notes: lines for people.
    """

    model: str
    frames: int
    height: int
    width: int
    steps: int
    batch: int
    device: str
    device_name: str
    dtype: str
    phases: tuple[Phase, ...]
    free: int
    host_free: int
    disk_read: int
    disk_written: int
    way: Way
    fits: bool
    nearest: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> int:
        """Bytes on the device that the plan may take."""
        return int((1 - SPARE) * self.free)

    @property
    def host_usable(self) -> int:
        """Bytes of the machine's memory that the plan may take."""
        return int((1 - SPARE) * self.host_free)

    @property
    def peak(self) -> int:
        """Bytes on the device at the widest moment."""
        return max(phase.device_bytes for phase in self.phases)

    @property
    def host_peak(self) -> int:
        """Bytes of the machine's memory at the widest moment."""
        return max(phase.host_bytes for phase in self.phases)

    @property
    def flops(self) -> int:
        return sum(phase.flops for phase in self.phases)

    @property
    def seconds(self) -> float | None:
        """Of all phases, or None if they are not known."""
        known = [phase.seconds for phase in self.phases]
        return None if any(s is None for s in known) else sum(s for s in known if s is not None)

    def phase(self, name: str) -> Phase:
        """The phase of that name."""
        return next(phase for phase in self.phases if phase.name == name)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: all fields, and the sums."""
        phases = [{**asdict(phase), "flops": phase.flops} for phase in self.phases]
        sums = {"peak": self.peak, "host_peak": self.host_peak, "flops": self.flops, "seconds": self.seconds}
        return {**asdict(self), "phases": phases, **sums}
