"""The memory of decoding and encoding, walked through from the VAE's config (MagViT's and the slice VAE).

Shapes: one video, C channels, T frames (latent frames deep inside), H W.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ea_runtime.models.memory.meter import Held, Meter
from ea_runtime.models.memory.winograd import Tiled

Mode = Literal["causal", "slice", "single"]
#: as ea-vae's choice.py: below these a convolution keeps its plain form
_SMALL_WEIGHT = 1 << 18
_MIN_WORK = {"summed": 130_000_000, "phase": 150_000_000}
_MIN_POSITIONS = {"summed": (192, 512), "phase": (192, 768), "picture": (4, 64)}
_MIN_WORK_CUDA = 1_000_000_000
#: as ea-vae's rewrites.py: where channels are last, and filters so few that four outputs are computed as one
_MIN_LAST, _MAX_LAST = 2048, 128
_MIN_SMALL, _MAX_SMALL = 40_000, 64
_NARROW = 4
#: tiles of EasyAnimate: the side in pixels, and the share of it that neighbours have in common
TILE, OVERLAP, _MIN_SHARED = 384, 0.25, 3


@dataclass(frozen=True, slots=True)
class Level:
    """A block: its width, if it changes the size and the number of frames, and its attention."""

    width: int
    is_spatial: bool
    is_temporal: bool
    attention: str | None


@dataclass(frozen=True, slots=True)
class VaeShape:
    """The numbers of a config.json that the walks need; what is left out has EasyAnimate V2's value."""

    down: tuple[Level, ...]
    up: tuple[Level, ...]
    layers: int
    mid_attention: str | None
    latent_channels: int
    is_slice: bool
    chunk_frames: int
    chunk_latents: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> VaeShape:
        """From a config.json, in either spelling."""
        widths = vae_widths(config)
        rest = len(widths) - 1
        down = config.get("down_block_types") or [
            "SpatialDownBlock3D",
            *["SpatialTemporalDownBlock3D"] * rest,
        ]
        up = config.get("up_block_types") or ["SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * rest]
        has_attention = config.get("mid_block_use_attention", True)
        return cls(
            down=tuple(_level(name, width) for name, width in zip(down, widths, strict=False)),
            up=tuple(_level(name, width) for name, width in zip(up, widths[::-1], strict=False)),
            layers=int(config.get("layers_per_block") or 2),
            mid_attention=(config.get("mid_block_attention_type") or "3d") if has_attention else None,
            latent_channels=int(config.get("latent_channels") or 4),
            is_slice=bool(config.get("slice_compression_vae")),
            chunk_frames=int(config.get("mini_batch_encoder") or 9),
            chunk_latents=int(config.get("mini_batch_decoder") or 3),
        )

    @property
    def ratio(self) -> int:
        """Pixels of a latent position, along an edge."""
        return 2 ** sum(level.is_spatial for level in self.down[:-1])


def _level(name: str, width: int) -> Level:
    attention = next((kind for kind in ("Spatial", "Temporal") if f"{kind}Attn" in name), None)
    bare = name.replace("Attn", "")
    return Level(width, "Spatial" in bare, "Temporal" in bare, attention and attention.lower())


def vae_widths(vae: Mapping[str, Any]) -> list[int]:
    """Widths of the VAE's blocks, from the pixels' side, in either spelling of the config."""
    widths = vae.get("block_out_channels")
    if isinstance(widths, list) and widths and vae.get("ch") is None:
        return [int(value) for value in widths]
    base = int(vae.get("ch") or 128)
    return [base * int(value) for value in vae.get("ch_mult") or (1, 2, 4, 4)]


def walk_decode(
    meter: Meter,
    config: Mapping[str, Any],
    frames: int,
    rows: int,
    columns: int,
    *,
    before: int = 0,
    after: int = 0,
) -> None:
    """Adds decoding one piece: `frames` latent frames of rows x columns latents, and the neighbours that it sees."""
    shape = VaeShape.of(config)
    mode: Mode = (
        "causal" if not shape.is_slice else "single" if frames == 1 and not before + after else "slice"
    )
    _Pass(meter, shape, mode, (frames + before + after, rows, columns)).decode(before + after)


def walk_encode(meter: Meter, config: Mapping[str, Any], frames: int, height: int, width: int) -> None:
    """Adds encoding one piece: `frames` frames of height x width pixels."""
    shape = VaeShape.of(config)
    mode: Mode = "causal" if not shape.is_slice else "single" if frames == 1 else "slice"
    _Pass(meter, shape, mode, (frames, height, width)).encode()


def decoded_pieces(latents: int, chunk: int, is_slice: bool) -> Counter[tuple[int, int, int]]:
    """The decoder's passes for that many latent frames: (latent frames, neighbours before, neighbours after) -> count.

    Follows ea-vae's chunking.py.
    """
    alone = latents % 2 if is_slice else 0
    found = Counter({(1, 0, 0): alone})
    for start in range(alone, latents, chunk):
        stop = min(start + chunk, latents)
        sides = (min(chunk, start - alone), min(chunk, latents - stop)) if is_slice else (0, 0)
        found[stop - start, *sides] += 1
    return +found


def tile_edge(length: int, tile: int = TILE) -> int:
    """The longest edge in pixels that is worked on at once, with tiling."""
    return min(length, tile)


def count_tiles(length: int, ratio: int, tile: int = TILE) -> int:
    """Tiles along an edge of `length` pixels."""
    edge, side = length // ratio, tile // ratio
    step = side - max(int(side * OVERLAP), min(_MIN_SHARED, side // 2))
    return max(-(-(edge - side) // step), 0) + 1


class _Pass:
    """A pass in progress at a size (T, H, W)."""

    def __init__(self, meter: Meter, shape: VaeShape, mode: Mode, size: tuple[int, int, int]) -> None:
        self.m, self.shape, self.mode, self.size = meter, shape, mode, size

    @property
    def positions(self) -> int:
        t, h, w = self.size
        return t * h * w

    def tensor(self, channels: int, passes: float = 2) -> Held:
        return self.m.new(channels, self.positions, passes=passes)

    def decode(self, neighbours: int) -> None:
        m, s = self.m, self.shape
        latents = self.tensor(s.latent_channels)
        wide = s.up[0].width
        x = self.conv(s.latent_channels, wide)
        x = self.mid(x, wide)
        self.size = (self.size[0] - neighbours, *self.size[1:])
        into = wide
        for number, level in enumerate(s.up):
            out = self.stack(x, into, level, s.layers + 1)
            if number < len(s.up) - 1:
                out = self.upsample(out, level)
            m.free(x)
            x, into = out, level.width
        normed = self.tensor(into, passes=4)
        frames = self.conv(into, 3)
        m.free(normed, x, frames, latents)

    def encode(self) -> None:
        m, s = self.m, self.shape
        pixels = self.tensor(3)
        x = self.conv(3, s.down[0].width)
        into = s.down[0].width
        for number, level in enumerate(s.down):
            out = self.stack(x, into, level, s.layers)
            if number < len(s.down) - 1 and (level.is_spatial or level.is_temporal):
                out = self.downsample(out, level)
            m.free(x)
            x, into = out, level.width
        x = self.mid(x, into)
        normed = self.tensor(into, passes=4)
        moments = self.conv(into, 2 * s.latent_channels)
        m.free(normed, x, moments, pixels)

    def mid(self, x: Held, width: int) -> Held:
        """The middle block; takes over `x`, which the caller's name holds until the end."""
        m = self.m
        out = self.residual(m.keep(x), width, width)
        for _ in range(self.shape.layers - 1):
            kinds = self.shape.mid_attention
            for kind in (
                () if kinds is None else ("spatial", "temporal") if kinds == "spatial_temporal" else (kinds,)
            ):
                out = self.attend(out, width, kind)
            out = self.residual(out, width, width)
        m.free(x)
        return out

    def stack(self, x: Held, into: int, level: Level, count: int) -> Held:
        """Residual blocks, each with its attention; the caller holds `x`."""
        out = self.m.keep(x)
        for number in range(count):
            out = self.residual(out, level.width if number else into, level.width)
            if level.attention is not None:
                out = self.attend(out, level.width, level.attention)
        return out

    def residual(self, x: Held, into: int, out: int) -> Held:
        """A residual block; takes over `x`."""
        m = self.m
        normed = self.tensor(into, passes=5)
        h = self.conv(into, out)
        m.free(normed)
        normed = self.tensor(out, passes=5)
        changed = self.conv(out, out)
        m.free(normed, h)
        if into != out:
            m.free(m.convolution(1, into, out, self.positions, self.positions, 1))
        m.work[m.moves] += 3 * changed.size
        m.free(x)
        return changed

    def attend(self, x: Held, width: int, kind: str) -> Held:
        """Attention with its residual; takes over `x`."""
        m, (t, h, w) = self.m, self.size
        span = {"3d": t * h * w, "spatial": h * w, "temporal": t}[kind]
        n = self.positions
        tokens = self.tensor(width) if t > 1 and kind != "3d" else None
        normed = self.tensor(width, passes=3)
        q, k, v = (m.linear(n, width, width) for _ in range(3))
        found = m.attention(n // span, span, span, width)
        out = m.linear(n, width, width)
        total = self.tensor(width, passes=3)
        m.free(out, found, q, k, v, normed, tokens, x)
        laid = self.tensor(width)
        m.free(total)
        return laid

    def downsample(self, x: Held, level: Level) -> Held:
        """Takes over `x`."""
        m, (t, h, w) = self.m, self.size
        stride = 2 if level.is_spatial else 1
        padded = m.new(level.width, t, h + 1, w + 1) if level.is_spatial else None
        after = (-(-t // 2) if level.is_temporal else t, h // stride, w // stride)
        out = self.conv(level.width, level.width, after=after, slows=level.is_temporal)
        m.free(padded, x)
        self.size = after
        return out

    def upsample(self, x: Held, level: Level) -> Held:
        """Takes over `x`."""
        m, width = self.m, level.width
        if not level.is_spatial:
            enlarged = self.double_time(x, width)
            out = self.conv(width, width)
            m.free(enlarged)
            return out
        out = self.enlarge(x, width)
        return self.double_time(out, width) if level.is_temporal else out

    def double_time(self, x: Held, width: int) -> Held:
        """Takes over `x`."""
        t, h, w = self.size
        if self.mode == "single" or (self.mode == "causal" and t == 1):
            return x
        self.size = (2 * t - (self.mode == "causal"), h, w)
        out = self.tensor(width, passes=3)
        self.m.free(x)
        return out

    def enlarge(self, x: Held, width: int) -> Held:
        """Twice as high and wide, and a convolution; takes over `x`."""
        m, (t, h, w) = self.m, self.size
        tiled = Tiled(width, width, self.size, enlarges=True)
        if self.has_tiles and tiled.pays:
            out = tiled.walk(m, self.mode == "causal")
            m.free(x)
            self.size = (t, 2 * h, 2 * w)
            return out
        form = self.form(width, width, enlarges=True)
        after = (t, 2 * h, 2 * w)
        if form in ("direct", "summed"):
            self.size = after
            large = self.tensor(width)
            out = self.conv(width, width, form=form)
            m.free(large, x)
            return out
        edges = (t, h + 1, w + 1)
        weights = m.new(4 * 12 * width * width)
        phases = self.conv(
            width, 4 * width, after=edges, form="summed" if form == "both" else "direct", area=4
        )
        m.free(weights)
        out = m.new(width, t, 4 * h * w)
        m.free(phases, x)
        self.size = after
        return out

    def conv(
        self,
        into: int,
        out: int,
        *,
        after: tuple[int, int, int] | None = None,
        form: str | None = None,
        slows: bool = False,
        area: int = 9,
    ) -> Held:
        """A convolution of 3 taps in time and `area` in space, whose input the caller holds. after: (T, H, W) of its
        output. slows: it halves the frames."""
        m, (t, h, w) = self.m, self.size
        tiled = Tiled(into, out, self.size)
        if self.has_tiles and after is None and form is None and tiled.pays:
            return tiled.walk(m, self.mode == "causal")
        after = after or self.size
        form = form or self.form(into, out, slows=slows)
        plane, image = h * w, after[1] * after[2]

        is_last = self.has_tiles and self.reads_last(into, out)

        def run(frames: int, given: int, taps: int) -> Held:
            inputs, outputs = given * plane, frames * image
            if not self.is_narrow(out, given, after):
                return m.convolution(1, into, out, inputs, outputs, taps * area, is_last=is_last)
            fours = m.convolution(1, into, 4 * out, inputs, outputs // 4, taps * 16, is_last=is_last)
            result = m.new(out, outputs)
            m.free(fours)
            return result

        if form == "direct" or (form == "summed" and self.mode != "causal" and t > 1):
            is_padded = form == "direct"
            padded = m.new(into, t + 2, plane) if is_padded else None
            result = run(after[0], t + 2 * is_padded, 3)
            m.free(padded)
            return result
        if t == 1:
            return run(1, 1, 1)
        sums = m.new(2 * area * into * out)
        parts = [self.slice(into, 1, lambda: run(1, 1, 1))]
        if not slows:
            parts.append(self.slice(into, 2, lambda: run(1, 2, 2)))
        if t > 2:
            parts.append(run(after[0] - len(parts), t, 3))
        result = m.new(out, after[0], image)
        m.free(*parts, sums)
        return result

    def reads_last(self, into: int, out: int) -> bool:
        """True if such a convolution has channels last."""
        if self.positions >= _MIN_LAST and min(into, out) <= _MAX_LAST:
            return True
        return self.positions * into >= _MIN_SMALL and max(into, out) <= _MAX_SMALL

    def is_narrow(self, out: int, frames: int, after: tuple[int, int, int]) -> bool:
        """True if 2x2 outputs are computed as channels of one. frames: of the input; after: (T, H, W) of the output."""
        _, h, w = self.size
        is_even = after[1:] == (h, w) and h % 2 == w % 2 == 0
        return self.has_tiles and out <= _NARROW and is_even and frames * h * w >= _MIN_LAST

    def slice(self, channels: int, frames: int, run: Any) -> Held:
        """A convolution of the first frames, of which a copy is made."""
        part = self.m.new(channels, frames, self.size[1] * self.size[2])
        result = run()
        self.m.free(part)
        return result

    @property
    def has_tiles(self) -> bool:
        """True where ea-vae may take Winograd's form: on a CPU, in float32 or more."""
        return self.m.has_scratch and self.m.itemsize >= 4

    def form(self, into: int, out: int, *, enlarges: bool = False, slows: bool = False) -> str:
        """The form of a convolution without gradients: see ea-vae's choice.py."""
        causal, weight = self.mode == "causal", 27 * into * out
        positions = self.positions
        work = positions * weight * (4 if enlarges else 1)
        if not self.m.has_scratch:
            if work < _MIN_WORK_CUDA:
                return "direct"
            return ("both" if causal else "phase") if enlarges else "summed"
        large = int(weight > _SMALL_WEIGHT)
        if enlarges:
            if positions >= _MIN_POSITIONS["phase"][large] and work >= _MIN_WORK["phase"]:
                return "both" if causal else "phase"
            positions *= 4
        if self.size[0] == 1:
            return "summed" if positions >= _MIN_POSITIONS["picture"][large] else "direct"
        if not causal:
            return "summed"
        pays = positions >= _MIN_POSITIONS["summed"][large] and work >= _MIN_WORK["summed"]
        return "summed" if pays else "direct"
