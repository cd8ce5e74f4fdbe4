"""The cache of a training set's latents and text features: its needed and missing entries, and reading it.

SET/cache/latents-<key of the VAE>/     shards, index.safetensors, bad.json
SET/cache/text-<key of the text encoder>/
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote_path
from ea_runtime.training.data.dataset import Bucket, SetOptions, TrainingSet, draw_start
from ea_runtime.training.latents import fill
from ea_runtime.training.latents.coder import Coder, pad
from ea_runtime.training.latents.keys import Contents, hex_key, latents_folder, text_folder, text_keys
from ea_runtime.training.latents.store import Store
from ea_runtime.training.recipe import Batch

#: (size, num_frames) that a run asks its buckets for; None as the options say
View = tuple[int | None, int | None]
_HINT = "run `ea train cache CONFIG`, or set data.cache = 'make'"


class EncodedOptions(SetOptions):
    """The [data] table of recipes that train on latents."""

    parts: str = Field(description="model folder whose vae/, text_encoder/ and tokenizer/ encode the set")
    coding: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="type that these compute in")
    cache: Literal["make", "use", "off"] = Field(
        "make",
        description="make: encode what is not yet in the cache, then train from it; use: it must be complete; "
        "off: encode in every step",
    )
    cache_folder: str | None = Field(
        None, description="folder of the cache; `cache` in the set's own if not given"
    )


class Cache:
    """The two stores of a set, and each sample's entries. `check` reports what is missing; see EncodedSource."""

    def __init__(
        self,
        data: TrainingSet,
        options: EncodedOptions,
        chunk: int,
        views: Sequence[View],
        single_frames: bool,
    ) -> None:
        self._data, self._chunk, self._stride = data, chunk, options.stride
        root = options.folder
        self.folder = Path(options.cache_folder) if options.cache_folder else root / "cache"
        self._latents_at = latents_folder(self.folder, options.parts, options.coding)
        self._text_at = text_folder(self.folder, options.parts, options.coding)
        self._contents = Contents(data, root, options.background_colour)
        captions = [data.item(index).text for index in range(len(data))]
        numbers = {text: number for number, text in enumerate(dict.fromkeys([*captions, ""]))}
        self._captions = list(numbers)
        self._caption_of = np.array([numbers[text] for text in captions], dtype=np.int64)
        buckets = [data.buckets(*view) for view in views]
        self._needed = fill.needed_windows(data, self._contents, buckets, chunk, self._stride, single_frames)
        self.open()

    def open(self) -> None:
        """Reads the present contents of the folders."""
        self._latents, self._texts = Store(self._latents_at), Store(self._text_at)
        self._bad = fill.read_bad(self._latents_at)
        self._text_places = self._texts.find(text_keys(self._captions))

    @property
    def empty(self) -> Tensor:
        """Features (L, D) of the empty prompt."""
        return self._texts.get(int(self._text_places[self._captions.index("")]))

    def make(self, coder: Coder, say: Callable[[str], None], again: bool) -> None:
        """Encodes what is missing. again: also what did not decode before. Call `open` afterwards."""
        missing = fill.missing_windows(self._needed, self._latents, {} if again else self._bad)
        if again and self._bad:
            fill.write_bad(self._latents_at, {})
        try:
            if missing:
                bad = fill.make_latents(self._data, missing, self._latents_at, coder, self._stride, say)
                count = sum(len(group) for group in missing)
                say(f"latents: {count - len(bad):,} encoded, {len(bad):,} bad, {self._latents_at.name}")
            coder.free()  # before the text encoder is loaded: a card may hold only one of them
            captions = [self._captions[i] for i in np.flatnonzero(self._text_places < 0)]
            if captions:
                fill.make_features(captions, self._text_at, coder, say)
                say(f"captions: {len(captions):,} encoded, {self._text_at.name}")
        finally:
            coder.free()

    def check(self) -> None:
        """Raises UserError if something is missing."""
        missing = fill.missing_windows(self._needed, self._latents, self._bad)
        count = sum(len(group) for group in missing)
        if count:
            name = self._data.item(int(missing[0].samples[0])).path.name
            raise UserError(
                f"the cache {quote_path(self.folder)} lacks {count:,} latents of this set and VAE, such as of "
                f"{name!r}: it is new or has changed; {_HINT}"
            )
        count = int((self._text_places < 0).sum())
        if count:
            raise UserError(
                f"the cache {quote_path(self.folder)} lacks {count:,} captions of this set and text encoder; "
                f"{_HINT}"
            )

    def fetch(self, indices: Sequence[int], seed: int, bucket: Bucket) -> Batch:
        """tensors: "moments" (B, 2 C, t, h, w), "text" (B, L, D), "mask" (B, L); see TrainingSet.sample."""
        batch = Batch([])
        length = 1 if bucket.num_frames == 1 else self._chunk
        count = bucket.num_frames // length
        starts = [draw_start(self._data.starts(index, bucket), index, seed) for index in indices]
        at = np.array(starts)[:, None] + length * self._stride * np.arange(count)
        keys = self._contents.keys(
            np.repeat(indices, count), at.ravel(), length, bucket.height, bucket.width, self._stride
        ).reshape(len(indices), count)
        places = self._latents.find(keys.ravel()).reshape(len(indices), count)
        moments, features = [], []
        for row, index in enumerate(indices):
            if index in self._contents.bad or (places[row] < 0).any():
                batch.bad.append((index, *self._reason(index, keys[row][places[row] < 0])))
                continue
            chunks = [self._latents.get(int(place))[0] for place in places[row]]
            moments.append(torch.cat(chunks, dim=1))
            features.append(self._texts.get(int(self._text_places[self._caption_of[index]])))
            batch.indices.append(index)
        if moments:
            text, mask = pad(features)
            batch.tensors = {"moments": torch.stack(moments), "text": text, "mask": mask}
        return batch

    def _reason(self, index: int, keys: np.ndarray) -> tuple[str, str]:
        if index in self._contents.bad:
            return self._contents.bad[index]
        known = (self._bad[key] for key in map(hex_key, keys) if key in self._bad)
        return next(known, (self._data.item(index).path.name, "it is not in the cache"))

    def summary(self) -> str:
        """One line: the entries that there are, and those that nothing needs any more."""
        needed = sum(len(group) for group in self._needed)
        found = sum(int((self._latents.find(group.keys) >= 0).sum()) for group in self._needed)
        line = f"{found:,} latents and {len(self._captions):,} captions in {quote_path(self.folder)}"
        bad = needed - found + len(self._contents.bad)
        if bad:
            line += f"; {bad:,} cannot be read"
        if len(self._latents) > found:
            line += f"; {len(self._latents) - found:,} other latents are not needed by this config"
        folders = [entry for entry in os.scandir(self.folder) if entry.is_dir()]
        used = {self._latents_at.name, self._text_at.name}
        others = sorted(
            e.name for e in folders if e.name.startswith(("latents-", "text-")) and e.name not in used
        )
        if others:
            line += f"; of other models, free to delete: {', '.join(others[:5])}"
        return line
