"""What a call says of its text, and that text turned into embeddings.

Shapes: text embeddings (B, L, D), masks (B, L), 1 on tokens and 0 on padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.generation.denoise import Text
from ea_runtime.generation.requests import check_negatives, check_prompts


@dataclass(frozen=True, slots=True)
class TextInput:
    """The text arguments of a call: see VideoPipeline.__call__."""

    prompt: Any
    negative_prompt: Any
    embeds: Tensor | None
    mask: Tensor | None
    negative_embeds: Tensor | None
    negative_mask: Tensor | None

    def check(self, encoder: Any, has_guidance: bool) -> int:
        """Checks all of it and returns the number of videos. Raises UserError."""
        if (self.prompt is None) == (self.embeds is None):
            got = "neither" if self.prompt is None else "both"
            raise UserError(f"give either `prompt` or `prompt_embeds`, got {got}")
        if self.prompt is not None:
            batch = len(check_prompts(self.prompt))
            if not can_encode(encoder):
                raise UserError(
                    "`prompt` needs a text encoder with a tokenizer, and `text` is "
                    f"{type(encoder).__name__}; give `prompt_embeds`, or text=TextEncoder(model, tokenizer)"
                )
        else:
            batch = _check_embeds("prompt", self.embeds, self.mask)
        if self.negative_embeds is not None:
            count = _check_embeds("negative_prompt", self.negative_embeds, self.negative_mask)
            if count not in (1, batch):
                raise UserError(f"`negative_prompt_embeds` must hold 1 or {batch} texts, got {count}")
            if self.embeds is not None and self.negative_embeds.shape[1:] != self.embeds.shape[1:]:
                raise UserError(
                    f"`negative_prompt_embeds` must have {tuple(self.embeds.shape[1:])} tokens and "
                    f"channels like `prompt_embeds`, got {tuple(self.negative_embeds.shape[1:])}"
                )
        else:
            check_negatives(self.negative_prompt, batch)
            if has_guidance and not can_encode(encoder):
                raise UserError(
                    "`negative_prompt_embeds` must be given with `prompt_embeds` where there is no text "
                    "encoder; or set guidance_scale to 1"
                )
        return batch

    def settings(self) -> dict[str, Any]:
        """The arguments that say something, by their names in the call."""
        named = {
            "prompt": self.prompt,
            "prompt_embeds": self.embeds,
            "prompt_attention_mask": self.mask,
            "negative_prompt_embeds": self.negative_embeds,
            "negative_prompt_attention_mask": self.negative_mask,
        }
        found = {name: value for name, value in named.items() if value is not None}
        if self.negative_embeds is None:
            found["negative_prompt"] = "" if self.negative_prompt is None else self.negative_prompt
        return found


def can_encode(encoder: Any) -> bool:
    """Whether this is a text encoder that takes prompts, not a bare network."""
    return callable(getattr(encoder, "encode", None))


def encode_text(
    given: TextInput,
    encoder: Any,
    has_guidance: bool,
    on_step: Callable[[str, int, int], None],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Text, list[str]]:
    """The text of all videos on the denoiser's device, and notes for the user.

    Each different text is encoded once and by itself, so that a prompt's embeddings do not depend on what
    stands beside it in a batch.
    """
    prompts = [] if given.prompt is None else check_prompts(given.prompt)
    batch = len(prompts) or (0 if given.embeds is None else given.embeds.shape[0])
    needs_negative = has_guidance and given.negative_embeds is None
    negatives = check_negatives(given.negative_prompt, batch) if needs_negative else []
    texts = list(dict.fromkeys([*prompts, *negatives]))
    encoded: dict[str, Any] = {}
    notes = ["the prompt is empty: nothing says what to show"] if any(not p.strip() for p in prompts) else []
    on_step("text", 0, len(texts))
    for done, text in enumerate(texts, 1):
        encoded[text] = encoder.encode([text])
        notes += _cut_notes(encoded[text])
        on_step("text", done, len(texts))

    def joined(wanted: list[str], embeds: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if embeds is None:
            embeds = torch.cat([encoded[text].embeds for text in wanted])
            mask = torch.cat([encoded[text].mask for text in wanted])
        elif mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
        assert mask is not None
        return embeds.to(device, dtype), mask.to(device)

    embeds, mask = joined(prompts, given.embeds, given.mask)
    if not has_guidance:
        return Text(embeds, mask), notes
    negative, negative_mask = joined(negatives, given.negative_embeds, given.negative_mask)
    if negative.shape[1:] != embeds.shape[1:]:
        raise UserError(
            f"`negative_prompt_embeds` must have {tuple(embeds.shape[1:])} tokens and channels like "
            f"the prompt's, got {tuple(negative.shape[1:])}"
        )
    if negative.shape[0] != batch:
        negative, negative_mask = negative.expand(batch, -1, -1), negative_mask.expand(batch, -1)
    return Text(embeds, mask, negative, negative_mask), notes


def _cut_notes(encoded: Any) -> list[str]:
    if hasattr(encoded, "notes"):
        return list(encoded.notes())
    return [
        f"the end of the prompt is not seen: {text!r}" for text in getattr(encoded, "truncated", ()) if text
    ]


def _check_embeds(name: str, embeds: Any, mask: Any) -> int:
    if (
        not isinstance(embeds, Tensor)
        or embeds.ndim != 3
        or not embeds.is_floating_point()
        or not len(embeds)
    ):
        shape = tuple(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
        raise UserError(f"`{name}_embeds` must be a floating-point tensor (B, tokens, channels), got {shape}")
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != embeds.shape[:2]):
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise UserError(f"`{name}_attention_mask` must have shape {tuple(embeds.shape[:2])}, got {shape}")
    return embeds.shape[0]
