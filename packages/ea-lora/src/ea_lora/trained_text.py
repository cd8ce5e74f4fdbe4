"""The text encoder, trained too: captions are encoded again in every step, with its adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ea_lora.adapters import Adapters, adapt
from ea_lora.folder import t5_shapes
from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote
from ea_runtime.models.layout import resolve_folder
from ea_runtime.text.cleaning import check_prompt, clean_caption
from ea_runtime.training.recipe import Batch, Context


class TrainedText:
    """Puts adapters on the base's text encoder and answers `source.text` in place of the cached features.

    base: the denoiser's recipe (its `source` and `context`). Raises UserError with low_vram.
    """

    def __init__(self, base: Any, sizes: dict[str, Any], low_vram: bool) -> None:
        if low_vram:
            raise UserError(
                "`network.text` trains the text encoder, which `memory.low_vram` removes; set one of them only"
            )
        self.source = base.source
        self.encoder, self.network = _load(self.source.coder.parts, base.context)
        self.adapters: Adapters = adapt(self.network, "text", **sizes)
        self.network.train()
        base.source.text = self.features

    def features(
        self,
        batch: Batch,
        dropped: Sequence[bool],
        device: str | torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """As `EncodedSource.text`: (B, L, D) and mask (B, L), with gradients to the adapters."""
        captions = [
            "" if drop else self.source.set.item(index).text
            for index, drop in zip(batch.indices, dropped, strict=True)
        ]
        for caption in captions:
            check_prompt(caption)
        ids, mask, _, _ = self.encoder.tokenize([clean_caption(text) for text in captions], 120)
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest].to(device), mask[:, :longest].to(device)
        hidden = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        return (hidden * mask[:, :, None]).to(dtype), mask


def _load(folder: str, context: Context) -> tuple[Any, nn.Module]:
    """Our text encoder and its T5; in a dry run its T5 alone, without weights."""
    if not context.dry_run:
        from ea_runtime.models.loading import load_parts

        encoder: Any = load_parts(folder, device=context.device, parts=("text",)).text
        return encoder, encoder.model
    network = t5_shapes(resolve_folder(folder))
    if network is None:
        raise UserError(
            f"`network.text` needs a T5 as text encoder, and that of {quote(folder)} is none; set it to false"
        )
    return None, network
