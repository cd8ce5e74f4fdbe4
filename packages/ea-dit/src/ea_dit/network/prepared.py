"""Prompt and schedule prepared for sampling: computed once for all steps.

Equal in real numbers to giving text, mask and timesteps at each step; it saves work whose result is known:
keys and values of padding (its weight in the attention is exp(-10000) = 0), linears that a short text makes
needless (text_groups.py), the modulation of each timestep, and all that guidance branches share before the
text. Shapes as in model.py; R rows of text, R = r * B.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from .attention import mask_bias
from .blocks import TransformerBlock
from .config import TransformerConfig
from .embeddings import AdaLayerNormSingle, TextProjection
from .inputs import check_text, size_conditions
from .known_frames import PictureProjection, with_picture
from .text_groups import TextGroups, group_text
from .waiting import weights_of

BlockText = TextGroups | tuple[Tensor, Tensor]


class Preparable(Protocol):
    """The part of `Transformer3DModel` that is needed here."""

    cfg: TransformerConfig
    caption_projection: TextProjection | None
    clip_projection: PictureProjection | None
    adaln_single: AdaLayerNormSingle

    @property
    def blocks(self) -> list[TransformerBlock]: ...


@dataclass(frozen=True)
class Prepared:
    """From `Transformer3DModel.prepare`.

    Attributes:
        texts: for each block the input of its cross-attention.
        bias: (R, 1, 1, S) if the mask is not all zeros and ones, else None.
        rows: R.
        steps: timestep -> modulation (1, 6, D) and embedding (1, D).
    """

    texts: tuple[BlockText, ...]
    bias: Tensor | None
    rows: int
    steps: dict[float, tuple[Tensor, Tensor]]

    def at(self, timestep: Tensor | float) -> tuple[Tensor, Tensor]:
        """Modulation (1, 6, D) and embedding (1, D). Raises ValueError for a timestep that was not prepared."""
        found = timestep.reshape(-1)[0].item() if isinstance(timestep, Tensor) else float(timestep)
        if found not in self.steps:
            raise ValueError(
                f"`timestep` {found:g} was not prepared; give prepare() all of the schedule's timesteps"
            )
        return self.steps[found]


def prepare(
    model: Preparable,
    text: Tensor,
    mask: Tensor | None,
    timesteps: Iterable[float],
    conditions: Any,
    clip: tuple[Tensor, Tensor | None] | None = None,
) -> Prepared:
    """See `Transformer3DModel.prepare`. clip: embeddings (R, 768) and the mask (R, 8) of their tokens."""
    rows = text.shape[0]
    check_text(model.cfg, text, mask, rows)
    if clip is None:
        groups, bias = _without_padding(text, mask)
        if model.caption_projection is not None:
            groups = [model.caption_projection(group) for group in groups]
    else:
        assert model.clip_projection is not None  # checked by check_clip()
        projected = text if model.caption_projection is None else model.caption_projection(text)
        groups, bias = _with_picture(projected, mask, model.clip_projection(clip[0]), clip[1])
    texts: list[BlockText] = []
    for block in model.blocks:
        with weights_of(block):
            texts.append(
                group_text(block.attn2, groups) if bias is None else block.attn2.keys_values(groups[0])
            )
    return Prepared(tuple(texts), bias, rows, _conditioning(model, timesteps, conditions, text))


def _without_padding(text: Tensor, mask: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
    """Text (R, S, C) in groups of neighbouring rows of equal length, without the tokens that the mask leaves out."""
    if mask is None:
        return [text], None
    if mask.ndim != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        return [text], mask_bias(mask, text.dtype)
    kept = mask.bool()
    # A row of padding alone has the same bias on all scores, which is like none.
    kept = kept | ~kept.any(dim=1, keepdim=True)
    rows = [row[keep] for row, keep in zip(text, kept, strict=True)]
    return [torch.stack(list(group)) for _, group in groupby(rows, key=lambda row: row.shape[0])], None


def _with_picture(
    text: Tensor, mask: Tensor | None, picture: Tensor, picture_mask: Tensor | None
) -> tuple[list[Tensor], Tensor | None]:
    """`_without_padding` of text (R, S, D) and the tokens of CLIP's picture (R, 8, D) after it."""
    if mask is not None and mask.ndim != 2:
        joined, bias = with_picture(text, mask_bias(mask, text.dtype), picture, picture_mask)
        return [joined], bias
    masks = [
        one.new_ones(one.shape[:2]) if own is None else own.to(one)
        for one, own in ((text, mask), (picture, picture_mask))
    ]
    return _without_padding(torch.cat([text, picture], dim=1), torch.cat(masks, dim=1))


def _conditioning(
    model: Preparable, timesteps: Iterable[float], conditions: Any, like: Tensor
) -> dict[float, tuple[Tensor, Tensor]]:
    steps = list(dict.fromkeys(float(step) for step in timesteps))
    resolution, aspect_ratio = size_conditions(model.cfg, conditions, like.shape[0])
    for name, value in (("resolution", resolution), ("aspect_ratio", aspect_ratio)):
        if value is not None and not torch.equal(value, value[:1].expand_as(value)):
            raise ValueError(f"`added_cond_kwargs['{name}']` must be equal in all rows, got {value.tolist()}")
    at = torch.tensor(steps, device=like.device)
    sizes = [None if v is None else v[:1].expand(len(steps), -1) for v in (resolution, aspect_ratio)]
    modulation, embedded = model.adaln_single(at, *sizes, like.dtype)  # (steps, 6, D), (steps, D)
    return {step: (modulation[i : i + 1], embedded[i : i + 1]) for i, step in enumerate(steps)}
