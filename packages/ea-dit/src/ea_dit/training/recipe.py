"""The training recipe `dit` in three stages: the denoiser on latents and text features of pictures and clips."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ea_dit.training.checkpointing import checkpoint_blocks
from ea_dit.training.frame_crop import draw_length
from ea_dit.training.known_frames import KnownChannels, MaskDraw
from ea_dit.training.loss import NUM_TIMESTEPS, add_noise, min_snr_weights, training_loss
from ea_dit.training.options import DataTable, DitOptions, InpaintTable
from ea_dit.training.start import start_network
from ea_dit.training.trainable import choose, freeze_others, parameter_groups
from ea_runtime.errors import UserError
from ea_runtime.models.image_encoder import has_image_encoder
from ea_runtime.models.layout import resolve_folder
from ea_runtime.training.data.dataset import short_videos
from ea_runtime.training.data.draws import normal, uniform
from ea_runtime.training.latents.source import EncodedSource, make_cache
from ea_runtime.training.recipe import Batch, Context, Loss, Phase, RecipeDefaults, Samples
from ea_runtime.training.update.precision import DTYPES, run_in, short_attention

#: part of the batches in which CLIP's picture counts: V3's figure
PICTURE_PART = 0.5


class DitRecipe(RecipeDefaults):
    """Trains Transformer3DModel; [stage] of the config chooses parameters and data.

    model: the network. source: the set as latents and text features. Another recipe may freeze `model`, add its
    own parameters, and call `fetch` and `loss` (ea-lora does).
    Raises UserError (or ValueError), one line, if the set, the start, a pattern or a size is wrong.
    """

    options_model = DitOptions
    tasks = ("auto", "generate", "inpaint")

    def __init__(self, options: DitOptions, context: Context) -> None:
        self.options = options
        self.context = context
        # before the set: a wrong config fails at once, and the draws of encoding cannot change the weights
        self.model, self.start_lines = start_network(options, context)
        self._check_task()
        names, table = [name for name, _ in self.model.named_parameters()], options.trainable
        self.chosen = choose(names, options.stage, table.patterns, table.low)
        freeze_others(self.model, self.chosen)
        if options.stage == "align":  # fresh motion modules change nothing and take more than half the time
            self.model.set_motion_modules(False)
        self.data, views = self._data(options), self._views(options)
        self.source = EncodedSource(
            self.data,
            context,
            views,
            single_frames=self.data.random_frame_crop,
            with_frames=self.model.cfg.has_known_frames,
        )
        self.known: KnownChannels | None = None
        if self.model.cfg.has_known_frames:
            self.known = KnownChannels(self.source.coder, self.source.scale, self.source.chunk)
        table = options.inpaint or InpaintTable()
        self.draw_mask = MaskDraw(table.masks, table.known_frames)
        self.has_pictures = self.model.cfg.has_picture and has_image_encoder(resolve_folder(self.data.parts))
        if self.model.cfg.has_picture and not self.has_pictures:
            context.say(
                "`data.parts` has no image_encoder: what the model makes of CLIP's pictures is not trained"
            )
        self._buckets = [self.source.buckets(*view) for view in views]
        self._check_widths()
        for line in self._short_videos():
            context.say(line)
        self.dtype = DTYPES[context.dtype]
        nn.Module.to(self.model, context.device)
        if context.gradient_checkpointing:
            checkpoint_blocks(self.model, lambda: short_attention(context.device))
        self.model.train()
        for line in self.start_lines:
            context.say(line)

    @classmethod
    def cache(cls, options: DitOptions, context: Context) -> None:
        """Codes the set ahead, as `ea train cache` asks. Raises UserError, one line."""
        data, views = cls._data(options), cls._views(options)
        make_cache(data, context, views, data.random_frame_crop)

    @staticmethod
    def _data(options: DitOptions) -> DataTable:
        update = {"kinds": "pictures"} if options.stage == "align" else {}
        return options.data.model_copy(update=update)

    @staticmethod
    def _views(options: DitOptions) -> list[tuple[int | None, int | None]]:
        return [(phase.size or None, phase.num_frames or None) for phase in options.phases]

    def _short_videos(self) -> list[str]:
        """One line for each length of clips that some videos are too short for."""
        lengths = [view[1] or self.data.num_frames for view in self._views(self.options)]
        pairs = zip(self._buckets, lengths, strict=True)
        return list(dict.fromkeys(line for pair in pairs if (line := short_videos(*pair))))

    def modules(self) -> dict[str, nn.Module]:
        return {"transformer": self.model}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.model, self.chosen, self.options.trainable.low_rate)

    def phases(self) -> Sequence[Phase]:
        return [
            Phase(phase.start, buckets, phase.batch_size)
            for phase, buckets in zip(self.options.phases, self._buckets, strict=True)
        ]

    def training_set(self) -> tuple[Any, Path] | None:
        return self.source.training_set()

    def fetch(self, indices: list[int], seed: int, step: int) -> Batch:
        number = max(i for i, phase in enumerate(self.options.phases) if phase.start <= step)
        bucket = self._buckets[number][indices[0]]
        num_frames = bucket.num_frames
        if self.data.random_frame_crop and bucket.kind == "video":
            # the seed is the step's, so all parts of a batch have one length
            num_frames = draw_length(num_frames, self.source.chunk, seed)
        if self.known is None:
            return self.source.fetch(indices, seed, bucket, num_frames)
        size = (num_frames, bucket.height, bucket.width)
        masks = {i: self.draw_mask(seed, i, *size, self.source.set.item(i).given) for i in indices}
        # CLIP's picture of the first frame counts in half of the batches, as in V3
        has_picture = self.has_pictures and random.Random(seed).random() < PICTURE_PART
        need = {i for i, mask in masks.items() if has_picture or self.known.needs_frames(mask, num_frames)}
        batch = self.source.fetch(indices, seed, bucket, num_frames, need)
        if len(batch):
            batch.tensors["masks"] = [masks[i] for i in batch.indices]
            batch.tensors |= {"num_frames": num_frames, "has_picture": has_picture}
        return batch

    def loss(self, batch: Batch, generator: torch.Generator, step: int, turn: str) -> Loss:
        device, indices = self.context.device, batch.indices
        dropped = uniform(generator, indices) < self.data.drop_text
        latents = self.source.encode(batch, generator, device)  # (B, C, t, h, w), unit scale
        text, mask = self.source.text(batch, dropped.tolist(), device, self.dtype)
        noise = normal(generator, indices, latents.shape[1:]).to(device)
        timesteps = self._timesteps(indices, generator).to(device)
        with short_attention(device):
            output = run_in(
                self.model,
                self.dtype,
                add_noise(latents, noise, timesteps).to(self.dtype),
                timestep=timesteps,
                encoder_hidden_states=text,
                encoder_attention_mask=mask,
                added_cond_kwargs=self._sizes(latents),
                **self._known(batch),
            ).sample
        table = self.options.loss
        terms = training_loss(output.float(), latents, noise, timesteps, snr=table.snr)
        weight = min_snr_weights(timesteps, table.min_snr)
        samples = weight * terms["mse"] + terms["vb"]  # (B,)
        figures = {name: float(terms[name].detach().mean()) for name in ("mse", "vb")}
        return Loss(samples.mean(), figures, samples.detach(), timesteps)

    def sample_sheet(self, step: int) -> Samples | None:
        from ea_dit.training.samples import draw_samples, sheet_shape

        options = self.options
        if not options.samples.sample_prompts:
            return None
        shape = sheet_shape(options.samples, self.phases()[-1].buckets, options.stage)
        return draw_samples(self.model, options.samples, options.data.parts, shape, self.context)

    def describe(self) -> dict[str, Any]:
        total = sum(p.numel() for p in self.model.parameters())
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        groups: dict[str, str] = {}
        for group in self.parameter_groups():
            count, tensors = sum(p.numel() for p in group["params"]), len(group["params"])
            what = f"{count:,} parameters in {tensors} tensors, {group['kind']}, rate x {group['lr_scale']:g}"
            groups[group["name"]] = what
        largest = max(
            (bucket for buckets in self._buckets for bucket in buckets if bucket is not None),
            key=lambda b: self.source.num_latents(b.num_frames) * b.height * b.width,
        )
        is_copied = self.dtype != torch.float32
        weights = sum(t.numel() for t in (*self.model.parameters(), *self.model.buffers()))
        return {
            "stage": self.options.stage,
            "start": [line.removeprefix("start: ") for line in self.start_lines],
            "trainable parameters": f"{trained:,} of {total:,}",
            "parameter groups": groups,
            **({"short videos": short} if (short := self._short_videos()) else {}),
            "largest sample": f"{largest.kind}, {largest.num_frames} frames of {largest.height}x{largest.width}",
            "memory": {"computing copy": weights * self.dtype.itemsize if is_copied else 0},
        }

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder, safe_serialization=True)

    def _known(self, batch: Batch) -> dict[str, Tensor]:
        """The further inputs of a model that takes known frames."""
        if self.known is None:
            return {}
        moments, ratio = self.source.moments(batch, self.context.device), self.source.spatial_ratio
        size = (batch.tensors["num_frames"], moments.shape[-2] * ratio, moments.shape[-1] * ratio)
        found = {"inpaint_latents": self.known(batch, moments, *size)}
        if batch.tensors["has_picture"]:
            found["clip_encoder_hidden_states"] = self.source.coder.pictures(batch.tensors["frames"][:, 0])
        return {name: value.to(self.context.device, self.dtype) for name, value in found.items()}

    def _check_task(self) -> None:
        takes, task = self.model.cfg.has_known_frames, self.context.task
        channels = self.model.cfg.in_channels
        if takes and task == "generate":
            raise UserError(
                f"`train.task` must be 'inpaint' or 'auto' for a model of {channels} input channels, which takes known "
                "frames, got 'generate'"
            )
        if task == "inpaint" and not takes:
            raise UserError(
                f"`model.in_channels` must be 3 times the latents' for train.task 'inpaint', got {channels}; V3 has 12"
            )
        if self.options.inpaint is not None and not takes:
            raise UserError("[inpaint] is for models that take known frames; set train.task = 'inpaint'")

    def _check_widths(self) -> None:
        cfg = self.model.cfg
        for key, have, what, wanted in (
            ("in_channels", cfg.latent_channels, "VAE makes latents", self.source.channels),
            ("caption_channels", cfg.text_width, "text encoder makes features", self.source.width),
        ):
            if have != wanted:
                raise UserError(
                    f"`model.{key}` must be {wanted}, as `data.parts`' {what} of that width, got {have}"
                )

    def _timesteps(self, indices: Sequence[int], generator: torch.Generator) -> Tensor:
        table = self.options.loss
        even = uniform(generator, indices)
        shaped = torch.sigmoid(table.t_mean + table.t_std * normal(generator, indices))
        is_even = uniform(generator, indices) < table.uniform_part
        part = torch.where(is_even, even, shaped)
        return (part * NUM_TIMESTEPS).long().clamp(0, NUM_TIMESTEPS - 1)

    def _sizes(self, latents: Tensor) -> dict[str, Tensor] | None:
        """The size condition of models with sample_size 128: pixels and h / w."""
        if not self.model.cfg.has_size_conditions:
            return None
        b, _, _, h, w = latents.shape
        ratio = self.source.spatial_ratio
        pixels = torch.tensor([float(h * ratio), float(w * ratio)], device=latents.device).expand(b, 2)
        return {"resolution": pixels, "aspect_ratio": pixels[:, :1] / pixels[:, 1:]}
