"""The texts of a request: checked, and turned into embeddings.

Shapes: text embeddings (B, L, D), masks (B, L), 1 on tokens and 0 on padding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.generation.denoise import Text
from ea_runtime.generation.requests import Request, check_negatives, check_prompts
from ea_runtime.text.lost_words import tell_lost_words


def check_text(request: Request, encoder: Any) -> int:
    """Checks all texts of a request and returns the number of videos. Raises UserError."""
    embeds, negative = request.prompt_embeds, request.negative_prompt_embeds
    if (request.prompt is None) == (embeds is None):
        got = "neither" if embeds is None else "both"
        raise UserError(f"give either `prompt` or `prompt_embeds`, got {got}")
    if embeds is not None:
        batch = _check_embeds("prompt", embeds, request.prompt_attention_mask)
    else:
        batch = len(check_prompts(request.prompt))
        if not can_encode(encoder):
            raise UserError(
                "`prompt` needs a text encoder with a tokenizer, and `text` is "
                f"{type(encoder).__name__}; give `prompt_embeds`, or text=TextEncoder(model, tokenizer)"
            )
    if request.prompts_at is not None and not can_encode(encoder):
        raise UserError("`prompts_at` needs a text encoder, and this pipeline has none; give `text=`")
    if negative is None:
        check_negatives(request.negative_prompt, batch)
        if request.has_guidance and not can_encode(encoder):
            raise UserError(
                "`negative_prompt_embeds` must be given with `prompt_embeds` where there is no text "
                "encoder; or set guidance_scale to 1"
            )
        return batch
    count = _check_embeds("negative_prompt", negative, request.negative_prompt_attention_mask)
    if count not in (1, batch):
        raise UserError(f"`negative_prompt_embeds` must hold 1 or {batch} texts, got {count}")
    if embeds is not None and negative.shape[1:] != embeds.shape[1:]:
        raise UserError(
            f"`negative_prompt_embeds` must have {tuple(embeds.shape[1:])} tokens and "
            f"channels like `prompt_embeds`, got {tuple(negative.shape[1:])}"
        )
    return batch


def can_encode(encoder: Any) -> bool:
    """True for a text encoder that takes prompts, False for a bare network."""
    return callable(getattr(encoder, "encode", None))


def encode_text(
    request: Request,
    encoder: Any,
    on_step: Callable[[str, int, int], None],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[list[Text], list[str]]:
    """The text of all videos on the denoiser's device, then each later one of `prompts_at`, and notes for the user.

    Each different text is encoded once and alone, so that a prompt's embeddings do not depend on the rest of its
    batch.
    """
    later = [text for _, text in request.prompts_at or ()]
    prompts = [] if request.prompt is None else check_prompts(request.prompt)
    batch = len(prompts) if request.prompt_embeds is None else len(request.prompt_embeds)
    needs_negative = request.has_guidance and request.negative_prompt_embeds is None
    negatives = check_negatives(request.negative_prompt, batch) if needs_negative else []
    texts = list(dict.fromkeys([*prompts, *later, *negatives]))
    encoded: dict[str, Any] = {}
    notes = ["the prompt is empty: nothing says what to show"] if any(not p.strip() for p in prompts) else []
    on_step("text", 0, len(texts))
    for done, text in enumerate(texts, 1):
        encoded[text] = encoder.encode([text])
        notes += _notes_on(text, encoded[text])
        on_step("text", done, len(texts))

    def joined(wanted: list[str], embeds: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if embeds is None:
            embeds = torch.cat([encoded[text].embeds for text in wanted])
            mask = torch.cat([encoded[text].mask for text in wanted])
        elif mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.int64)
        assert mask is not None
        return embeds.to(device, dtype), mask.to(device)

    own = joined(prompts, request.prompt_embeds, request.prompt_attention_mask)
    positive = [own, *(joined([text] * batch, None, None) for text in later)]
    if not request.has_guidance:
        return [Text(embeds, mask) for embeds, mask in positive], notes
    negative, negative_mask = joined(
        negatives, request.negative_prompt_embeds, request.negative_prompt_attention_mask
    )
    for embeds, _ in positive:
        if negative.shape[1:] != embeds.shape[1:]:
            raise UserError(
                f"`negative_prompt_embeds` must have {tuple(embeds.shape[1:])} tokens and channels like "
                f"the prompt's, got {tuple(negative.shape[1:])}"
            )
    if negative.shape[0] != batch:
        negative, negative_mask = negative.expand(batch, -1, -1), negative_mask.expand(batch, -1)
    return [Text(embeds, mask, negative, negative_mask) for embeds, mask in positive], notes


def _notes_on(text: str, encoded: Any) -> list[str]:
    """Parts of a text that the encoder did not see: words that cleaning removed, and the end."""
    lost = tell_lost_words([text], "prompt") if hasattr(encoded, "cleaned") else None
    return [*([lost] if lost else []), *_cut_notes(encoded)]


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
