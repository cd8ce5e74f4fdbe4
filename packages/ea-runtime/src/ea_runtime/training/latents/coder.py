"""The VAE and the text encoder as training uses them: frames to moments, captions to features.

Shapes: frames uint8 (B, T, H, W, 3); moments (B, 2 C, t, h, w), mean and log-variance; latents (B, C, t, h, w).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ea_runtime.machine.formats import PartFormats
from ea_runtime.machine.memory import free_memory
from ea_runtime.models.image_encoder import ImageEncoder
from ea_runtime.models.layout import resolve_folder
from ea_runtime.training.data.dataset import to_float

logger = logging.getLogger("ea")

#: Frames x height x width that go through the VAE together: on a CPU, what fits its caches (twice as fast as four
#: times as much); on other devices, enough to fill them.
CPU_PIXELS = 150_000
PIXELS = 1 << 22
#: Captions that go through the text encoder together.
CAPTIONS = 64


class Coder:
    """The parts of a model folder, loaded when they are first used and dropped by `free`.

    chunk: frames that the VAE encodes together. A pickled or copied coder has nothing loaded.
    """

    def __init__(self, parts: str, device: str, dtype: torch.dtype, chunk: int) -> None:
        self.parts, self.device, self.dtype, self.chunk = parts, device, dtype, chunk
        self._loaded: dict[str, Any] = {}
        self._formats = PartFormats(logger.warning)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": {}, "_formats": PartFormats(logger.warning)}

    @torch.no_grad()
    def moments(self, frames: Tensor) -> Tensor:
        """(B, 2 C, t, h, w) on the device; T is 1 or a multiple of the chunk, each chunk encoded separately."""
        vae = self._part("vae")
        b, t, h, w = frames.shape[:4]
        chunk = 1 if t == 1 else self.chunk
        chunks = rearrange(frames, "b (k t) h w c -> (b k) t h w c", t=chunk)
        most = CPU_PIXELS if torch.device(self.device).type == "cpu" else PIXELS
        size = max(1, most // (chunk * h * w))
        with self._formats.watch(vae):
            parts = [
                vae.encode(to_float(part, self.device).to(self.dtype)).latent_dist.parameters
                for part in chunks.split(size)
            ]
        return rearrange(torch.cat(parts), "(b k) c t h w -> b c (k t) h w", b=b)

    @torch.no_grad()
    def features(self, captions: Sequence[str]) -> list[Tensor]:
        """(L, D) of each caption, without padding, on the device."""
        text = self._part("text")
        found: list[Tensor] = []
        for start in range(0, len(captions), CAPTIONS):
            with self._formats.watch(getattr(text, "model", text)):
                encoded = text.encode(list(captions[start : start + CAPTIONS]))
            found += [embeds[mask.bool()] for embeds, mask in zip(encoded.embeds, encoded.mask, strict=True)]
        return found

    @torch.no_grad()
    def pictures(self, frames: Tensor) -> Tensor:
        """Frames uint8 (B, H, W, 3) -> CLIP's embeddings (B, 768), float32 on the device; of V3's folders."""
        if "image_encoder" not in self._loaded:
            self._loaded["image_encoder"] = ImageEncoder(resolve_folder(self.parts)).load(self.device)
        return self._loaded["image_encoder"]([Image.fromarray(frame) for frame in frames.cpu().numpy()])

    def free(self) -> None:
        """Frees the loaded parts."""
        if self._loaded:
            self._loaded.clear()
            if torch.device(self.device).type != "cpu":  # there, dropping them is enough
                free_memory()

    def _part(self, name: str) -> Any:
        if name not in self._loaded:
            from ea_runtime.models.loading import load_parts

            loaded = load_parts(self.parts, device=self.device, dtype=self.dtype, parts=(name,))
            self._loaded[name] = getattr(loaded, name)
        return self._loaded[name]


def means(moments: Tensor) -> Tensor:
    """The means of posteriors: float32 (B, C, t, h, w)."""
    return moments.float().chunk(2, dim=1)[0]


def draw_latents(moments: Tensor, noise: Tensor) -> Tensor:
    """A draw from the posterior: float32 (B, C, t, h, w), on the device of the moments. noise: unit normal."""
    mean, logvar = moments.float().chunk(2, dim=1)
    # the bounds of diffusers' DiagonalGaussianDistribution
    return mean + torch.exp(0.5 * logvar.clamp(-30.0, 20.0)) * noise.to(mean.device)


def pad(features: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Features (L, D) of B captions as (B, longest L, D) with zeros, and their mask (B, L) int64, 1 on tokens."""
    rows = list(features)
    text = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=text.device)
    mask = torch.arange(text.shape[1], device=text.device)[None, :] < lengths[:, None]
    return text, mask.long()
