"""From prompts to what the denoiser attends to: cleaning, tokens, T5.

Importing this module loads neither torch nor transformers; making a TextEncoder does.

Shape legend: B prompts, L tokens, D the encoder's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError
from ea_runtime.machine.casting import cast
from ea_runtime.text.cleaning import MAX_PROMPT_BYTES, check_prompt, clean_caption
from ea_runtime.text.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from ea_runtime.text.weights import check_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from ea_runtime.text.t5 import PutLayer

__all__ = [
    "MAX_LENGTH",
    "MAX_PROMPT_BYTES",
    "Encoded",
    "TextEncoder",
    "check_prompt",
    "clean_caption",
    "train_tokenizer",
]

#: Tokens a prompt is padded and cut to, `</s>` among them; EasyAnimate V2's number.
MAX_LENGTH = 120


@dataclass(frozen=True)
class Encoded:
    """B prompts as the denoiser gets them, and what the user should know about them.

    embeds: (B, L, D). mask: (B, L) int64, 1 on tokens (`</s>` included) and 0 on padding.
    cleaned: each prompt as the encoder saw it. num_tokens: each prompt's tokens without `</s>`, before the
    cut. truncated: the part of each cleaned prompt that was cut off, "" if nothing was. unknown: words of each with
    characters that the tokenizer has no token for; none where they were not looked for.
    """

    embeds: Tensor
    mask: Tensor
    cleaned: list[str]
    num_tokens: list[int]
    truncated: list[str]
    unknown: list[list[str]] = field(default_factory=list)

    def notes(self) -> list[str]:
        """One line for each prompt that was cut, or has unknown words, to be shown to the user."""
        seen = self.mask.shape[1] - 1
        cut = [
            f"the prompt has {count} tokens, and the last {count - seen} are not seen: {_shorten(text)!r}"
            for count, text in zip(self.num_tokens, self.truncated, strict=True)
            if text
        ]
        unknown = [
            f"the text encoder cannot read these words of the prompt: {_shorten(', '.join(words))}; write "
            "others"
            for words in self.unknown
            if words
        ]
        return cut + unknown


def _shorten(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


class TextEncoder:
    """A T5 encoder and its tokenizer: prompts in, padded token embeddings out.

    model: a T5Encoder (text/t5.py) or transformers' T5EncoderModel. tokenizer: a T5 tokenizer (`<pad>` 0, `</s>` 1,
    `<unk>` 2).
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        put_layer: PutLayer | None = None,
    ) -> TextEncoder:
        """Loads `folder`/text_encoder (config.json, *.safetensors) and `folder`/tokenizer.

        dtype: float32 when not given. put_layer: gives layers their weights in another form (t5.py). Raises UserError,
        one line each, for missing, pickled, damaged or incomplete weights, a config that is not T5's, and a missing or
        damaged tokenizer.
        """
        part = Path(folder) / "text_encoder"
        model = _load_model(part, Path(folder), dtype, put_layer)
        return cls(model.to(device), load_tokenizer(Path(folder) / "tokenizer"))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `folder`/text_encoder (config.json, model.safetensors) and `folder`/tokenizer."""
        part = Path(folder) / "text_encoder"
        with _quiet():
            self.model.save_pretrained(str(part), safe_serialization=True)
        save_tokenizer(self.tokenizer, Path(folder) / "tokenizer")

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def width(self) -> int:
        """D, the embeddings' last dimension."""
        return self.model.config.d_model

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> TextEncoder:
        """Moves the weights (between GPU and CPU, to save memory) and returns self; in float16 `wo` stays float32."""
        cast(self.model, device, dtype)
        return self

    def encode(self, prompts: Sequence[str], max_length: int = MAX_LENGTH) -> Encoded:
        """Cleans each prompt as V2 does, cuts and pads it to `max_length` tokens, and runs T5.

        prompts: B strings of at most MAX_PROMPT_BYTES each; "" is allowed and has one token, `</s>`.
        Raises UserError for no prompts, one that is not a string, one over the cap, and max_length below 1.
        """
        if isinstance(prompts, str):
            prompts = [prompts]
        if not prompts:
            raise UserError("`prompts` must hold at least one prompt, got none; an empty prompt is ''")
        if max_length < 1:
            raise UserError(
                f"`max_length` must be 1 or more tokens, got {max_length}; the default is {MAX_LENGTH}"
            )
        for prompt in prompts:
            check_prompt(prompt)
        cleaned = [clean_caption(prompt) for prompt in prompts]
        ids, mask, num_tokens, truncated = self.tokenize(cleaned, max_length)
        unknown = [self.unknown_words(text) for text in cleaned]
        embeds = self.encode_tokens(ids, mask)
        return Encoded(embeds, mask.to(self.device), cleaned, num_tokens, truncated, unknown)

    def unknown_words(self, text: str) -> list[str]:
        """Words of a text with characters that become `<unk>`, as those of other scripts do in the published T5."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        words = []
        for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            if token == self.tokenizer.unk_token_id:
                first = max(text.rfind(" ", 0, start + 1), 0)
                last = text.find(" ", end)
                words.append(text[first : len(text) if last < 0 else last].strip())
        return list(dict.fromkeys(words))

    def tokenize(self, texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor, list[int], list[str]]:
        """Texts as they are, padded: ids, mask (B, L) int64 on CPU; tokens before the cut; what was cut."""
        import torch

        tokenizer = self.tokenizer
        pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        assert pad is not None, "load_tokenizer checked this"
        assert end is not None, "load_tokenizer checked this"
        # Token by token and not with the tokenizer's own truncation, which says nothing about what it cut.
        whole = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        rows, masks, counts, cut = [], [], [], []
        for text, row, offsets in zip(texts, whole["input_ids"], whole["offset_mapping"], strict=True):
            kept = [*row[: max_length - 1], end]
            rows.append(kept + [pad] * (max_length - len(kept)))
            masks.append([1] * len(kept) + [0] * (max_length - len(kept)))
            counts.append(len(row))
            cut.append(text[offsets[max_length - 1][0] :].strip() if len(row) > max_length - 1 else "")
        return torch.tensor(rows), torch.tensor(masks), counts, cut

    def encode_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """T5 over token ids and mask, (B, L) int64 on any device: embeddings (B, L, D), no gradient."""
        import torch

        with torch.no_grad():
            return self.model(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
            ).last_hidden_state


def _load_model(
    part: Path, model_folder: Path, dtype: torch.dtype | None, put_layer: PutLayer | None = None
) -> Any:
    config, files = check_weights(part, model_folder)
    import torch
    from transformers.models.t5.configuration_t5 import T5Config

    from ea_runtime.text.t5 import load_t5

    try:
        model, missing = load_t5(T5Config(**config), files, dtype or torch.float32, put_layer)
    except Exception as error:  # transformers and safetensors raise a dozen kinds on damaged files
        raise UserError(
            f"the text encoder in {str(part)!r} cannot be loaded ({error}); copy it again"
        ) from error
    if missing:
        raise UserError(
            f"text encoder {str(part)!r} lacks {len(missing)} tensors, as {missing[0]!r}; copy it again"
        )
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' progress bars off the terminal."""
    from transformers.utils import logging

    was_on, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if was_on:
            logging.enable_progress_bar()
