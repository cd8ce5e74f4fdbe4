"""The training recipe "text": a small T5 encoder whose token embeddings carry the meaning of a drawn clip's caption.

The denoiser is trained on frozen embeddings, so the meaning of a caption must be readable from them beforehand. The
encoder learns that by answering five questions (colour, shape, size, motion, background, each with an "unsaid"
answer) through one learned-query attention per question, as cross-attention reads it. The five heads are dropped
when the encoder is saved.

Captions are drawn during training, from combinations of the training split alone; nothing is read from disk.

Shape legend: B captions, L tokens, D the encoder's width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ea_data.draw.caption import (
    BACKGROUND_WORDS,
    MOTION_WORDS,
    SIZE_WORDS,
    caption,
    parse_prompt,
    sample_prompts,
)
from ea_data.draw.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, sample_scene
from ea_runtime.errors import UserError
from ea_runtime.text.encoder import TextEncoder, train_tokenizer
from ea_runtime.training.recipe import Batch, Context, Loss, Phase, RecipeDefaults

#: The questions about a caption and their answers; "unsaid" is the answer after the last.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "motion": MOTIONS,
    "background": tuple(BACKGROUNDS),
}
_CAPTION_STREAM = 0x7E  # keeps these choices apart from those that draw scenes and wordings


class CaptionOptions(BaseModel):
    """The captions to draw. The rest of the shares are captions of clips."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0, description="seed of the drawn scenes and their wording")
    num_samples: int = Field(default=100_000, gt=0, description="distinct captions in an epoch")
    empty: float = Field(default=0.08, ge=0, le=1, description="share of empty captions, for guidance")
    pictures: float = Field(default=0.25, ge=0, le=1, description="share of captions without motion")
    phrases: float = Field(default=0.12, ge=0, le=1, description="share of loose phrases: 'moving left, red'")
    fillers: float = Field(default=0.1, ge=0, le=1, description="share with an unknown word at one end")


class EncoderOptions(BaseModel):
    """The T5 encoder to build, in the terms of transformers' T5Config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(default=512, ge=354, description="upper bound; the words may need fewer")
    d_model: int = Field(default=64, gt=0, description="D, the width of the denoiser's caption projection")
    num_layers: int = Field(default=2, gt=0)
    num_heads: int = Field(default=4, gt=0)
    d_kv: int = Field(default=16, gt=0, description="width of a head")
    d_ff: int = Field(default=128, gt=0)
    feed_forward_proj: str = "gated-gelu"
    dropout_rate: float = Field(default=0.0, ge=0, lt=1)


class TextOptions(BaseModel):
    """Tables [data] and [model] of a "text" run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: CaptionOptions = CaptionOptions()
    model: EncoderOptions = EncoderOptions()


def draw_caption(options: CaptionOptions, index: int) -> str:
    """Caption number `index`: a pure function of (options, index), from the training split."""
    rng = np.random.default_rng(np.random.SeedSequence([options.seed, index, _CAPTION_STREAM]))
    kind, filler = rng.random(2)
    if kind < options.empty:
        return ""
    scene = sample_scene(options.seed, index, "train")
    kind -= options.empty
    if kind < options.phrases:
        text = _phrases(scene.combination._asdict(), rng)
    else:
        is_picture = kind - options.phrases < options.pictures
        text = caption(scene, options.seed, index, is_picture=is_picture, is_full=bool(rng.random() < 0.3))
    if filler < options.fillers:
        # Spelled-out letters are trained too, to change nothing.
        word = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(3, 9))))
        text = f"{word} {text}" if rng.random() < 0.5 else f"{text}, {word}"
    return text


def _phrases(combination: dict[str, str], rng: np.random.Generator) -> str:
    """Some of a combination's attributes as bare phrases in any order, which no template has."""

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    words = {
        "colour": combination["colour"],
        "shape": combination["shape"],
        "size": pick(SIZE_WORDS[combination["size"]]),
        "motion": pick([form for forms in MOTION_WORDS[combination["motion"]] for form in forms]),
        "background": pick(BACKGROUND_WORDS[combination["background"]]) + " background",
    }
    kept = [name for name in rng.permutation(list(words)) if rng.random() < 0.5]
    return pick([", ", " "]).join(words[str(name)] for name in kept)


def labels(captions: Sequence[str]) -> Tensor:
    """The meaning of each caption, read from its words: (B, 5) int64, indices into ATTRIBUTES, unsaid the last."""

    def answers(asked: dict[str, str]) -> list[int]:
        return [values.index(asked[a]) if a in asked else len(values) for a, values in ATTRIBUTES.items()]

    return torch.tensor([answers(parse_prompt(text)) for text in captions])


class AttributeHeads(nn.Module):
    """Reads the five attributes from token embeddings, each by one learned query over the tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(ATTRIBUTES), width) / width**0.5)
        self.answers = nn.ModuleList(nn.Linear(width, len(values) + 1) for values in ATTRIBUTES.values())

    def forward(self, embeds: Tensor, mask: Tensor) -> list[Tensor]:
        """embeds (B, L, D), mask (B, L): logits (B, answers + 1) for each attribute."""
        scores = torch.einsum("bld,qd->bql", embeds, self.queries)  # B 5 L
        scores = scores.masked_fill(mask[:, None, :] == 0, float("-inf"))
        read = torch.einsum("bql,bld->bqd", scores.softmax(-1), embeds)  # B 5 D
        return [answer(read[:, i]) for i, answer in enumerate(self.answers)]


class TextRecipe(RecipeDefaults):
    """Trains encoder and heads by cross entropy; see ea_runtime.training.recipe.Recipe."""

    options_model = TextOptions

    def __init__(self, options: TextOptions, context: Context) -> None:
        from transformers import T5Config, T5EncoderModel

        self.options = options
        self.context = context
        data, model = options.data, options.model
        shares = data.empty + data.phrases + data.pictures
        if shares > 1:
            names = "`data.empty` + `data.phrases` + `data.pictures`"
            raise UserError(f"{names} must be at most 1, got {shares:g}")
        without_fillers = data.model_copy(update={"fillers": 0.0})
        drawn = (draw_caption(without_fillers, i) for i in range(min(data.num_samples, 5000)))
        self.tokenizer = train_tokenizer(drawn, model.vocab_size)
        size: dict[str, Any] = model.model_dump() | {"vocab_size": len(self.tokenizer)}
        config = T5Config(**size, pad_token_id=0, eos_token_id=1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            encoder: Any = T5EncoderModel(config)  # its own annotation of `to` does not type-check
            self.encoder: nn.Module = encoder.to(context.device)
            self.heads = AttributeHeads(model.d_model).to(context.device)

    def modules(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.encoder, "heads": self.heads}

    def parameter_groups(self) -> list[dict[str, Any]]:
        parameters = [*self.encoder.parameters(), *self.heads.parameters()]
        return [{"params": parameters, "kind": "adamw", "lr_scale": 1.0, "name": "encoder and heads"}]

    def phases(self) -> Sequence[Phase]:
        return [Phase(0, ["caption"] * self.options.data.num_samples)]

    def fetch(self, indices: list[int], seed: int, step: int) -> Batch:
        """The captions of those numbers and their labels, the same in every epoch."""
        captions = [draw_caption(self.options.data, index) for index in indices]
        return Batch(indices, {"captions": captions, "labels": labels(captions)})

    def loss(self, batch: Batch, generator: torch.Generator, step: int, turn: str) -> Loss:
        """Cross entropy summed over the five attributes, and the share of right answers."""
        embeds, mask = self._embed(batch.tensors["captions"])
        wanted = batch.tensors["labels"].to(embeds.device)
        logits = self.heads(embeds, mask)
        losses = (
            nn.functional.cross_entropy(out, wanted[:, i], reduction="none") for i, out in enumerate(logits)
        )
        each = sum(losses, start=embeds.new_zeros(len(batch)))  # B
        right = torch.stack([out.argmax(-1) == wanted[:, i] for i, out in enumerate(logits)])
        return Loss(each.mean(), {"accuracy": right.float().mean().item()}, each.detach())

    @torch.no_grad()
    def accuracy(self, captions: Sequence[str]) -> dict[str, float]:
        """For each attribute, the share of captions from which it is read right."""
        hits: list[Tensor] = []
        for start in range(0, len(captions), 256):
            batch = captions[start : start + 256]
            logits = self.heads(*self._embed(batch))
            wanted = labels(batch).to(logits[0].device)
            hits.append(torch.stack([out.argmax(-1) == wanted[:, i] for i, out in enumerate(logits)], -1))
        shares = torch.cat(hits).float().mean(0)
        return dict(zip(ATTRIBUTES, shares.tolist(), strict=True))

    def finish(self) -> None:
        """Reports how well held-out combinations are read."""
        read = self.accuracy(heldout_captions(2000, self.options.data.seed + 1))
        shares = ", ".join(f"{name} {share:.2%}" for name, share in read.items())
        self.context.say(f"held-out combinations read: {shares}")

    def save(self, folder: Path) -> None:
        """Writes `folder`/text_encoder and `folder`/tokenizer, loadable by ea_runtime.text.encoder.TextEncoder."""
        TextEncoder(self._scaled(), self.tokenizer).save_pretrained(folder)

    @torch.no_grad()
    def _scaled(self) -> Any:
        """A copy of the encoder whose outputs have a standard deviation of 1 in every channel.

        The denoiser's caption projection expects numbers of that size. The factor goes into the last layer norm's
        weight, so the copy is an ordinary T5 encoder.
        """
        embeds, mask = self._embed([draw_caption(self.options.data, index) for index in range(2000)])
        std = embeds[mask.bool()].std(0)  # D
        encoder: Any = copy.deepcopy(self.encoder)
        encoder.encoder.final_layer_norm.weight.div_(std.clamp(min=0.05))  # no blow-up of dead channels
        return encoder

    def _embed(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions padded to the longest of them: embeddings (B, L, D) and mask (B, L)."""
        tokens = self.tokenizer(list(captions), padding="longest", return_tensors="pt")
        tokens = tokens.to(self.context.device)
        mask = tokens["attention_mask"]
        return self.encoder(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state, mask


def heldout_captions(num_captions: int, seed: int) -> list[str]:
    """Captions of held-out combinations: clips, fully named prompts and pictures in turn."""
    full = iter(sample_prompts(-(-num_captions // 3), seed, "heldout"))
    captions = []
    for index in range(num_captions):
        scene = sample_scene(seed, index, "heldout")
        is_picture = index % 3 == 2
        captions.append(next(full) if index % 3 == 1 else caption(scene, seed, index, is_picture=is_picture))
    return captions
