"""Checks of the arguments of `Transformer3DModel`, so that model.py holds only the network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .config import TransformerConfig


def check_latents(config: TransformerConfig, latents: Tensor) -> None:
    """Raises ValueError, one line, unless `latents` is (B, C, T, H, W) as the config wants it."""
    if latents.ndim != 5:
        raise ValueError(
            f"`hidden_states` must have 5 axes (batch, channels, frames, height, width),"
            f" got shape {tuple(latents.shape)}; a picture is one frame: add an axis with unsqueeze(2)"
        )
    _, channels, num_frames, height, width = latents.shape
    if channels != config.latent_channels:
        raise ValueError(
            f"`hidden_states` must have {config.latent_channels} channels, got {channels}; check the VAE"
        )
    # A grid motion module also needs whole blocks of patches.
    multiple = config.patch_size * config.motion_block_size
    if height % multiple or width % multiple or not height or not width:
        raise ValueError(
            f"`hidden_states` height and width must be multiples of {multiple}, got {height}x{width};"
            f" use {max(height // multiple, 1) * multiple}x{max(width // multiple, 1) * multiple}"
        )
    if config.max_frames is not None and num_frames > config.max_frames:
        raise ValueError(
            f"`hidden_states` may have at most {config.max_frames} latent frames, got {num_frames};"
            " make the video shorter (temporal_position_encoding_max_len is the limit)"
        )


def check_text(config: TransformerConfig, text: Tensor | None, mask: Tensor | None, batch: int) -> Tensor:
    """The text. Raises ValueError, one line, unless it is (B, S, width) and the mask (B, S), (B, 1, S) or None."""
    if text is None:
        raise ValueError(
            "`encoder_hidden_states` must be given (batch, tokens, channels), got None; encode a prompt first"
        )
    if text.ndim != 3 or text.shape[0] != batch:
        raise ValueError(
            f"`encoder_hidden_states` must have shape ({batch}, tokens, {config.text_width}),"
            f" got {tuple(text.shape)}; it holds one text for each sample"
        )
    if text.shape[-1] != config.text_width:
        raise ValueError(
            f"`encoder_hidden_states` must have {config.text_width} channels, got {text.shape[-1]};"
            " use the text encoder that this model was trained with"
        )
    if mask is not None and tuple(mask.shape) not in ((batch, text.shape[1]), (batch, 1, text.shape[1])):
        raise ValueError(
            f"`encoder_attention_mask` must have shape ({batch}, {text.shape[1]}), got {tuple(mask.shape)};"
            " it holds 1 for text and 0 for padding"
        )
    return text


def check_rows(rows: int, batch: int) -> None:
    """Raises ValueError, one line, unless prepared text has whole branches for a batch."""
    if rows % batch:
        raise ValueError(
            f"`prepared` holds {rows} rows of text, which is no multiple of {batch}, the batch; prepare as many"
            " texts for each sample"
        )


def size_conditions(
    config: TransformerConfig, conditions: Mapping[str, Tensor | None] | None, batch: int
) -> tuple[Tensor | None, Tensor | None]:
    """-> resolution (B, 2), aspect_ratio (B, 1); None, None if the model takes none. Raises ValueError."""
    if not config.has_size_conditions:
        return None, None
    found = []
    for name, count in (("resolution", 2), ("aspect_ratio", 1)):
        value = None if conditions is None else conditions.get(name)
        if value is None:
            raise ValueError(
                f"`added_cond_kwargs` must hold '{name}' if sample_size is {config.sample_size}, got none;"
                " pass {'resolution': (batch, 2) height and width in pixels, 'aspect_ratio': (batch, 1)}"
            )
        if value.numel() != batch * count:
            raise ValueError(
                f"`added_cond_kwargs['{name}']` must have shape ({batch}, {count}), got {tuple(value.shape)};"
                " it holds one row for each sample"
            )
        found.append(value)
    return found[0], found[1]


def batch_timestep(timestep: Tensor | float, batch: int, device: torch.device) -> Tensor:
    """One timestep for all or one for each sample -> (B,) on `device`. Raises ValueError, one line."""
    timestep = torch.as_tensor(timestep, device=device)
    if timestep.numel() not in (1, batch):
        raise ValueError(
            f"`timestep` must be one number or of shape ({batch},), got shape {tuple(timestep.shape)};"
            " it holds one for each sample"
        )
    return timestep.reshape(-1).expand(batch)
