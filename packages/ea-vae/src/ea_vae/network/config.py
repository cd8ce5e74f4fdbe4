"""The VAE's settings, validated once.

Two spellings of the widths exist in published files: `ch` with `ch_mult` (training configs) and
`block_out_channels` (the published checkpoints). Both are read; `VaeConfig.channels` is the answer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

logger = logging.getLogger(__name__)

ACTIVATIONS = ("silu", "swish", "relu", "gelu", "mish")
MID_BLOCK_TYPES = ("MidBlock3D",)
MID_ATTENTION_TYPES = ("3d", "spatial", "temporal", "spatial_temporal")


@dataclass(frozen=True)
class BlockSpec:
    """The meaning of a block type's name."""

    resamples_space: bool
    resamples_time: bool
    attention: str | None = None  # None, "spatial" or "temporal": one after each residual block


DOWN_BLOCKS: dict[str, BlockSpec] = {
    "DownBlock3D": BlockSpec(False, False),
    "SpatialDownBlock3D": BlockSpec(True, False),
    "TemporalDownBlock3D": BlockSpec(False, True),
    "SpatialTemporalDownBlock3D": BlockSpec(True, True),
    "SpatialAttnDownBlock3D": BlockSpec(True, False, "spatial"),
    "TemporalAttnDownBlock3D": BlockSpec(False, True, "temporal"),
}
UP_BLOCKS: dict[str, BlockSpec] = {
    "SpatialUpBlock3D": BlockSpec(True, False),
    "TemporalUpBlock3D": BlockSpec(False, True),
    "SpatialTemporalUpBlock3D": BlockSpec(True, True),
    "SpatialAttnUpBlock3D": BlockSpec(True, False, "spatial"),
    "TemporalAttnUpBlock3D": BlockSpec(False, True, "temporal"),
}


@dataclass(frozen=True)
class VaeConfig:
    """Settings of `AutoencoderKLMagvit`; the keys are those of the published `config.json` files.

    `channels`, `spatial_ratio` and `temporal_ratio` follow from the rest.

    Raises:
        ValueError: a value is unknown, or two values contradict each other.
    """

    in_channels: int = 3
    out_channels: int = 3
    ch: int | None = None
    ch_mult: Sequence[int] | None = None
    block_out_channels: Sequence[int] | None = None
    use_gc_blocks: Sequence[bool] | None = None
    down_block_types: Sequence[str] | None = None
    up_block_types: Sequence[str] | None = None
    mid_block_type: str = "MidBlock3D"
    mid_block_use_attention: bool = True
    mid_block_attention_type: str = "3d"
    mid_block_num_attention_heads: int = 1
    layers_per_block: int = 2
    act_fn: str = "silu"
    num_attention_heads: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.1825  # the class default of EasyAnimate; published checkpoints say 0.18215
    slice_compression_vae: bool = False
    use_tiling: bool = False
    mini_batch_encoder: int = 9
    mini_batch_decoder: int = 3
    sample_size: int | None = None  # published, unused: kept so that a saved config carries it on
    force_upcast: bool = True  # likewise

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.type == "int"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of 1 or more, got {value!r}")
        for name in ("ch_mult", "use_gc_blocks"):  # JSON gives lists; equal settings must compare equal
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else tuple(value))
        object.__setattr__(self, "block_out_channels", self._widths())
        for name, way, known in (
            ("down_block_types", "Down", DOWN_BLOCKS),
            ("up_block_types", "Up", UP_BLOCKS),
        ):
            # Blocks not named: V2's pattern.
            rest = [f"SpatialTemporal{way}Block3D"] * (len(self.channels) - 1)
            names = getattr(self, name) or [f"Spatial{way}Block3D", *rest]
            object.__setattr__(self, name, _names(name, names, known, len(self.channels)))
        _one_of("mid_block_type", self.mid_block_type, MID_BLOCK_TYPES)
        _one_of("mid_block_attention_type", self.mid_block_attention_type, MID_ATTENTION_TYPES)
        _one_of("act_fn", self.act_fn, ACTIVATIONS)
        if self.use_gc_blocks is not None and any(self.use_gc_blocks):
            raise ValueError("`use_gc_blocks` is not supported (no published V2 model has it); leave it out")
        for width in self.channels:
            if width % self.norm_num_groups:
                raise ValueError(
                    f"`norm_num_groups` must divide every block's width, got {self.norm_num_groups} for "
                    f"{list(self.channels)}; use {math.gcd(*self.channels)} or a divisor of it"
                )
        self._check_ratios()

    def _widths(self) -> tuple[int, ...]:
        given = tuple(self.block_out_channels) if self.block_out_channels is not None else None
        if given is not None and self.ch is None and self.ch_mult is None:
            widths = given
        else:
            ch = 128 if self.ch is None else self.ch
            widths = tuple(ch * m for m in (self.ch_mult or (1, 2, 4, 4)))
            if given is not None and given != widths:
                raise ValueError(
                    f"`block_out_channels` must equal `ch` x `ch_mult` = {list(widths)}, got {list(given)}; "
                    "leave one out"
                )
        if not widths or min(widths) < 1:
            raise ValueError(f"`block_out_channels` must be one or more positive widths, got {list(widths)}")
        return widths

    def _check_ratios(self) -> None:
        up = self.up_specs[:-1]
        spatial = 2 ** sum(block.resamples_space for block in up)
        temporal = 2 ** sum(block.resamples_time for block in up)
        if (spatial, temporal) != (self.spatial_ratio, self.temporal_ratio):
            raise ValueError(
                f"`up_block_types` must undo `down_block_types` ({self.spatial_ratio}x in space, "
                f"{self.temporal_ratio}x in time), got {spatial}x and {temporal}x; name as many of each kind"
            )
        latents = self.mini_batch_decoder
        frames = self.temporal_ratio * latents
        if not self.slice_compression_vae:
            frames -= self.temporal_ratio - 1
        if self.mini_batch_encoder != frames:
            raise ValueError(
                f"`mini_batch_encoder` must be the frames of `mini_batch_decoder` latent frames, got "
                f"{self.mini_batch_encoder} and {latents}; use {frames} and {latents}"
            )

    @property
    def channels(self) -> tuple[int, ...]:
        """Width of each block, from the pixels' side to the latents' side."""
        assert self.block_out_channels is not None
        return tuple(self.block_out_channels)

    @property
    def down_specs(self) -> list[BlockSpec]:
        """The down blocks in order; the last one never resamples."""
        return [DOWN_BLOCKS[name] for name in self.down_block_types or ()]

    @property
    def up_specs(self) -> list[BlockSpec]:
        """The up blocks in order, from the latents' side; the last one never resamples."""
        return [UP_BLOCKS[name] for name in self.up_block_types or ()]

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent position along H and W (V2: 8)."""
        return 2 ** sum(block.resamples_space for block in self.down_specs[:-1])

    @property
    def temporal_ratio(self) -> int:
        """Frames per latent frame (V2: 4)."""
        return 2 ** sum(block.resamples_time for block in self.down_specs[:-1])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VaeConfig:
        """Read a `config.json` mapping; unknown keys are reported with a warning and ignored."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(key for key in values if key not in known and not key.startswith("_"))
        if unknown:
            logger.warning("config keys that this VAE does not know are ignored: %s", ", ".join(unknown))
        return cls(**{key: value for key, value in values.items() if key in known})


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {value!r}")


def _names(name: str, values: Any, known: Mapping[str, BlockSpec], count: int) -> tuple[str, ...]:
    # EasyAnimate's training configs hold these lists as text that it evaluates; here text is refused.
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(
            f"`{name}` must be a list of block types, got {values!r}; use names of {', '.join(known)}"
        )
    for value in values:
        if value not in known:
            raise ValueError(f"`{name}` holds {value!r}, which is no block type; use {', '.join(known)}")
    if len(values) != count:
        raise ValueError(f"`{name}` must name {count} blocks, one for each width, got {len(values)}")
    return tuple(values)
