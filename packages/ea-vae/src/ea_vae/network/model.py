"""AutoencoderKLMagvit: the video VAE of EasyAnimate V2 (MagViT and slice mode).

Shapes: frames (B, 3, T, H, W) in -1..1; latents (B, 4, t, H / 8, W / 8) in the VAE's own scale
(`scaling_factor` is not applied here: a denoiser's latents are divided by it before they come in).
Causality holds between chunks: within one, the norms and the mid block's attention see all its frames.
`encode` and `decode` are the networks of the reference; `encode_video`, `decode_video` and `iter_decode`
take videos of any number of frames (see streaming.py, and chunking.py for the numbers that fit).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn

from . import choice, chunking
from .blocks import Decoder, Encoder
from .config import VaeConfig
from .conv import CausalConv3d, Mode
from .posterior import Posterior
from .spread import Job, Spread
from .streaming import VideoCoder
from .tiling import run_tiled, tile_spans


@dataclass
class DecoderOutput(BaseOutput):
    """The result of `decode`. sample: (B, 3, T, H, W)."""

    sample: Tensor


class AutoencoderKLMagvit(ModelMixin, ConfigMixin, VideoCoder):
    """Video VAE with causal 3-D convolutions; arguments are those of `VaeConfig`, all of them keywords.

    `from_pretrained(folder, subfolder="vae")` reads the published checkpoints as they are, `_class_name`
    `AutoencoderKL` included.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["DownBlock", "UpBlock", "MidBlock3D"]
    _repeated_blocks: ClassVar[list[str]] = ["ResidualBlock3D", "Downsampler", "Upsampler"]
    #: encoding and decoding call these, and not `forward`
    _group_offload_block_modules: ClassVar[list[str]] = [
        "encoder",
        "decoder",
        "quant_conv",
        "post_quant_conv",
    ]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["conv_in", "conv_out", "quant_conv"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        ch: int | None = None,
        ch_mult: Sequence[int] | None = None,
        block_out_channels: Sequence[int] | None = None,
        use_gc_blocks: Sequence[bool] | None = None,
        down_block_types: Sequence[str] | None = None,
        up_block_types: Sequence[str] | None = None,
        mid_block_type: str = "MidBlock3D",
        mid_block_use_attention: bool = True,
        mid_block_attention_type: str = "3d",
        mid_block_num_attention_heads: int = 1,
        layers_per_block: int = 2,
        act_fn: str = "silu",
        num_attention_heads: int = 1,
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        scaling_factor: float = 0.1825,
        slice_compression_vae: bool = False,
        use_tiling: bool = False,
        mini_batch_encoder: int = 9,
        mini_batch_decoder: int = 3,
        sample_size: int | None = None,
        force_upcast: bool = True,
    ) -> None:
        super().__init__()
        self.settings = VaeConfig.from_dict(self.config)
        settings = self.settings
        self.register_to_config(
            block_out_channels=list(settings.channels),
            down_block_types=list(settings.down_block_types or ()),
            up_block_types=list(settings.up_block_types or ()),
        )
        moments = 2 * settings.latent_channels
        self.encoder = Encoder(settings)
        self.decoder = Decoder(settings)
        self.quant_conv = nn.Conv3d(moments, moments, 1)
        self.post_quant_conv = nn.Conv3d(settings.latent_channels, settings.latent_channels, 1)
        self.use_tiling = use_tiling
        self.tile_sample_min_size = 384
        self.tile_overlap_factor = 0.25
        self._spread: Spread | None = None

    # -- one pass ----------------------------------------------------------------------------------

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Encode frames in one pass (MagViT: the whole of `x` is one chunk; slice mode: slice by slice).

        Args:
            x: (B, 3, T, H, W) in -1..1; H and W multiples of 8; T is 4k + 1, in slice mode also 4k.
            return_dict: a tuple of the distribution when False.

        Returns:
            `AutoencoderKLOutput`. Its `.latent_dist` has `.parameters` (B, 8, t, H / 8, W / 8), mean and
            log-variance; `.mode()` and `.sample(generator)` (B, 4, t, H / 8, W / 8).

        Raises:
            ValueError: `x` has another rank, channel count, type, size or number of frames.
        """
        chunking.check_frames(x, self.settings, chunked=False)
        pieces = chunking.encode_pieces(x.shape[2], self.settings, chunked=False)
        moments = [self.encode_piece(x[:, :, piece.start : piece.stop], piece.mode) for piece in pieces]
        posterior = Posterior(torch.cat(moments, dim=2))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        """Decode latents in one pass (MagViT: the whole of `z` is one chunk; slice mode: slice by slice).

        Args:
            z: (B, 4, t, h, w), the VAE's own scale.
            return_dict: a tuple of the frames when False.
            generator: unused, for callers written for diffusers' VAEs.

        Returns:
            `DecoderOutput`. Its `.sample` is (B, 3, T, 8 h, 8 w), about -1..1, not clamped; T is 4 t - 3, in
            slice mode 4 t where t is even.

        Raises:
            ValueError: `z` has another rank or channel count.
        """
        chunking.check_latents(z, self.settings)
        pieces = chunking.decode_pieces(z.shape[2], self.settings, chunked=False)
        parts = []
        for piece in pieces:
            part = z[:, :, piece.start - piece.num_before : piece.stop + piece.num_after]
            parts.append(self.decode_piece(part, piece.mode, piece.num_before, piece.num_after))
        frames = torch.cat(parts, dim=2)
        return DecoderOutput(sample=frames) if return_dict else (frames,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Encode and decode in one pass each; shapes as in `encode` and `decode`."""
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict=return_dict)

    @apply_forward_hook
    def encode_piece(self, x: Tensor, mode: Mode) -> Tensor:
        """Moments (B, 8, t, h, w) of frames (B, 3, T, H, W) encoded together, tiled if tiling is on."""

        def network(part: Tensor) -> Tensor:
            return self.quant_conv(self.encoder(part, mode))

        return self._maybe_tiled(network, x, self.settings.spatial_ratio, 1)

    @apply_forward_hook
    def decode_piece(self, z: Tensor, mode: Mode, num_before: int = 0, num_after: int = 0) -> Tensor:
        """Frames (B, 3, T, H, W) of latents (B, 4, t, h, w) decoded together, tiled if tiling is on.

        The first `num_before` and the last `num_after` latent frames belong to neighbouring slices: they give
        context and yield no frames.
        """

        def network(part: Tensor) -> Tensor:
            return self.decoder(self.post_quant_conv(part), mode, num_before, num_after)

        return self._maybe_tiled(network, z, 1, self.settings.spatial_ratio)

    def _maybe_tiled(
        self, network: Callable[[Tensor], Tensor], x: Tensor, in_ratio: int, out_ratio: int
    ) -> Tensor:
        # Here, where an offloading hook has put the weights in place. Until hooks are imported there is none, and
        # asking diffusers for the device would import them, and peft.
        like = self if "diffusers.hooks" in sys.modules else next(self.parameters())
        x = x.to(like.device, like.dtype)
        # Differs from EasyAnimate: it tiles only frames that exceed the tile in height and in width, so that
        # one long side alone could exhaust memory.
        tile = self.tile_latent_min_size
        height, width = (size // in_ratio for size in x.shape[3:])
        if self.use_tiling and max(height, width) > tile:
            rows, columns = (tile_spans(size, tile, self.tile_overlap_factor) for size in (height, width))
            return run_tiled(network, x, rows, columns, in_ratio, out_ratio)
        return network(x)

    # -- switches ----------------------------------------------------------------------------------

    @property
    def tile_latent_min_size(self) -> int:
        """Tile edge in latent positions."""
        return self.tile_sample_min_size // self.settings.spatial_ratio

    def enable_tiling(
        self, tile_sample_min_size: int | None = None, tile_overlap_factor: float | None = None
    ) -> None:
        """Work tile by tile on frames larger than a tile.

        Args:
            tile_sample_min_size: tile edge in pixels, a multiple of 8 (first 384).
            tile_overlap_factor: fraction of a tile that it shares with its neighbour, 0 to 0.5 (first 0.25).

        Raises:
            ValueError: an argument is out of range.
        """
        ratio = self.settings.spatial_ratio
        size = self.tile_sample_min_size if tile_sample_min_size is None else tile_sample_min_size
        overlap = self.tile_overlap_factor if tile_overlap_factor is None else tile_overlap_factor
        if size < ratio or size % ratio:
            use = max(ratio, size // ratio * ratio)
            raise ValueError(f"`tile_sample_min_size` must be a multiple of {ratio}, got {size}; use {use}")
        if not 0 <= overlap <= 0.5:
            raise ValueError(f"`tile_overlap_factor` must be from 0 to 0.5, got {overlap}")
        self.use_tiling, self.tile_sample_min_size, self.tile_overlap_factor = True, size, overlap

    def disable_tiling(self) -> None:
        """Work on whole frames again."""
        self.use_tiling = False

    def set_rewrites(self, rewrites: str | None) -> None:
        """Set the form in which the convolutions run without gradients; see choice.py.

        Args:
            rewrites: "rule" (by shape), "measure" (time each shape once), "always", "plain", or None for the value
                of EA_VAE_REWRITES, "rule" if it is not set.

        Raises:
            ValueError: another word.
        """
        if rewrites is not None:
            choice.check(rewrites, "rewrites")
        for module in self.modules():
            if isinstance(module, CausalConv3d):
                module.rewrites = rewrites

    def spread(self, enabled: bool = True, group: Any = None) -> None:
        """Share the chunks of `decode_video` and `iter_decode` among the processes of `group` (None: all).

        Every process must decode the same latents and take all frames; each gets what one alone would, bit-exact.
        """
        self._spread = Spread(group) if enabled else None

    def run_jobs(self, jobs: Iterator[Job]) -> Iterator[Tensor]:
        """The result of each job, in order, from this process or from all that chunks are spread over."""
        return super().run_jobs(jobs) if self._spread is None else self._spread.run(jobs)
