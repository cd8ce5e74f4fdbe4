"""The training recipe `vae`: pictures and clips, in EasyAnimate's stages magvit, slice and slice-decoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.plugins.host import get_host
from ea_runtime.training.data.dataset import Bucket, fetch_samples, open_set, short_videos, to_float
from ea_runtime.training.data.draws import normal
from ea_runtime.training.data.remarks import file_remarks
from ea_runtime.training.networks import build_network, load_network
from ea_runtime.training.recipe import Batch, Context, Loss, Phase, RecipeDefaults
from ea_runtime.training.update.precision import DTYPES
from ea_runtime.video.sheets import spaced
from ea_vae.network.chunking import check_num_frames
from ea_vae.network.model import AutoencoderKLMagvit
from ea_vae.training import losses
from ea_vae.training.discriminator import Discriminator
from ea_vae.training.recipe_options import VaeOptions
from ea_vae.training.sheet import contact_sheet
from ea_vae.training.start import as_slices, inflate, initialise, whiten

VAE, DISCRIMINATOR = "vae", "discriminator"
#: the layers that Muon does not take: they meet pixels, or latents
_OUTER = tuple(f"{half}.conv_{end}" for half in ("encoder", "decoder") for end in ("in", "out"))
_OUTER += ("quant_conv", "post_quant_conv")
_SHEET_SAMPLES = 6
_WHITENING_SAMPLES = 256


class VaeRecipe(RecipeDefaults):
    """Trains AutoencoderKLMagvit to reconstruct pictures and clips.

    Two turns if the adversarial term is on: the VAE's, then the discriminators' on the reconstructions that
    the VAE has just made. Before `loss.adversarial_start` the second turn's loss carries no gradient: the loop
    skips the turn and the discriminators do not change. (EasyAnimate runs them with factor 0 there.)

    Raises UserError, one line, if the set, the start or the number of frames is wrong.
    """

    options_model = VaeOptions

    def __init__(self, options: VaeOptions, context: Context) -> None:
        options.check()
        self.options = options
        self.context = context
        self.set = open_set(options.data)
        self.vae = self._start()
        try:
            check_num_frames(options.data.num_frames, self.vae.settings, chunked=False)
        except ValueError as error:
            raise UserError(f"`data.num_frames`: {error}") from error
        found = self.set.buckets()
        fitted = {bucket: self._fit(bucket) for bucket in set(found)}
        self._buckets = [fitted[bucket] for bucket in found]
        if not any(self._buckets):
            raise UserError(
                f"no file of `data.path` {options.data.path!r} is as large as one latent position"
            )
        self._short_videos = short_videos(self._buckets, options.data.num_frames)
        if self._short_videos:
            context.say(self._short_videos)
        for line in file_remarks(self.set):
            context.say(line)
        place: dict[str, Any] = {"device": context.device}
        if options.memory_format == "channels_last_3d":
            place["memory_format"] = torch.channels_last_3d
        self.vae.to(**place).train()
        if context.gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()
        self.perceptual, self._perceptual_state = self._perceptual()
        self.discriminator = self._discriminator() if options.loss.adversarial > 0 else None
        # reconstructions of this step for the discriminators' turn, by the samples of the micro-batch
        self._made: dict[tuple[int, ...], Tensor] = {}
        self._made_at = -1

    # -- for the training loop ------------------------------------------------------------------------

    def modules(self) -> dict[str, nn.Module]:
        own: dict[str, nn.Module] = {VAE: self.vae}
        return own if self.discriminator is None else own | {DISCRIMINATOR: self.discriminator}

    def averaged(self) -> Sequence[str]:
        return (VAE,)

    def turns(self) -> Sequence[str]:
        return tuple(self.modules())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Encoder and decoder (inner kernels and matrices for Muon, the rest for AdamW), then the discriminators."""
        rates = self.options.rates
        found: dict[tuple[str, str], list[nn.Parameter]] = {}
        for name, parameter in self.vae.named_parameters():
            if parameter.requires_grad:
                part = "encoder" if name.startswith(("encoder.", "quant_conv.")) else "decoder"
                kind = "muon" if parameter.ndim >= 2 and not name.startswith(_OUTER) else "adamw"
                found.setdefault((part, kind), []).append(parameter)
        groups = [
            (f"{part}-{kind}", params, kind, getattr(rates, part), VAE)
            for (part, kind), params in sorted(found.items())
        ]
        if self.discriminator is not None:
            # two groups: pictures give the clips' discriminator no gradient
            parts = {name: list(part.parameters()) for name, part in self.discriminator.named_children()}
            groups += [
                (f"discriminator-{name}", params, "adamw", rates.discriminator, DISCRIMINATOR)
                for name, params in parts.items()
            ]
        keys = ("name", "params", "kind", "lr_scale", "turn")
        return [dict(zip(keys, group, strict=True)) for group in groups]

    def phases(self) -> Sequence[Phase]:
        return (Phase(0, list[Hashable](self._buckets)),)

    def training_set(self) -> tuple[Any, Path] | None:
        return self.set, self.options.data.folder

    def fetch(self, indices: list[int], seed: int, step: int) -> Batch:
        """Tensor `frames`: uint8 (B, T, H, W, 3)."""
        bucket = self._buckets[indices[0]]
        assert bucket is not None, "a dropped sample is requested"
        return fetch_samples(self.set, indices, seed, bucket)

    def loss(self, batch: Batch, generator: torch.Generator, step: int, turn: str) -> Loss:
        frames = self._frames(batch)  # (B, 3, T, H, W)
        dtype = DTYPES[self.context.dtype]
        is_cast = dtype != torch.float32 and not frames.is_meta  # a dry run's tensors know no autocast
        with torch.autocast(frames.device.type, dtype) if is_cast else nullcontext():
            if turn == DISCRIMINATOR:
                return self._discriminator_loss(batch, frames, generator, step)
            return self._vae_loss(batch, frames, generator, step)

    def sample_sheet(self, step: int) -> np.ndarray | None:
        """Six samples spread over the set, originals above reconstructions, the same ones every time."""
        usable = [index for index, bucket in enumerate(self._buckets) if bucket is not None]
        pairs = []
        for place in spaced(len(usable), _SHEET_SAMPLES):
            batch = self.fetch([usable[place]], self.context.seed, 0)
            if len(batch):
                frames = self._frames(batch)
                pairs.append((frames[0], self._mode(frames)[0]))
        return contact_sheet(pairs) if pairs else None

    def describe(self) -> dict[str, Any]:
        loss = self.options.loss
        groups, left_out = self.parameter_groups(), self._buckets.count(None)
        on = f"weight {loss.adversarial:g} x adaptive, from step {loss.adversarial_start}"
        facts = {
            "stage": self.options.stage,
            "starts from": self.options.init.folder or "fresh weights",
            **{
                f"loss {name}": f"weight {getattr(loss, name):g}, {loss.reduction}"
                for name in ("l1", "mse", "kl")
            },
            "loss perceptual": self._perceptual_state,
            "loss adversarial": on if loss.adversarial else "off: its weight is 0",
            **{f"parameters {group['name']}": sum(p.numel() for p in group["params"]) for group in groups},
            "frozen parameters": sum(p.numel() for p in self.vae.parameters() if not p.requires_grad),
            "short videos": self._short_videos,
            "left out": f"{left_out} files smaller than one latent position" if left_out else None,
        }
        return {name: fact for name, fact in facts.items() if fact is not None}

    def finish(self) -> None:
        if self.options.init.whiten:
            shift, scale = whiten(self.vae, self._whitening_latents())
            text = ", ".join(f"{m:+.2f}/{s:.2f}" for m, s in zip(shift.tolist(), scale.tolist(), strict=True))
            self.context.say(f"latents whitened (mean/deviation per channel before: {text})")

    def save(self, folder: Path) -> None:
        """The VAE alone: discriminators are training state."""
        self.vae.save_pretrained(folder, safe_serialization=True)

    # -- the losses ----------------------------------------------------------------------------------

    def _vae_loss(self, batch: Batch, frames: Tensor, generator: torch.Generator, step: int) -> Loss:
        table = self.options.loss
        output, mean, logvar = self._reconstruct(batch, frames, generator)
        frame_scale, latent_scale = losses.scales(frames, mean, table.reduction)
        samples, l1, square = losses.pixel_loss(output, frames, table.l1, table.mse)
        kl = losses.kl_loss(mean, logvar)
        figures = {"l1": float(l1.detach().mean()), "kl": float(kl.detach())}
        if self.perceptual is not None:
            pair = (rearrange(x, "b c t h w -> (b t) c h w") for x in (output, frames))
            perceptual = rearrange(self.perceptual(*pair), "(b t) -> b t", b=len(batch)).mean(1)
            samples = samples + table.perceptual * perceptual
            figures["perceptual"] = float(perceptual.detach().mean())
        samples = frame_scale * samples
        reconstruction = samples.mean()
        total = reconstruction + table.kl * latent_scale * kl
        if self.discriminator is not None:
            figures |= {"adversarial": 0.0, "adaptive": 0.0}
            if step >= table.adversarial_start:
                self._keep(batch, output, step)
                adversarial = losses.adversarial_loss(self.discriminator(output))
                weight = losses.adaptive_weight(
                    reconstruction, adversarial, self.vae.decoder.conv_out.weight, self._to_sum(frames)
                )
                total = total + table.adversarial * weight * adversarial
                figures |= {"adversarial": float(adversarial.detach()), "adaptive": float(weight)}
        figures["psnr"] = losses.psnr(float(square.detach().mean()))
        figures["latent_std"] = float(mean.detach().std())
        return Loss(total, figures, samples=samples.detach())

    def _discriminator_loss(
        self, batch: Batch, frames: Tensor, generator: torch.Generator, step: int
    ) -> Loss:
        assert self.discriminator is not None
        if step < self.options.loss.adversarial_start:
            return Loss(torch.zeros(()), {"discriminator": 0.0, "real": 0.0, "fake": 0.0})
        output = self._made.pop(tuple(batch.indices), None) if self._made_at == step else None
        if output is None:
            with torch.no_grad():
                output, _, _ = self._reconstruct(batch, frames, generator)
        real, fake = self.discriminator(frames), self.discriminator(output)
        figures = {
            name: float(torch.stack([part.detach().float().mean() for part in logits]).mean())
            for name, logits in (("real", real), ("fake", fake))
        }
        total = losses.hinge_loss(real, fake)
        return Loss(total, {"discriminator": float(total.detach()), **figures})

    def _reconstruct(
        self, batch: Batch, frames: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction (B, 3, T, H, W) of a draw from the posterior, whose mean and log-variance come too."""
        is_frozen = self.options.stage == "slice-decoder"
        with torch.no_grad() if is_frozen else nullcontext():
            posterior = self.vae.encode(frames).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = normal(generator, batch.indices, mean.shape[1:]).to(mean.device)
        output = self.vae.decode(mean + torch.exp(0.5 * logvar) * noise).sample
        return output.float(), mean, logvar

    def _keep(self, batch: Batch, output: Tensor, step: int) -> None:
        if self._made_at != step:
            self._made.clear()
        self._made_at = step
        self._made[tuple(batch.indices)] = output.detach()

    def _to_sum(self, frames: Tensor) -> float:
        """The factor from this run's reconstruction loss to EasyAnimate's sum over a frame."""
        return 1.0 if self.options.loss.reduction == "sum" else losses.scales(frames, frames, "sum")[0]

    # -- parts ---------------------------------------------------------------------------------------

    def _start(self) -> AutoencoderKLMagvit:
        """The VAE as the stage needs it: built or loaded, in the stage's mode, parts of it frozen."""
        options = self.options
        if options.init.folder is None:
            vae = build_network(AutoencoderKLMagvit, options.model)
            initialise(vae)
        else:
            vae = load_network(AutoencoderKLMagvit, options.init.folder, "vae")
        is_slice = vae.settings.slice_compression_vae
        if options.stage == "magvit" and is_slice:
            raise UserError("`stage` 'magvit' trains a causal VAE, got one with slices; use stage 'slice'")
        if options.stage == "slice" and not is_slice:
            vae = as_slices(vae)
        if options.stage == "slice-decoder":
            if not is_slice:
                raise UserError(
                    f"`init.folder` must hold a VAE with slices for `stage` 'slice-decoder', got a causal one in "
                    f"{options.init.folder!r}; train stage 'slice' first"
                )
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
        if options.init.inflate:
            inflate(vae)
        return vae

    def _perceptual(self) -> tuple[nn.Module | None, str]:
        """The perceptual distance, if it is on, and a line about it for the user."""
        table = self.options.loss
        if table.perceptual == 0:
            return None, "off: its weight is 0"
        record = get_host().get("perceptual_losses", table.perceptual_name)
        if table.perceptual_weights is None:  # after `get`, which raises for an unknown name
            state = f"off: no weights for {table.perceptual_name} (`loss.perceptual_weights` names no file)"
            self.context.say(f"perceptual term {state}")
            return None, state
        state = f"weight {table.perceptual:g}, {table.perceptual_name} from {table.perceptual_weights}"
        if self.context.dry_run:
            return None, state
        return record.build(table.perceptual_weights, device=self.context.device), state

    def _discriminator(self) -> Discriminator:
        table = self.options.discriminator
        made = Discriminator(table.channels, table.num_layers, table.clip_channels)
        least = made.frames.min_size
        small = next((b for b in self._buckets if b is not None and min(b.height, b.width) < least), None)
        if small is not None:
            raise UserError(
                f"`discriminator.num_layers` {table.num_layers} needs frames of {least} pixels or more, but some are "
                f"{small.width}x{small.height}; use fewer layers, larger frames or `loss.adversarial` 0"
            )
        return made.to(self.context.device)

    def _fit(self, bucket: Bucket) -> Bucket | None:
        """The largest bucket within this one that the VAE can code, or None."""
        config = self.vae.settings
        num_frames = bucket.num_frames
        try:
            check_num_frames(num_frames, config, chunked=False)
        except ValueError:
            num_frames -= (num_frames - 1) % config.temporal_ratio
        ratio = config.spatial_ratio
        height, width = bucket.height // ratio * ratio, bucket.width // ratio * ratio
        if not (num_frames and height and width):
            return None
        return bucket._replace(num_frames=num_frames, height=height, width=width)

    def _frames(self, batch: Batch) -> Tensor:
        """(B, 3, T, H, W) in -1..1 on the device."""
        frames = to_float(batch.tensors["frames"], self.context.device)
        is_last = self.options.memory_format == "channels_last_3d"
        return frames.contiguous(memory_format=torch.channels_last_3d) if is_last else frames

    @torch.no_grad()
    def _mode(self, frames: Tensor) -> Tensor:
        """Reconstruction without noise."""
        return self.vae.decode(self.vae.encode(frames).latent_dist.mode()).sample

    @torch.no_grad()
    def _whitening_latents(self) -> Tensor:
        """Means of up to 256 samples, (B, C, T, h, w), spread evenly over those of the most frequent bucket."""
        self.vae.eval()
        used = [bucket for bucket in self._buckets if bucket is not None]
        common = Counter(used).most_common(1)[0][0]
        members = [i for i, bucket in enumerate(self._buckets) if bucket == common]
        indices = [members[place] for place in spaced(len(members), _WHITENING_SAMPLES)]
        batches = (self.fetch(indices[i : i + 8], self.context.seed, 0) for i in range(0, len(indices), 8))
        parts = [self.vae.encode(self._frames(batch)).latent_dist.mode() for batch in batches if len(batch)]
        if not parts:
            raise UserError("latents cannot be whitened: none of the samples could be read")
        return torch.cat(parts)
