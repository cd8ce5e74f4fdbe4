"""Small fakes for the parts of a model, for tests of plugins and of code that uses a pipeline.

They follow the contracts of the real ones (names, shapes, value ranges) and compute in milliseconds on a CPU.

    pipe = VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder())
    pipe("a red circle", num_frames=9, height=32, width=32, num_inference_steps=2).frames
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn


class FakeTextEncoder:
    """Embeddings computed from a text's letters. Texts over `num_tokens` letters are cut."""

    def __init__(self, width: int = 8, num_tokens: int = 12) -> None:
        self.width = width
        self.num_tokens = num_tokens

    def encode(self, prompts: Sequence[str]) -> SimpleNamespace:
        """-> .embeds (B, L, D), .mask (B, L), .truncated: what was cut off each text."""
        embeds = torch.zeros(len(prompts), self.num_tokens, self.width)
        mask = torch.zeros(len(prompts), self.num_tokens, dtype=torch.int64)
        for row, text in enumerate(prompts):
            mask[row, 0] = 1
            for column, letter in enumerate(text[: self.num_tokens]):
                embeds[row, column] = torch.sin(torch.arange(1, self.width + 1) * float(ord(letter)))
                mask[row, column] = 1
        return SimpleNamespace(
            embeds=embeds, mask=mask, truncated=[text[self.num_tokens :] for text in prompts]
        )


class FakeDenoiser(nn.Module):
    """The optimal denoiser for latents N(mean given by the text, 0.5^2); 2C channels, the second C are meaningless."""

    alphas: Tensor

    def __init__(self, text_width: int = 8, channels: int = 4, **config: Any) -> None:
        super().__init__()
        values = {"in_channels": channels, "out_channels": 2 * channels, "patch_size": 2, "sample_size": 64}
        self.config = SimpleNamespace(**(values | config))
        generator = torch.Generator().manual_seed(0)
        self.text = nn.Parameter(torch.randn(channels, text_width, generator=generator))
        self.register_buffer("alphas", torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        added_cond_kwargs: dict[str, Any] | None = None,
    ) -> SimpleNamespace:
        """(R, C, t, h, w), (R,), (R, L, D), (R, L) -> .sample (R, 2C, t, h, w)."""
        text = encoder_hidden_states
        if encoder_attention_mask is not None:
            text = text * encoder_attention_mask[..., None].to(text.dtype)
        told = torch.einsum("cd,rd->rc", self.text, text.mean(1))[:, :, None, None, None]
        a = self.alphas[timestep.long()][:, None, None, None, None].to(told.dtype)
        noise = (hidden_states - a.sqrt() * told) * (1 - a).sqrt() / (a * 0.25 + 1 - a)
        return SimpleNamespace(sample=torch.cat([noise, torch.full_like(noise, 1e3)], dim=1))


class FakeVae(nn.Module):
    """Enlarges latents 8 times in space and 3 latent frames to 9 frames, as MagViT; smoothing adds noise."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        values = {
            "latent_channels": 4,
            "scaling_factor": 0.18215,
            "mini_batch_encoder": 9,
            "mini_batch_decoder": 3,
        }
        self.config = SimpleNamespace(**(values | config))
        self.gain = nn.Parameter(torch.tensor(0.2))
        self.use_tiling = False
        self.num_chunks = 0

    def encode_video(self, frames: Tensor, generator: object = None) -> Tensor:
        """Frames (B, 3, T, H, W) in -1..1 -> latents (B, 4, t, h, w) that decode to about these."""
        chunk, count = self.config.mini_batch_encoder, self.config.mini_batch_decoder
        times = 1 if frames.shape[2] == 1 else chunk // count
        means = reduce(frames, "b c (t n) (h p) (w q) -> b c t h w", "mean", n=times, p=8, q=8)
        latents = torch.atanh(means.clamp(-0.99, 0.99)) / self.gain
        return torch.cat([latents, latents.mean(1, keepdim=True)], dim=1)

    def iter_decode(
        self, latents: Tensor, smooth: bool = True, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """Latents (1, C, t, h, w) -> (1, 3, n, 8h, 8w) in -1..1, chunk by chunk."""
        for chunk in latents.split(self.config.mini_batch_decoder, dim=2):
            self.num_chunks += 1
            times = 1 if chunk.shape[2] == 1 else self.config.mini_batch_encoder // chunk.shape[2]
            frames = repeat(chunk[:, :3], "b c t h w -> b c (t n) (h p) (w q)", n=times, p=8, q=8)
            frames = torch.tanh(frames * self.gain)
            if smooth:
                noise = torch.randn(frames.shape[2:], generator=generator)
                frames = frames + 0.05 * rearrange(noise, "t h w -> 1 1 t h w").to(frames)
            yield frames.clamp(-1, 1)

    def enable_tiling(self) -> None:
        """Only recorded: there is nothing to tile here."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Whole frames again."""
        self.use_tiling = False
