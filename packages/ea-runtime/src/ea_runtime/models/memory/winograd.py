"""The memory of a convolution in Winograd's form: follows ea-vae's winograd.py, and its limits in choice.py."""

from __future__ import annotations

from dataclasses import dataclass

from ea_runtime.models.memory.meter import Held, Meter

_CHANNELS, _IMAGE, _POSITIONS = 64, 1024, 3072
_BAND, _TAPS = 32768, 3 << 20
_PRODUCTS = 36


@dataclass(frozen=True, slots=True)
class Tiled:
    """A convolution of stride 1. size: (T, H, W) of its input; enlarges: H and W are doubled first."""

    into: int
    out: int
    size: tuple[int, int, int]
    enlarges: bool = False

    @property
    def pays(self) -> bool:
        """True if the rule takes this form."""
        frames, height, width = self.size
        factor = 4 if self.enlarges else 1
        image = height * width * factor
        return (
            min(self.into, self.out) >= _CHANNELS * factor
            and image >= _IMAGE
            and image * (3 if frames == 1 else frames) >= _POSITIONS
        )

    def walk(self, meter: Meter, is_causal: bool) -> Held:
        """Adds the convolution, whose input the caller holds; returns its output.

        Its work is its matrix products, and the bytes "transformed": of inputs, of sums of products, and of taps.
        """
        frames, height, width = self.size
        scale = 2 if self.enlarges else 1
        across, down = -(-width * scale // 4), -(-height * scale // 4)
        rows = min(down, max(1, _BAND // (self.into * across)))
        block = self.out
        if rows == down:
            block = min(self.out, max(32, _TAPS // (_PRODUCTS * self.into) // 32 * 32))
        tiles, high = rows * across, rows * 4 + 2
        slots = min(frames, 3) if block >= self.out else frames
        names = (1, 3, 5)[min(frames, 3) - 1] if is_causal else 3 if frames > 1 else 1
        result = meter.new(self.out, frames, height * width * scale**2, passes=0)
        held = [
            meter.new(4 * high * (across + 1) * self.into, passes=0),
            meter.new(6 * high * across * self.into, passes=0),
            meter.new(slots * _PRODUCTS * tiles * self.into, passes=0),
            meter.new((_PRODUCTS + 24 + 16) * tiles * block, passes=0),
            meter.new(names * _PRODUCTS * self.into * block, passes=0),
        ]
        seen = min(-(-high // scale), height) * width * self.into
        temporary = max(2 * 9 * self.into * block, seen, 2 * 6 * tiles * self.into, 4 * 6 * tiles * block)
        meter.touch(temporary * meter.itemsize)
        meter.free(*held)
        kinds = 2 * frames if not is_causal else {1: 1, 2: 3}.get(frames, 3 * frames - 3)
        each = _PRODUCTS * self.into * self.out
        meter.work["winograd"] += 2 * kinds * down * across * each
        moved = frames * down * across * _PRODUCTS * (self.into + self.out) + names * each
        meter.work["transformed"] += moved * meter.itemsize
        return result
