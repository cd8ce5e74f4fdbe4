"""Previews while a job is denoised: clean latents as small pictures, through a linear map fitted to the model's VAE.

Shapes: latents (C, t, h, w), colours (3, t, h, w) in -1..1.
"""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, reduce
from PIL import Image
from platformdirs import user_cache_path
from torch import Tensor

from ea_runtime.files.atomic import write_atomic
from ea_runtime.machine.computing import compute_device, compute_dtype
from ea_runtime.machine.memory import free_memory
from ea_runtime.models.hash import part_hash

logger = logging.getLogger("ea.serve")

#: seconds between two previews, and the share of a run that they may take
EVERY, SHARE = 0.5, 0.02
#: latent frames that a preview shows, and pixels of its longer side at least
MAX_FRAMES, MIN_SIDE = 12, 128
#: of what is drawn to fit the map: clips, their side in latents, and the weight of the map's own size
_CLIPS, _SIDE, _RIDGE = 12, 8, 1e-3
#: a colour is made of a latent and its eight neighbours
_REACH = 1
_QUALITY = 60
_MILLISECONDS = 160
#: of the file's contents
_VERSION = 1


class Previewer:
    """The previews of one model. model: its folder or name, for the hash of its VAE."""

    def __init__(self, pipe: Any, model: str) -> None:
        self._pipe = pipe
        self._model = model
        self._map: np.ndarray | None = None
        self._is_broken = False

    def watch(self, show: Callable[[bytes], None]) -> Callable[[int, Tensor], None]:
        """A function for `on_preview` of one run: now and then it draws the latents and shows the picture.

        Previews take at most 2% of a run, and two of them are at least half a second apart. One that fails is
        reported in the log, and is the last.
        """
        started = time.monotonic()
        due, spent = started + EVERY, 0.0

        def on_preview(step: int, latents: Tensor) -> None:
            nonlocal due, spent
            now = time.monotonic()
            if self._is_broken or now < due or spent > SHARE * (now - started):
                return
            try:
                if self._map is None:  # once a model, so it does not count
                    self._map = fitted_map(self._pipe, self._model)
                    now = time.monotonic()
                show(draw(latents, self._map, self._pipe.geometry.scale))
            except Exception as error:
                self._is_broken = True
                logger.warning("no previews of this model: %s", error)
                free_memory()
            spent += time.monotonic() - now
            due = time.monotonic() + EVERY

        return on_preview


def draw(latents: Tensor, matrix: np.ndarray, scale: float) -> bytes:
    """Latents (C, t, h, w) of the denoiser as a small animated WebP. matrix: see `fit_map`."""
    count = latents.shape[1]
    chosen = (
        [round(i * (count - 1) / max(1, MAX_FRAMES - 1)) for i in range(MAX_FRAMES)]
        if count > MAX_FRAMES
        else range(count)
    )
    small = latents[:, list(chosen)].float().cpu().numpy() / scale
    colours = apply_map(small, matrix)
    pixels = ((colours + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    height, width = pixels.shape[2:]
    larger = max(1, -(-MIN_SIDE // max(height, width)))
    frames = [
        Image.fromarray(rearrange(frame, "c h w -> h w c")).resize(
            (width * larger, height * larger), Image.Resampling.BICUBIC
        )
        for frame in rearrange(pixels, "c t h w -> t c h w")
    ]
    target = io.BytesIO()
    animation: dict[str, Any] = (
        {"save_all": True, "append_images": frames[1:], "duration": _MILLISECONDS, "loop": 0}
        if len(frames) > 1
        else {}
    )
    frames[0].save(target, format="WEBP", quality=_QUALITY, method=0, **animation)
    return target.getvalue()


def apply_map(latents: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Latents (C, t, h, w) of the VAE's own scale -> colours (3, t, h, w). matrix: (3, 9 C + 1)."""
    return np.einsum("ok,kthw->othw", matrix, _neighbours(latents))


def _neighbours(latents: np.ndarray) -> np.ndarray:
    """Each latent's own channels and its neighbours', and a 1: (9 C + 1, t, h, w)."""
    height, width = latents.shape[2:]
    padded = np.pad(latents, ((0, 0), (0, 0), (_REACH, _REACH), (_REACH, _REACH)), mode="edge")
    ways = range(2 * _REACH + 1)
    parts = [padded[:, :, i : i + height, j : j + width] for i in ways for j in ways]
    return np.concatenate([*parts, np.ones_like(latents[:1])])


def fitted_map(pipe: Any, model: str) -> np.ndarray:
    """The map of a model's VAE: from the cache, or else fitted now and kept there.

    In previews.json in $EA_CACHE, else in `ea` in the user's cache folder, by the VAE's hash.
    """
    path = Path(os.environ.get("EA_CACHE") or user_cache_path("ea", appauthor=False)) / "previews.json"
    key = part_hash(model, "vae")
    known = _read(path)
    shape = (3, (2 * _REACH + 1) ** 2 * pipe.geometry.latent_channels + 1)
    found = known.get(key)
    if found is not None and np.shape(found) == shape:
        return np.asarray(found, np.float32)
    matrix = fit_map(pipe)
    try:
        maps = {**_read(path), key: matrix.tolist()}
        write_atomic(path, json.dumps({"version": _VERSION, "maps": maps}))
    except OSError as error:
        logger.warning(
            "the preview's map is not kept: %s cannot be written: %s", path, error.strerror or error
        )
    return matrix


def fit_map(pipe: Any) -> np.ndarray:
    """The affine map from latents to the mean colour of the pixels that each stands for, by least squares.

    Drawn clips are encoded; each latent, with its neighbours, is paired with the mean of its frames and pixels. Returns
    (3, 9 C + 1), float32. For `tiny` it explains 80% of the variance of what the decoder gives, at latent size.
    """
    geometry = pipe.geometry
    where = compute_device(pipe.vae), compute_dtype(pipe.vae)
    inputs, targets = [], []
    for number in range(_CLIPS):
        clip = drawn_clip(number, geometry.chunk_frames, _SIDE * geometry.spatial_ratio)
        video = torch.from_numpy(clip).unsqueeze(0).to(*where)  # (1, 3, T, H, W)
        with torch.inference_mode():
            latents = pipe.vae.encode_video(video)[0].float().cpu().numpy()  # (C, t, h, w)
        inputs.append(rearrange(_neighbours(latents), "k t h w -> (t h w) k"))
        colours = pooled(clip, latents.shape[1], geometry.spatial_ratio, geometry.temporal_ratio)
        targets.append(rearrange(colours, "c t h w -> (t h w) c"))
    x, y = (np.concatenate(parts).astype(np.float64) for parts in (inputs, targets))
    penalty = np.full(x.shape[1], _RIDGE * len(x))
    penalty[-1] = 0.0
    return np.linalg.solve(x.T @ x + np.diag(penalty), x.T @ y).T.astype(np.float32)


def pooled(clip: np.ndarray, num_latents: int, space: int, time: int) -> np.ndarray:
    """Mean colours (3, t, h, w) of what each latent stands for: `space` x `space` pixels, and `time` frames.

    clip: (3, T, H, W). Where T is one more than a multiple of `time`, frame 0 has its own latent.
    """
    small = reduce(clip, "c t (h a) (w b) -> c t h w", "mean", a=space, b=space)
    first = small.shape[1] - (num_latents - 1) * time  # frames of the first latent
    edges = [0, *range(first, small.shape[1] + 1, time)]
    means = [small[:, start:stop].mean(1) for start, stop in pairwise(edges)]
    return np.stack(means, axis=1)


def drawn_clip(seed: int, num_frames: int, side: int) -> np.ndarray:
    """A clip (3, T, H, W) in -1..1: discs and squares that move over black, a plain colour or a gradient."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    low, high = generator.uniform(-1, 1, (2, 3, 1, 1))
    angle = generator.uniform(0, 2 * np.pi)
    way = np.cos(angle) * x + np.sin(angle) * y
    slope = (way - way.min()) / np.ptp(way)
    ground = [
        np.full((3, side, side), -1.0),
        np.broadcast_to(low, (3, side, side)),
        low + (high - low) * slope,
    ][seed % 3]
    count = 3 + seed % 3
    places, speeds = generator.uniform(0, 1, (count, 2)), generator.uniform(-0.015, 0.015, (count, 2))
    sizes, is_square = generator.uniform(0.05, 0.25, count), generator.random(count) < 0.5
    colours = generator.uniform(-1, 1, (count, 3))
    colours = np.where(generator.random((count, 1)) < 0.6, np.sign(colours), colours)  # many are pure ones
    frames = []
    for number in range(num_frames):
        frame = ground
        for place, size, square, colour in zip(
            places + number * speeds, sizes, is_square, colours, strict=True
        ):
            down, across = np.abs(x - place[0]), np.abs(y - place[1])
            distance = np.maximum(down, across) if square else np.hypot(down, across)
            cover = np.clip((size - distance) * side + 0.5, 0, 1)
            frame = frame * (1 - cover) + colour[:, None, None] * cover
        frames.append(frame)
    return np.stack(frames, axis=1).astype(np.float32)


def _read(path: Path) -> dict[str, Any]:
    """The maps that are known; a damaged file counts as empty."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return known["maps"] if known["version"] == _VERSION else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
