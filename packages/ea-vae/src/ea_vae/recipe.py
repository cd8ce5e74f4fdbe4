"""The training recipe `vae`: pictures first, then clips from the inflated picture weights."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.training.clips import ClipSet, to_float
from ea_runtime.training.networks import build_network, load_network
from ea_runtime.training.recipe import Context
from ea_vae.chunking import check_num_frames
from ea_vae.conv import CausalConv3d
from ea_vae.model import AutoencoderKLMagvit

#: 1 / 0.18215: latents of this deviation have unit deviation for the denoiser.
LATENT_STD = 1 / 0.18215


class DataTable(BaseModel):
    """`path`: the set. `num_frames`: frames a sample, 1 or a chunk's 9; longer clips give a random window.

    `kinds`: what of the set is used. `limit`: use the first so many of them only; 0: all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    num_frames: int = Field(9, gt=0)
    kinds: Literal["both", "videos", "pictures"] = "both"
    limit: int = Field(0, ge=0)


class LossTable(BaseModel):
    """Weights of the terms; each is a mean over its elements."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    l1: float = Field(default=1.0, ge=0)
    mse: float = Field(default=3.0, ge=0)
    kl: float = Field(default=1e-4, ge=0)


class VaeOptions(BaseModel):
    """Tables [data], [model], [init] and [loss] of a `vae` config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    class Init(BaseModel):
        """`folder`: start from this VAE instead of [model]. `inflate`: picture weights into the last tap.

        `whiten`: after the last step, fold a scale and a shift a channel into the quant convolutions, so that
        0.18215 x latent has zero mean and unit deviation over the set.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        folder: str | None = None
        inflate: bool = False
        whiten: bool = False

    data: DataTable
    model: dict[str, Any] = Field(default_factory=dict)
    init: Init = Init()
    loss: LossTable = LossTable()
    memory_format: Literal["contiguous", "channels_last_3d"] = "channels_last_3d"


class VaeRecipe:
    """Trains AutoencoderKLMagvit to reconstruct pictures or 9-frame chunks.

    Raises UserError, one line, where the set, the start or the number of frames is wrong.
    """

    options_model = VaeOptions

    def __init__(self, options: VaeOptions, context: Context) -> None:
        self.options = options
        self.context = context
        self.set = ClipSet(Path(options.data.path))
        self.used = self.set.choose(options.data.kinds)[: options.data.limit or None]
        if options.init.folder:
            self.vae = load_network(AutoencoderKLMagvit, options.init.folder, "vae")
        else:
            self.vae = build_network(AutoencoderKLMagvit, options.model)
            initialise(self.vae)
        try:
            check_num_frames(options.data.num_frames, self.vae.settings, chunked=False)
        except ValueError as error:
            raise UserError(f"`data.num_frames`: {error}") from error
        if options.init.inflate:
            inflate(self.vae)
        if options.memory_format == "channels_last_3d":
            self.vae.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
        self.vae.to(context.device)  # pyright: ignore[reportArgumentType]
        self.vae.train()

    def modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Inner kernels and matrices for Muon; the first and last layers, norms and biases for AdamW."""
        outer = (
            "encoder.conv_in",
            "encoder.conv_out",
            "decoder.conv_in",
            "decoder.conv_out",
            "quant_conv",
            "post_quant_conv",
        )
        inner, rest = [], []
        for name, parameter in self.vae.named_parameters():
            (inner if parameter.ndim >= 2 and not name.startswith(outer) else rest).append(parameter)
        return [{"params": inner, "kind": "muon"}, {"params": rest, "kind": "adamw"}]

    def buckets(self) -> list[tuple[int, int]]:
        """By size: crops are not taken."""
        return [(self.set.items[i].height, self.set.items[i].width) for i in self.used]

    def loss(
        self, indices: list[int], generator: torch.Generator, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        frames = self._batch(indices, generator)  # (B, 3, T, H, W)
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self.context.dtype == "bf16"):
            posterior = self.vae.encode(frames).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=generator).to(mean.device)
            latents = mean + torch.exp(0.5 * logvar) * noise
            output = self.vae.decode(latents).sample.float()  # pyright: ignore[reportAttributeAccessIssue]
        l1 = F.l1_loss(output, frames)
        mse = F.mse_loss(output, frames)
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        weights = self.options.loss
        total = weights.l1 * l1 + weights.mse * mse + weights.kl * kl
        # peak-to-peak is 2, so PSNR = 10 log10(4 / mse)
        square = float(mse.detach())
        psnr = 10 * math.log10(4 / max(square, 1e-12)) if math.isfinite(square) else math.nan
        figures = {
            "l1": float(l1.detach()), "kl": float(kl.detach()), "psnr": psnr,
            "latent_std": float(mean.detach().std()),
        }  # fmt: skip
        return total, figures

    def finish(self) -> None:
        if self.options.init.whiten:
            shift, scale = whiten(self.vae, self._whitening_latents())
            text = ", ".join(f"{m:+.2f}/{s:.2f}" for m, s in zip(shift.tolist(), scale.tolist(), strict=True))
            self.context.say(f"latents whitened (mean/deviation a channel before: {text})")

    def save(self, folder: Path) -> None:
        self.vae.save_pretrained(folder, safe_serialization=True)

    def _batch(self, indices: list[int], generator: torch.Generator) -> Tensor:
        wanted = self.options.data.num_frames
        clips = []
        for index in indices:
            frames = self.set.frames(self.used[index])
            have = len(frames)
            if have < wanted:
                name = self.set.items[self.used[index]].path.name
                raise UserError(
                    f"`data.num_frames` is {wanted}, but {name} has {have}; lower it or leave such files out"
                )
            start = int(torch.randint(have - wanted + 1, (), generator=generator))
            clips.append(frames[start : start + wanted])
        batch = torch.from_numpy(to_float(clips)).to(self.context.device)
        if self.options.memory_format == "channels_last_3d":
            batch = batch.to(memory_format=torch.channels_last_3d)
        return batch

    @torch.no_grad()
    def _whitening_latents(self) -> Tensor:
        """Means of up to 256 samples, (B, C, T, h, w), spread evenly over the set."""
        self.vae.eval()
        generator = torch.Generator().manual_seed(self.context.seed)
        # samples of the most frequent size, which can be stacked
        sizes = self.buckets()
        size = Counter(sizes).most_common(1)[0][0]
        members = [i for i, other in enumerate(sizes) if other == size]
        count = min(256, len(members))
        indices = [members[round(i * (len(members) - 1) / max(1, count - 1))] for i in range(count)]
        parts = [
            self.vae.encode(self._batch(indices[i : i + 8], generator)).latent_dist.mode()  # pyright: ignore[reportAttributeAccessIssue]
            for i in range(0, count, 8)
        ]
        return torch.cat(parts)


@torch.no_grad()
def initialise(vae: AutoencoderKLMagvit) -> None:
    """Normal weights of gain 1 with zero biases; the last layer of each residual branch starts small.

    torch's default (uniform, gain 1/sqrt(3)) lets the signal die in a network of this depth without skips
    around its samplers.
    """
    for name, module in vae.named_modules():
        if isinstance(module, (nn.Conv3d, nn.Linear)):
            fan_in = module.weight[0].numel()
            small = name.endswith(("conv2", "to_out"))
            module.weight.normal_(0.0, (0.1 if small else 1.0) / math.sqrt(fan_in))
            if module.bias is not None:
                module.bias.zero_()


@torch.no_grad()
def inflate(vae: AutoencoderKLMagvit) -> None:
    """Moves the sum of a causal kernel's temporal taps into the last one.

    On one frame, replicated in front, nothing changes; on a clip each frame is then coded as a picture of
    its own, which is a far better start for video than three equal taps.
    """
    for module in vae.modules():
        if isinstance(module, CausalConv3d) and module.weight.shape[2] > 1:
            total = module.weight.sum(dim=2)
            module.weight.zero_()
            module.weight[:, :, -1] = total


@torch.no_grad()
def whiten(vae: AutoencoderKLMagvit, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Folds (z - mean) * LATENT_STD / std into quant_conv and its inverse into post_quant_conv, exactly.

    latents: (B, C, T, h, w) means of the posterior. Returns the mean and deviation a channel that were found.
    `decode(encode(x))` stays what it was; `encode` then gives means of deviation LATENT_STD a channel.
    """
    channels = latents.shape[1]
    mean = latents.mean(dim=(0, 2, 3, 4))
    scale = LATENT_STD / latents.std(dim=(0, 2, 3, 4))
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant is not None
    assert post is not None
    assert quant.bias is not None
    assert post.bias is not None
    quant.weight[:channels].mul_(scale.view(-1, 1, 1, 1, 1))
    quant.bias[:channels].sub_(mean).mul_(scale)
    quant.bias[channels:].add_(2 * scale.log())  # log of the variance, scaled alike
    # post(z) = W (z' / scale + mean) + b
    post.bias.add_(torch.einsum("oithw,i->o", post.weight, mean))
    post.weight.div_(scale.view(1, -1, 1, 1, 1))
    return mean, LATENT_STD / scale
