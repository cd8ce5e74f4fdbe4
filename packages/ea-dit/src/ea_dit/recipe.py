"""The training recipe `dit`: the denoiser on clips and pictures that a VAE and a text encoder coded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ea_dit.init import initialize_weights
from ea_dit.loss import NUM_TIMESTEPS, add_noise, schedule, training_loss
from ea_dit.model import Transformer3DModel
from ea_runtime.errors import UserError
from ea_runtime.training.encoded import EncodedSet
from ea_runtime.training.networks import build_network, load_network
from ea_runtime.training.precision import run_in, short_attention
from ea_runtime.training.recipe import Context


class DataTable(BaseModel):
    """`path`: the set. `parts`: the model folder whose vae/, text_encoder/ and tokenizer/ code it.

    `num_frames`: frames of a clip (longer ones are cut, shorter ones refused). `kinds`: what of the set is
    used. `drop_text`: part of the samples that see the empty prompt, for guidance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    parts: str
    num_frames: int = Field(18, gt=0)
    kinds: Literal["both", "videos", "pictures"] = "both"
    drop_text: float = Field(0.1, ge=0, le=1)


class LossTable(BaseModel):
    """`min_snr`: weights the noise error by min(SNR, gamma) / SNR (Hang et al. 2023, arXiv 2303.09556); 0:
    off.

    Timesteps: `uniform_part` of them uniform, the rest sigmoid(normal(`t_mean`, `t_std`)) of the 1,000 steps,
    which spends more of a small budget where layout and motion are decided.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    min_snr: float = Field(default=5.0, ge=0)
    uniform_part: float = Field(default=1.0, ge=0, le=1)
    t_mean: float = 0.0
    t_std: float = Field(default=1.0, gt=0)


class DitOptions(BaseModel):
    """Tables [data], [model], [init] and [loss] of a `dit` config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    class Init(BaseModel):
        """`folder`: start from this transformer instead of [model].

        `freeze_motion`: leave the motion modules out and as they are. Fresh ones change nothing, so a first
        stage on pictures is exact without them and takes less than half the time.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        folder: str | None = None
        freeze_motion: bool = False

    data: DataTable
    model: dict[str, Any] = Field(default_factory=dict)
    init: Init = Init()
    loss: LossTable = LossTable()


class DitRecipe:
    """Trains Transformer3DModel on cached latents and cached text.

    Raises UserError, one line, where the set, the start, or a size of [model] is wrong.
    """

    options_model = DitOptions

    def __init__(self, options: DitOptions, context: Context) -> None:
        self.options = options
        self.context = context
        # before the set: a wrong config is told at once, and what coding draws cannot change the weights
        if options.init.folder:
            self.model = load_network(Transformer3DModel, options.init.folder, "denoiser")
        else:
            self.model = build_network(Transformer3DModel, options.model)
            initialize_weights(self.model)
        if self.model.cfg.output_channels != 2 * self.model.cfg.in_channels:
            raise UserError(
                f"`model.out_channels` must be 2 x in_channels = {2 * self.model.cfg.in_channels} (noise and "
                f"variance), got {self.model.cfg.output_channels}"
            )
        data = options.data
        self.set = EncodedSet(Path(data.path), Path(data.parts), data.num_frames, data.kinds, context)
        self._check_widths()
        if options.init.freeze_motion:
            self.model.set_motion_modules(False)
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(".attn_temporal." not in name)
        self.dtype = torch.bfloat16 if context.dtype == "bf16" else torch.float32
        self.model.to(context.device)  # pyright: ignore[reportArgumentType]
        self.model.train()

    def modules(self) -> dict[str, nn.Module]:
        return {"transformer": self.model}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The matrices of blocks and skips for Muon; embeddings, tables, norms, biases and ends for AdamW."""
        inner, rest = [], []
        for name, parameter in self.model.named_parameters():
            is_matrix = parameter.ndim == 2 and name.endswith("weight") and "table" not in name
            is_inner = name.startswith(("transformer_blocks.", "long_connect_fc."))
            (inner if is_matrix and is_inner else rest).append(parameter)
        return [{"params": inner, "kind": "muon"}, {"params": rest, "kind": "adamw"}]

    def buckets(self) -> list[tuple[str | int, ...]]:
        return self.set.shapes

    def loss(
        self, indices: list[int], generator: torch.Generator, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        data, device = self.options.data, self.context.device
        dropped = torch.rand(len(indices), generator=generator) < data.drop_text
        latents = self.set.latents(indices).to(device)  # (B, C, t, h, w), unit scale
        text, mask = self.set.text(indices, dropped.tolist())
        noise = torch.randn(latents.shape, generator=generator).to(device)
        timesteps = self._timesteps(len(indices), generator).to(device)
        with short_attention(device):
            output = run_in(
                self.model,
                self.dtype,
                add_noise(latents, noise, timesteps).to(self.dtype),
                timestep=timesteps,
                encoder_hidden_states=text.to(device, self.dtype),
                encoder_attention_mask=mask.to(device),
                added_cond_kwargs=self._sizes(latents),
            ).sample
        terms = training_loss(output.float(), latents, noise, timesteps)
        weight = self._weights(timesteps)
        total = (weight * terms["mse"] + terms["vb"]).mean()
        return total, {"mse": float(terms["mse"].detach().mean()), "vb": float(terms["vb"].detach().mean())}

    def finish(self) -> None:
        """Nothing is left to do."""

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder, safe_serialization=True)

    def _check_widths(self) -> None:
        cfg, latents = self.model.cfg, self.set.shapes[0][1]
        for key, have, what, wanted in (
            ("in_channels", cfg.in_channels, "VAE makes latents", latents),
            ("caption_channels", cfg.text_width, "text encoder makes features", self.set.width),
        ):
            if have != wanted:
                raise UserError(
                    f"`model.{key}` must be {wanted}, as `data.parts`' {what} of that width, got {have}"
                )

    def _timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        table = self.options.loss
        even = torch.rand(count, generator=generator)
        shaped = torch.sigmoid(table.t_mean + table.t_std * torch.randn(count, generator=generator))
        is_even = torch.rand(count, generator=generator) < table.uniform_part
        part = torch.where(is_even, even, shaped)
        return (part * NUM_TIMESTEPS).long().clamp(0, NUM_TIMESTEPS - 1)

    def _weights(self, timesteps: Tensor) -> Tensor:
        gamma = self.options.loss.min_snr
        if gamma == 0:
            return torch.ones(len(timesteps), device=timesteps.device)
        tables = schedule(timesteps.device)
        snr = (tables.signal[timesteps] / tables.sigma[timesteps]).square()
        return snr.clamp(max=gamma) / snr

    def _sizes(self, latents: Tensor) -> dict[str, Tensor] | None:
        """The size condition of models with sample_size 128: pixels and h / w."""
        if not self.model.cfg.has_size_conditions:
            return None
        b, _, _, h, w = latents.shape
        pixels = torch.tensor([h * 8.0, w * 8.0], device=latents.device).expand(b, 2)
        return {"resolution": pixels, "aspect_ratio": pixels[:, :1] / pixels[:, 1:]}
