"""The memory of a denoising step, walked through from the denoiser's config (V2's and V3's transformer).

Shapes: B videos, R rows of text (2B with guidance), t latent frames, L tokens of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ea_runtime.models.geometry import latent_channels, motion_settings
from ea_runtime.models.memory.meter import Held, Meter


@dataclass(frozen=True, slots=True)
class LoraRanks:
    """Ranks of a LoRA's layers by where they are, 0: none there. motion: linears of the motion modules' attention."""

    attention: int = 0
    mlp: int = 0
    motion: int = 0
    motion_mlp: int = 0
    text: int = 0


@dataclass(frozen=True, slots=True)
class DenoiserShape:
    """The numbers of a config.json that the walk needs; what is left out has EasyAnimate V2's value."""

    width: int
    heads: int
    num_layers: int
    num_skips: int
    patch: int
    in_channels: int
    out_channels: int
    latent_channels: int
    caption_channels: int
    cross_width: int
    is_gated: bool
    is_affine: bool
    grid: int
    motions: tuple[MotionShape, ...] = field(default=())

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> DenoiserShape:
        """From a config.json."""
        heads = int(config.get("num_attention_heads") or 16)
        width = heads * int(config.get("attention_head_dim") or 72)
        layers = int(config.get("num_layers") or 28)
        motions = motion_settings(config) or [{}]
        is_grid = config.get("motion_module_type") == "VanillaGrid"
        into = int(config.get("in_channels") or 4)
        return cls(
            width=width,
            heads=heads,
            num_layers=layers,
            num_skips=(layers - 1) // 2 if config.get("enable_uvit", True) else 0,
            patch=int(config.get("patch_size") or 2),
            in_channels=into,
            out_channels=int(config.get("out_channels", 8) or into),
            latent_channels=latent_channels(config) or 4,
            caption_channels=int(config.get("caption_channels") or 0),
            cross_width=int(config.get("cross_attention_dim") or width),
            is_gated=config.get("activation_fn") == "geglu",
            is_affine=bool(config.get("norm_elementwise_affine")),
            grid=int(motions[0].get("block_size") or 1) if is_grid else 1,
            motions=tuple(MotionShape.of(motion, width) for motion in motions),
        )


@dataclass(frozen=True, slots=True)
class MotionShape:
    """A motion module: width inside, blocks, and for each attention of a block if it spans the whole video."""

    width: int
    num_blocks: int
    is_global: tuple[bool, ...]
    has_position: bool

    @classmethod
    def of(cls, motion: Mapping[str, Any], width: int) -> MotionShape:
        """From `motion_module_kwargs`."""
        kinds = motion.get("attention_block_types") or ("Temporal_Self", "Temporal_Self")
        return cls(
            width=width // int(motion.get("temporal_attention_dim_div") or 1),
            num_blocks=int(motion.get("num_transformer_block") or 1),
            is_global=tuple(kind == "Global_Self" for kind in kinds),
            has_position=motion.get("temporal_position_encoding") is not False,
        )


@dataclass(frozen=True, slots=True)
class StepInput:
    """One network pass. videos: B. branches: 2 with guidance, else 1. frames, rows, columns: of latents.

    text_tokens: of the prompt and of the negative prompt; the latter is not read without guidance.
    """

    videos: int
    branches: int
    frames: int
    rows: int
    columns: int
    text_tokens: tuple[int, int] = (24, 1)
    has_cache: bool = False


def walk_step(
    meter: Meter, config: Mapping[str, Any], step: StepInput, lora: LoraRanks | None = None
) -> None:
    """Adds one network pass, with all that sampling keeps between passes."""
    shape, lora = DenoiserShape.of(config), lora or LoraRanks()
    Pass(meter, shape, step, lora).run()


class Pass:
    """A pass in progress."""

    def __init__(self, meter: Meter, shape: DenoiserShape, step: StepInput, lora: LoraRanks) -> None:
        self.m, self.shape, self.step, self.lora = meter, shape, step, lora
        self.tokens = (step.rows // shape.patch) * (step.columns // shape.patch)
        self.rows = step.videos * step.branches
        # rows of equal length are a group
        lengths = [step.text_tokens[0]] if step.branches == 1 else [*step.text_tokens[::-1]]
        if len(set(lengths)) == 1:
            self.groups = [(self.rows, lengths[0])]
        else:
            self.groups = [(step.videos, length) for length in lengths]

    def run(self) -> None:
        m, s, step = self.m, self.shape, self.step
        latents = step.videos * s.latent_channels * step.frames * step.rows * step.columns
        # noise, the sampler's latents, two outputs that it keeps, and temporaries
        kept = [m.new(5 * latents, itemsize=4)]
        if s.in_channels != s.latent_channels:
            kept.append(m.new(3 * latents, itemsize=4))
        kept += self.prepare()
        whole = step.videos * step.frames * self.tokens * s.width
        positions = m.new(3 * self.tokens * s.width, itemsize=4)
        m.work["linear"] += 2 * whole * s.patch**2 * s.in_channels
        patches = m.new(whole, passes=0)
        placed = m.new(whole, itemsize=4)
        if m.itemsize < 4:
            rounded = m.new(whole)
            m.free(placed)
            placed = rounded
        first = m.new(whole)
        m.free(patches, placed, positions)
        if step.has_cache:
            kept.append(m.new((2 + step.branches) * whole))
        out = self.blocks(first)
        rows = self.rows * step.frames * self.tokens
        normed = m.new(rows, s.width)
        patch = m.linear(rows, s.width, s.patch**2 * s.out_channels)
        m.free(normed, out, first)
        sample = m.new(rows, s.patch**2 * s.out_channels)
        noise = m.new(3 * step.branches * latents, itemsize=4)
        m.free(patch, sample, noise, *kept)

    def prepare(self) -> list[Held]:
        """The prompt for all blocks, and its embeddings."""
        m, s = self.m, self.shape
        found = []
        wide = s.caption_channels or s.cross_width
        for rows, length in self.groups:
            found += [m.new(rows, length, wide), m.linear(rows * length, wide, s.cross_width)]
            m.work["linear"] += 2 * rows * length * s.cross_width**2
            for _ in range(s.num_layers):
                m.work["linear"] += 4 * rows * length * s.cross_width * s.width
                kind = self.kind(length)
                if kind == "one":
                    found.append(m.new(rows, s.width))
                elif kind == "folded":
                    m.work["linear"] += 4 * rows * length * s.width**2
                    found.append(m.new(rows, 2 * s.width + 1, s.heads * length))
                else:
                    found.append(m.new(rows, length, 2 * s.width))
        return found

    def kind(self, length: int) -> str:
        """The form of the cross-attention to a text: see ea-dit's text_groups."""
        s = self.shape
        if self.lora.text or length > s.width // s.heads // 2:
            return "whole"
        return "one" if length == 1 else "folded"

    def blocks(self, first: Held) -> Held:
        """All blocks; the caller holds what goes into the first. Returns the last output."""
        m, s = self.m, self.shape
        x, argument = m.keep(first), None
        skips: list[Held] = []
        videos = self.step.videos
        for index in range(s.num_layers):
            if index >= s.num_layers - s.num_skips:
                skip, n = skips.pop(), self.rows * self.step.frames * self.tokens
                joined = m.linear(n, s.width, s.width)
                total = m.new(n, s.width, passes=3)
                m.free(skip, joined, x)
                x = total
            m.free(argument)  # the arguments of the block before were held until now
            argument = m.keep(x)
            out = self.block(index, videos)
            videos = self.rows
            m.free(x)
            x = out
            if index < s.num_skips:
                skips.append(m.keep(x))
        m.free(argument)
        return x

    def block(self, index: int, videos: int) -> Held:
        """One block on `videos` rows; the caller holds its input. Returns its output, of R rows."""
        m, s, lora = self.m, self.shape, self.lora
        n = videos * self.step.frames * self.tokens
        wide = self.rows * self.step.frames * self.tokens
        frames = m.new(n, s.width)  # alive to the end: a local name
        k, v, q = (m.linear(n, s.width, s.width, lora.attention) for _ in range(3))
        o = m.attention(videos * self.step.frames, self.tokens, self.tokens, s.width)
        m.free(q)
        a = m.linear(n, s.width, s.width, lora.attention)
        m.free(k, v, o)
        x1 = m.new(n, s.width, passes=4)
        m.free(a)
        x2 = self.motion(s.motions[index % len(s.motions)], videos)
        m.free(x1)
        x3 = self.text(videos)
        m.free(x2)
        normed = m.new(wide, s.width)
        changed = self.mlp(wide, s.width, s.is_gated, lora.mlp)
        m.free(normed)
        x4 = m.new(wide, s.width, passes=4)
        m.free(changed, x3, frames)
        return x4

    def mlp(self, n: int, width: int, is_gated: bool, lora: int) -> Held:
        m, inner = self.m, 4 * width
        hidden = m.linear(n, width, 2 * inner if is_gated else inner, lora)
        active = hidden  # GELU overwrites it
        if is_gated:
            active = m.new(n, inner, passes=5)
            m.free(hidden)
        out = m.linear(n, inner, width, lora)
        m.free(active)
        return out

    def text(self, videos: int) -> Held:
        """Cross-attention on `videos` rows, that become R."""
        m, s = self.m, self.shape
        tokens = self.step.frames * self.tokens
        repeated = m.new(self.rows, tokens, s.width) if videos < self.rows else None
        parts = []
        for rows, length in self.groups:
            n = rows * tokens
            kind = self.kind(length)
            if kind == "one":
                parts.append(m.new(n, s.width))
            elif kind == "folded":
                scores = m.linear(n, s.width, s.heads * length)
                weights = m.new(n, s.heads * length)
                parts.append(m.linear(n, s.heads * length, s.width))
                m.free(scores, weights)
            else:
                q = m.linear(n, s.width, s.width, self.lora.text)
                o = m.attention(rows, tokens, length, s.width)
                m.free(q)
                p = m.linear(n, s.width, s.width, self.lora.text)
                m.free(o)
                parts.append(m.new(n, s.width, passes=3))
                m.free(p)
        if len(parts) == 1:
            m.free(repeated)
            return parts[0]
        joined = m.new(self.rows, tokens, s.width)
        m.free(repeated, *parts)
        return joined

    def motion(self, motion: MotionShape, videos: int) -> Held:
        """A motion module; the caller holds its input."""
        m, s, lora = self.m, self.shape, self.lora
        t, width = self.step.frames, motion.width
        n, length = videos * t * self.tokens, t * s.grid**2
        tracks = m.new(n, s.width)
        if t > 1 or s.grid > 1:
            moved = m.new(n, s.width)
            m.free(tracks)
            tracks = moved
        x = m.linear(n, s.width, width, lora.motion)
        for _ in range(motion.num_blocks):
            own = None  # the caller holds the block's input
            for is_global in motion.is_global:
                normed = m.new(n, width)
                change = self.through_time(n, length, width, is_global, lora.motion)
                m.free(normed)
                total = m.new(n, width, passes=3)
                m.free(change, own)
                own = total
            normed = m.new(n, width)
            change = self.mlp(n, width, True, lora.motion_mlp)
            m.free(normed)
            total = m.new(n, width, passes=3)
            m.free(change, own, x)
            x = total
        out = m.linear(n, width, s.width, lora.motion)
        m.free(x, tracks)
        result = m.new(n, s.width, passes=3)
        m.free(out)
        return result

    def through_time(self, n: int, length: int, width: int, is_global: bool, lora: int) -> Held:
        """An attention of sequences of `length` tokens, or of whole videos."""
        m = self.m
        if length == 1 and not is_global:
            values = m.linear(n, width, width, lora)
            out = m.linear(n, width, width, lora)
            m.free(values)
            return out
        keys, values, queries = (m.linear(n, width, width, lora) for _ in range(3))
        span = self.tokens * self.step.frames if is_global else length
        found = m.attention(n // span, span, span, width)
        m.free(queries)
        out = m.linear(n, width, width, lora)
        m.free(keys, values, found)
        return out
