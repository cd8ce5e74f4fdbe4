"""A local plugin for tests of initial weights and training data: a small VAE, denoiser and training set."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import DatasetRecord, DenoiserRecord, VaeRecord
from ea_runtime.training.data.dataset import BadSample, Bucket, Item, Sample, SetOptions, draw_start


class SmallVae(ModelMixin, ConfigMixin):
    """9 frames <-> 3 latent frames, 8x in space; the latents are means of pixels times `gain`."""

    @register_to_config
    def __init__(self, channels: int = 4, scaling_factor: float = 0.5) -> None:
        super().__init__()
        if channels < 3:
            raise ValueError(f"`channels` must be 3 or more, got {channels}")
        self.gain = nn.Parameter(torch.ones(channels))

    #: chunks and frames that were encoded in this process
    coded = 0

    def encode(self, frames: Tensor) -> SimpleNamespace:
        """Encodes frames (B, 3, T, H, W), one or a chunk of 9, like the real VAE. A chunk is causal."""
        assert frames.shape[2] in (1, 9), "chunks are coded by themselves"
        SmallVae.coded += len(frames)
        time = 1 if frames.shape[2] == 1 else 3
        pooled = nn.functional.avg_pool3d(frames.float(), (time, 8, 8)).to(frames.dtype)  # B 3 t h w
        pooled = pooled + 0.1 * frames[:, :, :1].mean((2, 3, 4), keepdim=True)
        mean = torch.cat([pooled, pooled[:, : len(self.gain) - 3]], dim=1) * self.gain.view(1, -1, 1, 1, 1)
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=torch.cat([mean, mean - 3], dim=1)))


class SmallDenoiser(SmallVae):
    """The same weights under another class name."""


@hookimpl
def ea_vaes() -> list[VaeRecord]:
    return [VaeRecord("small-vae", "for tests", lambda: SmallVae, class_names=("SmallVae",))]


@hookimpl
def ea_denoisers() -> list[DenoiserRecord]:
    return [
        DenoiserRecord("small-denoiser", "for tests", lambda: SmallDenoiser, class_names=("SmallDenoiser",))
    ]


class ArraySet:
    """A set of .npy files (T, H, W, 3) in EasyAnimate's JSON, read like an installed dataset."""

    def __init__(self, options: SetOptions) -> None:
        self.options = options
        self.root = Path(options.path).resolve()
        rows = json.loads((self.root / "dataset.json").read_text())
        self.items = [
            Item(self.root / row["file_path"], row["text"], row["type"] == "video", 0, 0) for row in rows
        ]
        wanted = {"both": (True, False), "videos": (True,), "pictures": (False,)}[options.kinds]
        self.items = [item for item in self.items if item.is_video in wanted]

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int) -> Item:
        return self.items[index]

    def buckets(self, size: int | None = None, num_frames: int | None = None) -> list[Bucket]:
        size = size or self.options.size or 16
        wanted = num_frames or self.options.num_frames
        return [
            Bucket("video" if item.is_video else "image", wanted if item.is_video else 1, size, size)
            for item in self.items
        ]

    def starts(self, index: int, bucket: Bucket) -> range:
        try:
            count = len(np.load(self.items[index].path, mmap_mode="r"))
        except (OSError, ValueError, EOFError):
            return range(1)
        return range(0, max(1, count - bucket.num_frames + 1), self.options.start_multiple) or range(1)

    def read(self, index: int, start: int, bucket: Bucket) -> np.ndarray:
        path = self.items[index].path
        try:
            frames = np.load(path)
        except (OSError, ValueError, EOFError):
            raise BadSample(path.name, "it does not decode") from None
        side = frames.shape[1] // bucket.height
        return frames[start : start + bucket.num_frames, ::side, ::side]

    def sample(self, index: int, seed: int, bucket: Bucket) -> Sample:
        start = draw_start(self.starts(index, bucket), index, seed)
        return Sample(self.read(index, start, bucket), self.items[index].text, start)


@hookimpl
def ea_datasets() -> list[DatasetRecord]:
    return [DatasetRecord("arrays", "for tests", lambda: ArraySet)]
