"""Coding whole videos piece by piece, and the smoothing of the seams between the pieces.

Everything is streamed: a few chunks of frames are held at a time, for a video of any number of frames.
Shapes: frames (B, 3, T, H, W) in -1..1, latents (B, 4, t, h, w) in the VAE's own scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from mmap import mmap

import torch
from torch import Tensor

from .chunking import (
    Piece,
    check_frames,
    check_latents,
    check_num_frames,
    count_frames,
    count_latents,
    decode_pieces,
    encode_pieces,
    find_frame,
    find_latent,
    resolve_first_alone,
)
from .config import VaeConfig
from .conv import Mode
from .posterior import Generators, NoiseStream
from .spread import Job


class VideoCoder:
    """Videos of any number of frames, for anything that encodes and decodes one piece: the network, or exported graphs.

    A subclass has `settings`, `encode_piece` and `decode_piece`.
    """

    settings: VaeConfig

    def encode_piece(self, x: Tensor, mode: Mode) -> Tensor:
        """Moments (B, 8, t, h, w) of frames (B, 3, T, H, W) encoded together."""
        raise NotImplementedError

    def decode_piece(self, z: Tensor, mode: Mode, num_before: int = 0, num_after: int = 0) -> Tensor:
        """Frames (B, 3, T, H, W) of latents (B, 4, t, h, w) decoded together, without the neighbours' frames."""
        raise NotImplementedError

    def run_jobs(self, jobs: Iterator[Job]) -> Iterator[Tensor]:
        """The result of each job, in order."""
        return (job() for job in jobs)

    @torch.no_grad()
    def encode_video(
        self, frames: Tensor, generator: Generators = None, sample: bool | None = None
    ) -> Tensor:
        """Encode a video of any number of frames, chunk by chunk, without gradients.

        Args:
            frames: (B, 3, T, H, W) in -1..1, on any device; T is 9k, 9k + 1 or 9k + 5 (slice mode: 4k or
                4k + 1, of which 8k and 8k + 1 decode to as many frames, the others if they are given `num_frames`).
            generator: for the posterior's noise: one for the batch, or a list with one for each video.
            sample: draw from the posterior (True) or take its mean (False). Default: draw if there is a
                generator.

        Returns:
            Latents (B, 4, t, H / 8, W / 8), the VAE's own scale.

        Raises:
            ValueError: `frames` has another rank, channel count, type, size or number of frames.
        """
        check_frames(frames, self.settings, chunked=True, name="frames")
        _check_generators(generator, frames.shape[0])
        sample = generator is not None if sample is None else sample
        pieces = encode_pieces(frames.shape[2], self.settings)
        noise = _noise(generator, pieces, self.settings)
        latents = []
        for piece in pieces:
            moments = self.encode_piece(frames[:, :, piece.start : piece.stop], piece.mode)
            latents.append(noise.sample(moments) if sample else moments.chunk(2, dim=1)[0])
        return torch.cat(latents, dim=2)

    def decode_video(
        self,
        latents: Tensor,
        smooth: bool = True,
        generator: Generators = None,
        num_frames: int | None = None,
    ) -> Tensor:
        """Decode latents of any number of latent frames, chunk by chunk, without gradients.

        Args:
            latents: (B, 4, t, h, w), the VAE's own scale.
            smooth: soften the seams between chunks as EasyAnimate V2 does. All frames but the first 4 and the
                last 5 (slice mode: 4) are encoded and decoded again, in chunks that begin 4 frames
                later, and averaged with the first result.
            generator: for the noise of that second pass: one for the batch, or a list with one for each video.
            num_frames: slice mode: the number of frames that were encoded, which decides whether frame 0 was
                encoded alone. Default: it was if t is odd, as in EasyAnimate.

        Returns:
            Frames (B, 3, T, 8 h, 8 w), clamped to -1..1.

        Raises:
            ValueError: `latents` has another rank or channel count, or do not fit `num_frames`.
        """
        return torch.cat(list(self.iter_decode(latents, smooth, generator, num_frames)), dim=2)

    def iter_decode(
        self,
        latents: Tensor,
        smooth: bool = True,
        generator: Generators = None,
        num_frames: int | None = None,
        start: int = 0,
    ) -> Iterator[Tensor]:
        """`decode_video`, yielding (B, 3, n, 8 h, 8 w) as soon as n more frames are final (n varies: 1 to 9).

        Memory does not grow with the number of frames. Arguments and errors are those of `decode_video`;
        errors come at once, not with the first frames.

        Args:
            start: the first frame to yield, for decoding that is resumed; frames from there on are bit-exact with those
                of the whole video. Only the chunks that they depend on are computed.
        """
        config = self.settings
        check_latents(latents, config, name="latents")
        _check_generators(generator, latents.shape[0])
        first_alone = resolve_first_alone(latents.shape[2], num_frames, config)
        pieces = decode_pieces(latents.shape[2], config, first_alone=first_alone)
        total = count_frames(pieces, config)
        if not 0 <= start < total:
            raise ValueError(f"`start` must be from 0 to {total - 1} for {total} frames, got {start}")
        if smooth and total > config.mini_batch_encoder:
            return self._smooth(pieces, latents, generator, start)
        return self._plain(pieces, latents, start)

    def num_latents_for(self, num_frames: int) -> int:
        """Latent frames that `encode_video` makes of `num_frames` frames; ValueError if they do not fit."""
        check_num_frames(num_frames, self.settings, chunked=True)
        return count_latents(encode_pieces(num_frames, self.settings), self.settings)

    def num_frames_for(self, num_latents: int) -> int:
        """Frames that `decode_video` makes of `num_latents` latent frames."""
        return count_frames(decode_pieces(num_latents, self.settings), self.settings)

    @torch.no_grad()
    def _decode_pieces(
        self, pieces: Sequence[Piece], latents: Callable[[int, int], Tensor]
    ) -> Iterator[Tensor]:
        """Frames of each piece, not clamped. latents: start, stop -> (B, 4, stop - start, h, w)."""

        def jobs() -> Iterator[Job]:
            for piece in pieces:
                z = latents(piece.start - piece.num_before, piece.stop + piece.num_after)
                yield partial(self.decode_piece, z, piece.mode, piece.num_before, piece.num_after)

        yield from self.run_jobs(jobs())

    def _plain(self, pieces: Sequence[Piece], latents: Tensor, start: int) -> Iterator[Tensor]:
        """Frames from `start` on, without smoothing."""
        first, frame = find_frame(pieces, start, self.settings)
        unwanted = start - frame
        for frames in self._decode_pieces(pieces[first:], lambda start, stop: latents[:, :, start:stop]):
            yield _clamped(frames)[:, :, unwanted:]
            unwanted = 0

    @torch.no_grad()
    def _smooth(
        self, plain: Sequence[Piece], latents: Tensor, generator: Generators, start: int
    ) -> Iterator[Tensor]:
        """Frames from `start` on, the inner ones averaged with those of a second pass.

        The second pass encodes and decodes chunks that begin 4 frames later, so their middles are at the first pass's
        seams. The first 4 frames and the last 5 (slice mode: 4) stay as they are.
        """
        config = self.settings
        total = count_frames(plain, config)
        offset = config.mini_batch_encoder // 2
        encoding = encode_pieces(total - config.mini_batch_encoder, config)
        # explicit: the parity of the latent frames need not be that of the frames
        first_alone = encoding[0].mode == "single"
        pieces = decode_pieces(count_latents(encoding, config), config, first_alone=first_alone)
        inner = count_frames(pieces, config)
        if start >= offset + inner:
            yield from self._plain(plain, latents, start)
            return
        # the first piece of the second pass that is wanted, and what it depends on
        first, done = find_frame(pieces, max(start - offset, 0), config)
        done += offset
        oldest = pieces[first].start - pieces[first].num_before
        first_encoded, latent = find_latent(encoding, oldest, config)
        frame = 0 if start < offset else offset + encoding[first_encoded].start
        frames = _Window(self._plain(plain, latents, frame), frame)
        noise = _noise(generator, encoding, config, first_encoded)

        def encoding_jobs() -> Iterator[Job]:
            for piece in encoding[first_encoded:]:
                inner = frames.get(offset + piece.start, offset + piece.stop)
                yield partial(self.encode_piece, inner, piece.mode)

        again_latents = _Window((noise.sample(moments) for moments in self.run_jobs(encoding_jobs())), latent)
        if start < offset:
            yield frames.get(start, offset).clone()
        for piece, again in zip(
            pieces[first:], self._decode_pieces(pieces[first:], again_latents.get), strict=True
        ):
            stop = done + again.shape[2]
            mean = (frames.get(done, stop) + again).div_(2)
            yield _clamped(mean)[:, :, max(start - done, 0) :]
            frames.release(stop)
            # the next slice looks back that far
            again_latents.release(max(piece.stop - config.mini_batch_decoder, latent))
            done = stop
        yield frames.get(done, total)


def _clamped(frames: Tensor) -> Tensor:
    """Frames in -1..1, on a CPU in memory of their own.

    They live while the next chunk is computed. In the allocator's heap each would split the room that the chunks use
    again and again, and the heap would grow with the video.
    """
    if type(frames) is not Tensor or frames.device.type != "cpu" or torch.is_grad_enabled():
        return frames.clamp(-1, 1)
    pages = mmap(-1, frames.numel() * frames.element_size())
    own = torch.frombuffer(pages, dtype=frames.dtype).view(frames.shape)
    return torch.clamp(frames, -1, 1, out=own)


def _noise(generator: Generators, pieces: Sequence[Piece], config: VaeConfig, first: int = 0) -> NoiseStream:
    """The noise of encoding `pieces`, from piece `first` on."""
    whole = count_latents(pieces, config) if config.slice_compression_vae else None
    return NoiseStream(generator, whole, [count_latents([piece], config) for piece in pieces[:first]])


def _check_generators(generator: Generators, batch: int) -> None:
    if isinstance(generator, list) and len(generator) != batch:
        raise ValueError(
            f"`generator` must be one, or a list of {batch}, one for each video, got {len(generator)} in it"
        )


class _Window:
    """A stream of (B, C, n, H, W), read by positions on axis 2; released positions are no longer held.

    start: the position of the stream's first.
    """

    def __init__(self, stream: Iterator[Tensor], start: int = 0) -> None:
        self.stream = stream
        self.start = start
        self.parts: list[Tensor] = []

    def get(self, start: int, stop: int) -> Tensor:
        """Positions start..stop; pulls the stream on as far as needed."""
        while self.start + sum(part.shape[2] for part in self.parts) < stop:
            part = next(self.stream, None)
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
