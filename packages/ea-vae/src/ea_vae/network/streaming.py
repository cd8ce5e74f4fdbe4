"""Coding whole videos piece by piece, and the smoothing of the seams between the pieces.

Everything is streamed: a few chunks of frames are held at a time, whatever the video's number of frames.
Shapes: frames (B, 3, T, H, W) in -1..1, latents (B, 4, t, h, w) in the VAE's own scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .chunking import (
    Piece,
    check_frames,
    check_latents,
    count_frames,
    count_latents,
    decode_pieces,
    encode_pieces,
    resolve_first_alone,
)
from .config import VaeConfig
from .conv import Mode
from .posterior import Generators, NoiseStream
from .spread import Job


class Coder(Protocol):
    """The part of `AutoencoderKLMagvit` that is needed here: its settings, and the coding of one piece."""

    settings: VaeConfig

    def encode_piece(self, x: Tensor, mode: Mode) -> Tensor: ...

    def decode_piece(self, z: Tensor, mode: Mode, num_before: int = 0, num_after: int = 0) -> Tensor: ...

    def run_jobs(self, jobs: Iterator[Job]) -> Iterator[Tensor]: ...


@torch.no_grad()
def encode_video(
    vae: Coder, frames: Tensor, generator: Generators = None, sample: bool | None = None
) -> Tensor:
    """See `AutoencoderKLMagvit.encode_video`."""
    check_frames(frames, vae.settings, chunked=True, name="frames")
    _check_generators(generator, frames.shape[0])
    sample = generator is not None if sample is None else sample
    pieces = encode_pieces(frames.shape[2], vae.settings)
    noise = _noise(generator, pieces, vae.settings)
    latents = []
    for piece in pieces:
        moments = vae.encode_piece(frames[:, :, piece.start : piece.stop], piece.mode)
        latents.append(noise.sample(moments) if sample else moments.chunk(2, dim=1)[0])
    return torch.cat(latents, dim=2)


def iter_decode(
    vae: Coder,
    latents: Tensor,
    smooth: bool = True,
    generator: Generators = None,
    num_frames: int | None = None,
) -> Iterator[Tensor]:
    """See `AutoencoderKLMagvit.iter_decode`. Arguments are checked at once, not with the first frames."""
    config = vae.settings
    check_latents(latents, config, name="latents")
    _check_generators(generator, latents.shape[0])
    first_alone = resolve_first_alone(latents.shape[2], num_frames, config)
    pieces = decode_pieces(latents.shape[2], config, first_alone=first_alone)
    plain = _decode_plain(vae, latents, pieces)
    total = count_frames(pieces, config)
    if smooth and total > config.mini_batch_encoder:
        return _smooth(vae, plain, total, generator)
    return plain


def _noise(generator: Generators, pieces: Sequence[Piece], config: VaeConfig) -> NoiseStream:
    return NoiseStream(generator, count_latents(pieces, config) if config.slice_compression_vae else None)


def _check_generators(generator: Generators, batch: int) -> None:
    if isinstance(generator, list) and len(generator) != batch:
        raise ValueError(
            f"`generator` must be one, or a list of {batch}, one for each video, got {len(generator)} in it"
        )


@torch.no_grad()
def _decode_plain(vae: Coder, latents: Tensor, pieces: Sequence[Piece]) -> Iterator[Tensor]:
    def jobs() -> Iterator[Job]:
        for piece in pieces:
            z = latents[:, :, piece.start - piece.num_before : piece.stop + piece.num_after]
            yield partial(vae.decode_piece, z, piece.mode, piece.num_before, piece.num_after)

    for frames in vae.run_jobs(jobs()):
        yield frames.clamp(-1, 1)


@torch.no_grad()
def _smooth(vae: Coder, plain: Iterator[Tensor], total: int, generator: Generators) -> Iterator[Tensor]:
    """The `total` frames of `plain`, the inner ones averaged with what they become when coded once more.

    The second coding's chunks begin 4 frames later, so that their middles lie on the first coding's seams.
    The first 4 frames and the last 5 (slice mode: 4) stay as they are.
    """
    config = vae.settings
    offset = config.mini_batch_encoder // 2
    encoding = encode_pieces(total - config.mini_batch_encoder, config)
    noise = _noise(generator, encoding, config)
    frames = _Window(lambda: next(plain, None))

    def encoding_jobs() -> Iterator[Job]:
        for piece in encoding:
            inner = frames.get(offset + piece.start, offset + piece.stop)
            yield partial(vae.encode_piece, inner, piece.mode)

    encoded = vae.run_jobs(encoding_jobs())

    def encode_next() -> Tensor | None:
        moments = next(encoded, None)
        return None if moments is None else noise.sample(moments)

    latents = _Window(encode_next)
    yield frames.get(0, offset).clone()
    done = offset
    num_latents = count_latents(encoding, config)
    first_alone = (
        encoding[0].mode == "single"
    )  # said, since the latent frames' parity need not be the frames'
    pieces = decode_pieces(num_latents, config, first_alone=first_alone)

    def decoding_jobs() -> Iterator[Job]:
        for piece in pieces:
            z = latents.get(piece.start - piece.num_before, piece.stop + piece.num_after)
            yield partial(vae.decode_piece, z, piece.mode, piece.num_before, piece.num_after)

    for piece, again in zip(pieces, vae.run_jobs(decoding_jobs()), strict=True):
        stop = done + again.shape[2]
        yield ((frames.get(done, stop) + again) / 2).clamp(-1, 1)
        frames.release(stop)
        latents.release(max(piece.stop - config.mini_batch_decoder, 0))  # the next slice looks back that far
        done = stop
    yield frames.get(done, total).clone()


class _Window:
    """A stream of (B, C, n, H, W), asked for by positions on axis 2; what is released is no longer held."""

    def __init__(self, more: Callable[[], Tensor | None]) -> None:
        self.more = more
        self.start = 0
        self.parts: list[Tensor] = []

    def get(self, start: int, stop: int) -> Tensor:
        """Positions start..stop; pulls the stream on as far as needed."""
        while self.start + sum(part.shape[2] for part in self.parts) < stop:
            part = self.more()
            assert part is not None, "the stream ended early"
            self.parts.append(part)
        if len(self.parts) > 1:
            self.parts = [torch.cat(self.parts, dim=2)]
        return self.parts[0][:, :, start - self.start : stop - self.start]

    def release(self, stop: int) -> None:
        """Forget the positions before `stop`, which must have been pulled."""
        assert len(self.parts) == 1, "release follows get"
        # clone: a view would keep the released frames' memory.
        self.parts = [self.parts[0][:, :, stop - self.start :].clone()]
        self.start = stop
