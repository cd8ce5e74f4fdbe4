"""A training set as the denoiser sees it: latents and text features, encoded during training or once, into a cache.

A sample's window starts at a multiple of the VAE's chunk, and chunks are encoded independently. So cached moments of
chunks equal, up to rounding, those of the window, and the recipe's generator draws the noise of the posterior in
either case: a run from the cache has the losses of one without.

Shape legend: B samples, T frames, C latent channels, t h w latents, L tokens, D the text encoder's width.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.files.safe import read_json
from ea_runtime.machine.processes import wait_for_all, world
from ea_runtime.models.geometry import Geometry
from ea_runtime.models.layout import resolve_folder
from ea_runtime.training.data.dataset import Bucket, TrainingSet, fetch_samples, open_set
from ea_runtime.training.data.draws import normal
from ea_runtime.training.data.remarks import caption_remarks, file_remarks
from ea_runtime.training.latents.cache import Cache, EncodedOptions, View
from ea_runtime.training.latents.coder import Coder, draw_latents, pad
from ea_runtime.training.recipe import Batch, Context
from ea_runtime.training.run.same_set import refuse_changed
from ea_runtime.training.update.precision import DTYPES


class EncodedSource:
    """Latents and text features of a set.

    views: the (size, num_frames) that the run will ask `buckets` for, None as the options say; a cache is made for
    all of them. single_frames: clips may also be cut to one frame, whose latents are not those of a chunk. with_frames:
    `fetch` is asked for the frames of some samples too.
    channels: C. width: D. scale: what latents are multiplied by, as in the pipeline. chunk: frames that are encoded
    together; clips have a multiple of it, or one frame. spatial_ratio: pixels per latent.

    Raises UserError, one line: no set, no such model folder, a number of frames that does not fit, a cache that
    is incomplete (`cache = "use"`).
    """

    def __init__(
        self,
        options: EncodedOptions,
        context: Context,
        views: Sequence[View] = ((None, None),),
        single_frames: bool = False,
        with_frames: bool = False,
    ) -> None:
        parts = resolve_folder(options.parts)
        geometry = Geometry.from_configs(read_json(parts, "vae/config.json"))
        text = read_json(parts, "text_encoder/config.json")
        self.channels, self.scale = geometry.latent_channels, geometry.scale
        self.chunk, self.spatial_ratio = geometry.chunk_frames, geometry.spatial_ratio
        self.width = int(text.get("d_model") or text.get("hidden_size") or 0)
        self._geometry = geometry
        self.context = context
        self.views, self.single_frames = tuple(views), single_frames
        for _, num_frames in views:
            self._check_frames(options.num_frames if num_frames is None else num_frames)
        is_cached = options.cache != "off"
        if is_cached and options.crop != "centre":
            raise UserError(
                "`data.crop` must be 'centre' with a cache, got 'random'; or set data.cache = 'off'"
            )
        self.options = options.model_copy(
            update={
                "chunk": self.chunk,
                "start_multiple": self.chunk * options.stride,
                # what is encoded once need not be kept decoded
                "keep_mib": 0 if is_cached and not with_frames else options.keep_mib,
            }
        )
        self.set = open_set(self.options)
        for line in caption_remarks(self.set):
            context.say(line)
        self.coder = Coder(options.parts, context.device, DTYPES[options.coding], self.chunk)
        self._has_said = False
        self._cache: Cache | None = None
        if is_cached and not context.dry_run:
            refuse_changed(self.set, self.options.folder, context.out)
            self._cache = self.open_cache(options.cache == "make")

    def __len__(self) -> int:
        return len(self.set)

    def buckets(self, size: int | None = None, num_frames: int | None = None) -> list[Bucket]:
        """One per sample; num_frames of a bucket is the largest number that its clips have. Says once what the set
        says about its files."""
        buckets = self.set.buckets(size, num_frames)
        if not self._has_said:
            self._has_said = True
            for line in file_remarks(self.set):
                self.context.say(line)
        return buckets

    def training_set(self) -> tuple[TrainingSet, Path]:
        """For `Recipe.training_set`."""
        return self.set, self.options.folder

    def num_latents(self, num_frames: int) -> int:
        """Latent frames of a clip of `num_frames` frames."""
        return self._geometry.num_latents(num_frames)

    def fetch(
        self,
        indices: list[int],
        seed: int,
        bucket: Bucket,
        num_frames: int | None = None,
        frames_of: Collection[int] = (),
    ) -> Batch:
        """Samples of a bucket on the CPU, for `encode` and `text`: a function of its arguments.

        num_frames: cut clips to that many (1 or a multiple of `chunk`, at most the bucket's). frames_of: of these
        samples the batch has "frames" too, uint8 (B, T, H, W, 3), if it comes from the cache; zeros for the others.
        """
        if num_frames is not None:
            self._check_frames(num_frames)
            assert num_frames <= bucket.num_frames, "a crop is no longer than its clip"
            bucket = bucket._replace(num_frames=num_frames)
        if self._cache is None:
            return fetch_samples(self.set, indices, seed, bucket)
        if not frames_of:
            return self._cache.fetch(indices, seed, bucket)
        wanted = [index for index in indices if index in frames_of]
        read = fetch_samples(self.set, wanted, seed, bucket)
        lost = {index for index, _, _ in read.bad}
        batch = self._cache.fetch([index for index in indices if index not in lost], seed, bucket)
        batch.bad += read.bad
        if len(batch):
            frames = torch.zeros(len(batch), *bucket[1:], 3, dtype=torch.uint8)
            rows = {index: row for row, index in enumerate(read.indices)}
            for place, index in enumerate(batch.indices):
                if index in rows:
                    frames[place] = read.tensors["frames"][rows[index]]
            batch.tensors["frames"] = frames
        return batch

    def moments(self, batch: Batch, device: str | torch.device) -> Tensor:
        """The posterior's mean and log-variance, (B, 2C, t, h, w); kept in the batch."""
        if "moments" not in batch.tensors:
            batch.tensors["moments"] = self.coder.moments(batch.tensors["frames"])
        return batch.tensors["moments"].to(device)

    def encode(self, batch: Batch, generator: torch.Generator, device: str | torch.device) -> Tensor:
        """Latents drawn from the posterior times `scale`: float32 (B, C, t, h, w)."""
        moments = self.moments(batch, device)
        shape = (moments.shape[1] // 2, *moments.shape[2:])
        return draw_latents(moments, normal(generator, batch.indices, shape)) * self.scale

    def text(
        self,
        batch: Batch,
        dropped: Sequence[bool],
        device: str | torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """Features (B, L, D) and mask (B, L) int64, 1 on tokens; L is the longest of the batch.

        dropped: true for samples that see the empty prompt instead of their own.
        """
        if self._cache is not None:
            text, lengths = batch.tensors["text"], batch.tensors["mask"].sum(1).tolist()
            empty = self._cache.empty
            text, mask = pad(
                empty if drop else row[:length]
                for row, length, drop in zip(text, lengths, dropped, strict=True)
            )
        else:
            captions = [
                "" if drop else text for text, drop in zip(batch.tensors["captions"], dropped, strict=True)
            ]
            text, mask = pad(self.coder.features(captions))
        return text.to(device, dtype), mask.to(device)

    # -- the cache

    def _check_frames(self, num_frames: int) -> None:
        if num_frames != 1 and num_frames % self.chunk:
            low = num_frames // self.chunk * self.chunk or 1
            raise UserError(
                f"`data.num_frames` must be 1 or a multiple of {self.chunk}, got {num_frames}; use {low} or "
                f"{(num_frames // self.chunk + 1) * self.chunk}"
            )

    def open_cache(self, make: bool, again: bool = False) -> Cache:
        """The complete cache of this source. make: encode what is missing first; again: also what did not decode.

        Raises UserError if something is missing and not to be made.
        """
        cache = Cache(self.set, self.options, self.chunk, self.views, self.single_frames)
        if make:
            if world()[0] == 0:
                with _all_threads():
                    cache.make(self.coder, self.context.say, again)
            wait_for_all()
            cache.open()
        cache.check()
        return cache


def make_cache(
    options: EncodedOptions,
    context: Context,
    views: Sequence[View] = ((None, None),),
    single_frames: bool = False,
) -> None:
    """`ea train cache`: encodes what is missing, retries what did not decode, and reports the cache's contents.

    Raises UserError as EncodedSource does.
    """
    source = EncodedSource(options.model_copy(update={"cache": "off"}), context, views, single_frames)
    if options.crop != "centre":
        raise UserError("`data.crop` must be 'centre' with a cache, got 'random'")
    context.say(source.open_cache(make=True, again=True).summary())


@contextmanager
def _all_threads() -> Iterator[None]:
    """Within the block this process uses all cores: the others wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
