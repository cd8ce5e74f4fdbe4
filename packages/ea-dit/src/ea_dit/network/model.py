"""The denoiser of EasyAnimate V2 and V3: a PixArt-style diffusion transformer with motion modules and U-ViT skips.

Shapes, one letter each:
    B batch   C latent channels (4)   T latent frames   H W latent height and width
    p patch size (2)   h w = H/p, W/p tokens   L = h * w tokens in a frame
    D width (1152 = 16 heads x 72)   S text tokens (120)

The whole network, top to bottom (`forward` reads the same way):
    latents (B, C, T, H, W) -- patches + 2-D position --> x (B, T * L, D)
    timestep (B,)           -- sinusoid, MLP, linear  --> modulation (B, 6, D), shared by all blocks
    text (B, S, 4096)       -- MLP                    --> keys and values of each block's cross-attention
    block i:  x += skip of a block in the first half    U-ViT, second half only; last out, first in
              x += gate * attention(modulated norm(x))  within a frame
              x += motion module(x)                     through time, the only place where frames meet
              x += cross-attention(x, text)
              x += gate * MLP(modulated norm(x))
    x -- modulated norm, linear, unpatch --> (B, 2C, T, H, W): noise, then variance (see loss.py)

V3 differs in three places. Every second block's motion module attends over all tokens of the video. The first layer
takes 3C channels: the latents, then the known frames as (mask, masked video), both encoded by the VAE. CLIP's embedding
of the first picture becomes 8 more text tokens.

The layers are next to this file: embeddings.py, attention.py, motion.py, blocks.py; config.py has their sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.outputs import BaseOutput
from einops import rearrange
from torch import Tensor, nn

from .attention import mask_bias
from .blocks import TransformerBlock, modulated
from .config import TransformerConfig
from .embeddings import AdaLayerNormSingle, PatchEmbed, TextProjection
from .inputs import batch_timestep, check_latents, check_rows, check_text, size_conditions
from .known_frames import PictureProjection, check_clip, with_known_frames, with_picture
from .linear import Linear
from .meta import unless_meta
from .parallel import FrameSplit, VideoSplit, shares
from .prepared import Prepared, prepare

#: called as step_cache(signal, x, blocks) in place of blocks(x)
StepCache = Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]


@dataclass
class Transformer3DModelOutput(BaseOutput):
    """`sample`: (B, out_channels, T, H, W), the predicted noise, then (where 2C) the variance (loss.py)."""

    sample: Tensor


class Transformer3DModel(ModelMixin, ConfigMixin):
    """EasyAnimate V2's and V3's transformer; loads published configs and weights as they are.

    The arguments are the keys of a published config.json, the defaults its values; `TransformerConfig`
    documents and checks them.

    Source: EasyAnimate (arXiv 2405.18991), PixArt-alpha (arXiv 2310.00426), U-ViT (arXiv 2209.12152).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["TransformerBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["TransformerBlock"]  # for compile_repeated_blocks()

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = 8,
        num_layers: int = 28,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        cross_attention_dim: int | None = 1152,
        attention_bias: bool = True,
        sample_size: int = 64,
        num_vector_embeds: int | None = None,
        patch_size: int = 2,
        activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int | None = 1000,
        use_linear_projection: bool = False,
        only_cross_attention: bool = False,
        double_self_attention: bool = False,
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_single",
        norm_elementwise_affine: bool = False,
        norm_eps: float = 1e-6,
        attention_type: str = "default",
        caption_channels: int | None = 4096,
        basic_block_type: str = "motionmodule",
        enable_uvit: bool = True,
        patch_3d: bool = False,
        fake_3d: bool = False,
        time_patch_size: int | None = None,
        casual_3d: bool = False,
        casual_3d_upsampler_index: list[int] | None = None,
        motion_module_type: str = "Vanilla",
        motion_module_kwargs: dict[str, Any] | None = None,
        time_position_encoding_before_transformer: bool = False,
        motion_module_kwargs_even: dict[str, Any] | None = None,
        motion_module_kwargs_odd: dict[str, Any] | None = None,
        qk_norm: bool = False,
        after_norm: bool = False,
        enable_clip_in_inpaint: bool = True,
    ) -> None:
        super().__init__()
        self.cfg = cfg = TransformerConfig.from_mapping(self.config)
        self.pos_embed = PatchEmbed(cfg)
        self.adaln_single = AdaLayerNormSingle(cfg)
        self.caption_projection = (
            TextProjection(cfg.caption_channels, cfg.width) if cfg.caption_channels else None
        )
        self.clip_projection = PictureProjection(cfg.text_inner_width) if cfg.has_picture else None
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(cfg, index) for index in range(cfg.num_layers)]
        )
        if cfg.enable_uvit:
            self.long_connect_fc = nn.ModuleList([Linear(cfg.width, cfg.width) for _ in range(cfg.num_skips)])
            for parameter in self.long_connect_fc.parameters():
                nn.init.zeros_(parameter)
        self.norm_out = nn.LayerNorm(cfg.width, eps=1e-6, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(
            unless_meta(lambda: torch.randn(2, cfg.width) / cfg.width**0.5, 2, cfg.width)
        )
        self.proj_out = Linear(cfg.width, cfg.patch_size**2 * cfg.output_channels)
        self.gradient_checkpointing = False
        self.frame_split: FrameSplit | None = None

    @classmethod
    def from_pretrained_2d(
        cls,
        folder: str | PathLike[str],
        subfolder: str | None = None,
        *,
        output_loading_info: bool = False,
        **overrides: Any,
    ) -> Any:
        """Start from a PixArt picture transformer; each frame is then equal to that model's output.

        Args:
            folder: holds config.json of diffusers' Transformer2DModel or PixArtTransformer2DModel and its weights
                as safetensors (shards too), itself or in `subfolder` (if not given, also in transformer/).
            subfolder: folder within `folder`.
            output_loading_info: return (model, report); the report (from_2d.StartReport) names the tensors that
                matched, stayed fresh, or found no place. It is always logged.
            overrides: keys of this class's config to set, such as motion_module_type.

        Raises:
            ValueError: one line, for another class, pickled or damaged weights, position rules that this network does
                not have, an unknown override, or if no tensor matches.
        """
        from ..weights.from_2d import fill_from_2d, find_folder, map_config, read_config, weight_files

        path = find_folder(str(folder), subfolder)
        config = map_config(cls, read_config(path), overrides)
        files = weight_files(path)
        model = cls(**config)
        report = fill_from_2d(model, files)
        model.eval()
        return (model, report) if output_loading_info else model

    @property
    def blocks(self) -> list[TransformerBlock]:
        """`transformer_blocks`, with their type."""
        return cast("list[TransformerBlock]", list(self.transformer_blocks))

    def prepare(
        self,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None,
        timesteps: Iterable[float],
        added_cond_kwargs: Mapping[str, Tensor | None] | None = None,
        clip_encoder_hidden_states: Tensor | None = None,
        clip_attention_mask: Tensor | None = None,
    ) -> Prepared:
        """Compute once all that the steps of sampling share: text without its padding, the timesteps' modulation.

        Args:
            encoder_hidden_states: text embeddings (R, S, caption_channels), R rows for B videos: R = B, or with
                guidance 2B, all negative texts before the positive ones.
            encoder_attention_mask: (R, S), 1 = text, 0 = padding; or a ready bias (R, 1, S); None: all count.
            timesteps: all timesteps of the passes.
            added_cond_kwargs: as in `forward`, equal in all rows.
            clip_encoder_hidden_states, clip_attention_mask: as in `forward`, of R rows.

        Returns:
            The argument `prepared` of `forward`, valid until the weights change.

        Raises:
            ValueError: for shapes that do not fit, in one line.
        """
        clip = check_clip(
            self.cfg, clip_encoder_hidden_states, clip_attention_mask, len(encoder_hidden_states)
        )
        return prepare(
            self, encoder_hidden_states, encoder_attention_mask, timesteps, added_cond_kwargs, clip
        )

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor | None] | None = None,
        return_dict: bool = True,
        prepared: Prepared | None = None,
        step_cache: StepCache | None = None,
        inpaint_latents: Tensor | None = None,
        clip_encoder_hidden_states: Tensor | None = None,
        clip_attention_mask: Tensor | None = None,
    ) -> Transformer3DModelOutput | tuple[Tensor]:
        """Predict the noise (and its variance) in `hidden_states`.

        Args:
            hidden_states: noisy latents (B, C, T, H, W), T = 1 for a picture.
            timestep: (B,) or one number for all, 0 .. 999.
            encoder_hidden_states: text embeddings (B, S, caption_channels).
            encoder_attention_mask: (B, S), 1 = text, 0 = padding; None: every token counts.
            added_cond_kwargs: {"resolution": (B, 2) height and width in pixels, "aspect_ratio": (B, 1) their
                ratio height / width}, for models of sample_size 128 only; others ignore it.
            return_dict: False returns a tuple of one tensor.
            prepared: from `prepare()`, in place of text and size conditions. Made for R = r * B rows of text, r
                guidance branches of the same latents (row r * B + b has latents b), it yields R samples.
            step_cache: called as step_cache(signal, x, blocks) in place of blocks(x), and may give an
                approximation of it without calling it; signal (B, T * L, D) is the first block's modulated input.
            inpaint_latents: (B, 2C, T, H, W), V3's known frames: the coded mask, then the coded masked video.
            clip_encoder_hidden_states: (B, 768), V3: CLIP's embedding of the first picture; None: without.
            clip_attention_mask: (B, 8), 1 where the tokens that are made of it count; None: all ones.

        Returns:
            `.sample` (B, out_channels, T, H, W), with `prepared` (R, ...).

        Raises:
            ValueError: for shapes that do not fit the config, in one line.
        """
        check_latents(self.cfg, hidden_states)
        hidden_states = with_known_frames(self.cfg, hidden_states, inpaint_latents)
        batch, _, num_frames, latent_height, latent_width = hidden_states.shape
        height, width = latent_height // self.cfg.patch_size, latent_width // self.cfg.patch_size
        texts: Sequence[Any]  # for each block's cross-attention
        if prepared is not None:
            check_rows(prepared.rows, batch)
            texts, bias = prepared.texts, prepared.bias
            modulation, embedded = prepared.at(timestep)
            if bias is not None:  # no branch is shared
                hidden_states = hidden_states.repeat(prepared.rows // batch, 1, 1, 1, 1)
        else:
            resolution, aspect_ratio = size_conditions(self.cfg, added_cond_kwargs, batch)
            text = check_text(self.cfg, encoder_hidden_states, encoder_attention_mask, batch)
            clip = check_clip(self.cfg, clip_encoder_hidden_states, clip_attention_mask, batch)
            if self.caption_projection is not None:
                text = self.caption_projection(text)  # (B, S, D)
            bias = None if encoder_attention_mask is None else mask_bias(encoder_attention_mask, text.dtype)
            if clip is not None:
                assert self.clip_projection is not None  # checked by check_clip()
                text, bias = with_picture(text, bias, self.clip_projection(clip[0]), clip[1])
            texts = [text] * self.cfg.num_layers
            timestep = batch_timestep(timestep, batch, hidden_states.device)  # (B,)
            # (B, 6, D) and (B, D)
            modulation, embedded = self.adaln_single(timestep, resolution, aspect_ratio, hidden_states.dtype)

        x = self.pos_embed(hidden_states)  # (B, T * L, D)
        split = self._split_of(num_frames, height * width)
        count = num_frames if split is None else shares(num_frames, split.size)[split.rank]

        def blocks(x: Tensor) -> Tensor:
            return self._run_blocks(x, modulation, texts, bias, (count, height, width))

        mine = x if split is None else split.own(x)
        with self._over(split):
            if step_cache is None:
                out = blocks(mine)
            else:  # the signal is that of all frames, so that all processes decide alike
                out = step_cache(self.blocks[0].modulated(x, modulation), mine, blocks)

        shift, scale = (self.scale_shift_table + embedded[:, None]).chunk(2, dim=1)  # (B, 1, D) each
        x = self.proj_out(modulated(self.norm_out, out, shift, scale))  # (B, T * L, p * p * out_channels)
        x = x if split is None else split.whole(x)
        patch = {"p": self.cfg.patch_size, "q": self.cfg.patch_size}
        # (B, out_channels, T, H, W)
        sample = rearrange(x, "b (t h w) (p q c) -> b c t (h p) (w q)", t=num_frames, h=height, **patch)
        return Transformer3DModelOutput(sample=sample) if return_dict else (sample,)

    def _run_blocks(
        self,
        x: Tensor,
        modulation: Tensor,
        texts: Sequence[Any],
        bias: Tensor | None,
        grid: tuple[int, int, int],
    ) -> Tensor:
        """All blocks and skips; grid: latent frames, rows and columns of tokens."""
        skips: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if index >= self.cfg.first_skip_block:
                x = x + self.long_connect_fc[index - self.cfg.first_skip_block](skips.pop())
            arguments = (x, modulation, texts[index], bias, *grid)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                assert self._gradient_checkpointing_func is not None  # set by enable_gradient_checkpointing()
                x = self._gradient_checkpointing_func(block, *arguments)
            else:
                x = block(*arguments)
            if index < self.cfg.num_skips:
                skips.append(x)
        return x

    # -- several processes -------------------------------------------------------------------------

    def spread(self, enabled: bool = True, group: Any = None) -> None:
        """Share each pass's frames among the processes of `group` (None: all; see parallel.py), or no longer.

        For passes without gradients, the same in all processes. One of fewer latent frames or tracks than processes
        is computed whole in each.
        """
        self.frame_split = FrameSplit(group) if enabled else None

    def _split_of(self, num_frames: int, num_tokens: int) -> VideoSplit | None:
        tracks = num_tokens // self.cfg.motion_block_size**2
        if self.frame_split is None or not self.frame_split.fits(num_frames, tracks):
            return None
        return self.frame_split.of(num_frames, tracks)

    @contextmanager
    def _over(self, split: VideoSplit | None) -> Iterator[None]:
        if split is None:
            yield
            return
        motion = [block.attn_temporal.temporal_transformer for block in self.blocks]
        try:
            for module in motion:
                module.split = split
            yield
        finally:
            for module in motion:
                module.split = None

    def set_motion_modules(self, enabled: bool) -> None:
        """Leave the motion modules out (False) or in (True).

        Fresh motion modules are the identity, and 60% of the arithmetic: leave them out while pictures are
        trained first, with the same result. The state dict keeps them.
        """
        for block in self.blocks:
            block.use_motion = enabled
