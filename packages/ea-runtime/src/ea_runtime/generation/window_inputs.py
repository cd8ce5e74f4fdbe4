"""Known frames of each window: its part of pictures, video and mask, and the end of the window before.

What windows share is carried as latents: put back after each step, or, for models that take known frames as channels,
given in place of what encoding the same frames would give. A VAE encodes chunks independently, so the two are equal.

Shapes: N videos, frames (N, 3, T, H, W) in 0..1, mask (N, 1, T, H, W), latents (N, C, t, h, w) in the denoiser's scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.generation.inputs import CLIP_APPLY_RATIO, has_known_frames, strength_of
from ea_runtime.generation.known_frames import KnownFrames, encode_known_frames
from ea_runtime.generation.known_inputs import KnownVideo, read_known_frames
from ea_runtime.generation.settling import settle
from ea_runtime.generation.window_frames import check_lengths, cut_request, video_name
from ea_runtime.models.geometry import Geometry, takes_known_frames, takes_picture

if TYPE_CHECKING:
    from ea_runtime.generation.requests import Request
    from ea_runtime.generation.windows import Window, Windows

#: known frames of a whole request, and notes (`encode_inputs`)
Encode = Callable[["Request"], tuple[KnownFrames | None, tuple[str, ...]]]
#: decodes latents (1, C, t, h, w) of that many frames from a frame on: frames (H, W, 3) uint8
Decode = Callable[[Tensor, int, int], Iterator[np.ndarray]]


class WindowInputs:
    """The known frames of the windows of `batch` videos.

    config: the denoiser's. encode: for a request in one piece, and for what CLIP says of a picture. decode: for windows
    that are joined as pixels. watch: entered where the VAE encodes. Raises UserError for inputs that cannot be read or
    have another size; all are looked at.
    """

    def __init__(
        self,
        request: Request,
        windows: Windows,
        vae: Any,
        geometry: Geometry,
        config: Any,
        batch: int,
        encode: Encode,
        decode: Decode,
        watch: Callable[[], AbstractContextManager[Any]] = nullcontext,
        keep_known: bool = False,
    ) -> None:
        self.request, self.windows, self.batch = request, windows, batch
        self.vae, self.geometry, self.config, self.decode = vae, geometry, config, decode
        self.watch, self.keep_known = watch, keep_known
        self.takes_channels = takes_known_frames(config)
        self.whole: KnownFrames | None = None
        self.notes: tuple[str, ...] = ()
        self._encode_request = encode
        self._clip: Tensor | None = None
        self._clip_apply_ratio = CLIP_APPLY_RATIO
        self._pictures = cache(self._read_pictures)
        self._channels = cache(self._encode_piece)
        if len(windows) == 1:
            self.whole, self.notes = encode(request)
            return
        is_known = has_known_frames(request)
        if vae is None and (is_known or self.takes_channels or windows.is_pixels):
            raise UserError("known frames need a VAE, and this pipeline has none; give `vae=`")
        if is_known:
            check_lengths(request)
        first = cut_request(request, 0, 1)
        if video_name(request) is None:
            # alone, a frame is the first and the last one
            first = replace(first, image_end=None)
            self.notes = self._pictures().notes if is_known else ()
        if has_known_frames(first) or request.clip_image_embeds is not None:
            known, notes = encode(first)
            self.notes = tuple(dict.fromkeys((*self.notes, *notes)))
            if known is not None:
                self._clip, self._clip_apply_ratio = known.clip, known.clip_apply_ratio

    @property
    def is_empty(self) -> bool:
        """True if nothing was encoded yet."""
        return self.whole is None and not has_known_frames(self.request)

    def of(self, number: int, rows: range, made: Sequence[Tensor]) -> KnownFrames | None:
        """Known frames of window `number` of the videos `rows`; None if nothing is known and the denoiser needs none.

        made: what the windows before made of these videos.
        """
        if len(self.windows) == 1:
            return None if self.whole is None else self.whole.rows(rows.start, rows.stop)
        window = self.windows.all[number]
        frames = self._frames(window, rows)
        if self.windows.is_pixels and made:
            video, mask = frames or self._no_frames(window, rows)
            shared = self._decoded(number, made[-1]).to(video)
            video, mask = video.clone(), mask.clone()
            video[:, :, : shared.shape[2]], mask[:, :, : shared.shape[2]] = shared, 0
            return replace(self._encode(video, mask, rows), clip=self._clip_of_frame(shared[:, :, 0], rows))
        if frames is not None:
            known = self._encode(*frames, rows)
        elif window.before or self.takes_channels:
            known = self._nothing(window, rows)
        else:
            return None
        if not made:
            return known
        so_far = torch.cat(list(made), dim=2)
        carried = {0: so_far[:, :, window.start : window.start + window.before]}
        if window.after:
            carried[window.num_latents - window.after] = so_far[:, :, : window.after]
        return self._carried(known, carried)

    def settled(self, number: int, rows: range, x: Tensor) -> Tensor:
        """Latents (N, C, t, h, w) of window `number`, once they are denoised, with known frames where a latent frame
        also stands for made ones. Only for a model that keeps what is known.
        """
        if not self.keep_known or not has_known_frames(self.request):
            return x
        frames = self._frames(self.windows.all[number], rows)
        if frames is None:
            return x
        with self.watch():
            return settle(self.vae, self.geometry, x, *frames)

    def _carried(self, known: KnownFrames, carried: dict[int, Tensor]) -> KnownFrames:
        """Known frames with finished latents from each of these latent frames on."""
        latents, to_make = known.latents.clone(), known.to_make.clone()
        inputs = None if known.inputs is None else known.inputs.clone()
        for start, part in carried.items():
            stop, channels = start + part.shape[2], part.shape[1]
            latents[:, :, start:stop] = part.to(latents)
            if known.keeps:
                to_make[:, :, start:stop] = 0
            if inputs is None:
                continue
            mask = self._channels(self.geometry.chunk_frames, True)[:, :channels]
            inputs[:, :channels, start:stop] = mask.repeat(1, 1, part.shape[2] // mask.shape[2], 1, 1)
            inputs[:, channels:, start:stop] = part.to(inputs)
        return replace(known, latents=latents, to_make=to_make, inputs=inputs)

    def _nothing(self, window: Window, rows: range) -> KnownFrames:
        """A window of which all is made. Its channels are the same for each chunk, so one is encoded."""
        geometry, request = self.geometry, self.request
        shape = geometry.latent_shape(len(rows), window.num_frames, request.height, request.width)
        inputs = None
        if self.takes_channels:
            pieces = geometry.pieces(window.num_frames)
            inputs = torch.cat([self._channels(one.stop - one.start, False) for one in pieces], dim=2)
            inputs = inputs.expand(len(rows), -1, -1, -1, -1)
        like = torch.zeros(shape) if inputs is None else inputs.new_zeros(shape)
        keeps = inputs is None or self.keep_known
        return KnownFrames(
            like, torch.ones_like(like[:, :1]), inputs, self._clip_of(rows), self._clip_apply_ratio, keeps
        )

    def _encode_piece(self, count: int, is_known: bool) -> Tensor:
        """Channels (1, 2C, t, h, w) of `count` frames that the VAE encodes together, black."""
        size = (1, 1, count, self.request.height, self.request.width)
        mask = torch.zeros(size) if is_known else torch.ones(size)
        black = torch.zeros(1, 3, *size[2:])
        with self.watch():
            known = encode_known_frames(self.vae, self.geometry, self.config, black, mask)
        assert known.inputs is not None
        return known.inputs

    def _encode(self, video: Tensor, mask: Tensor, rows: range) -> KnownFrames:
        with self.watch():
            return encode_known_frames(
                self.vae,
                self.geometry,
                self.config,
                video,
                mask,
                posterior=self.request.posterior or "mode",
                generators=[torch.Generator().manual_seed(number) for number in rows],
                clip=self._clip_of(rows),
                clip_apply_ratio=self._clip_apply_ratio,
                keep_known=self.keep_known,
            )

    def _clip_of(self, rows: range) -> Tensor | None:
        return None if self._clip is None else self._clip[rows.start : rows.stop]

    def _clip_of_frame(self, frames: Tensor, rows: range) -> Tensor | None:
        """CLIP's embeddings of the frames (N, 3, H, W) in 0..1 that windows joined as pixels begin with."""
        if not takes_picture(self.config) or self.request.clip_image_embeds is not None:
            return self._clip_of(rows)
        every = frames.new_zeros(self.batch, *frames.shape[1:])
        every[rows.start : rows.stop] = frames
        known, _ = self._encode_request(
            replace(self.request, num_frames=1, image=every, image_end=None, video=None, mask=None)
        )
        clip = None if known is None else known.clip
        return None if clip is None else clip[rows.start : rows.stop]

    def _frames(self, window: Window, rows: range) -> tuple[Tensor, Tensor] | None:
        """Frames and mask of the request in a window; None if it does not say anything about it."""
        request, part = self.request, slice(rows.start, rows.stop)
        if video_name(request) is not None:
            found = read_known_frames(cut_request(request, window.first, window.last), self.batch)
            return found.video[part], found.mask[part]
        total = self.windows.num_frames
        numbers = [number % total for number in range(window.first, window.last)]
        ends = {0: request.image, total - 1: request.image_end}
        known = [number in ends and ends[number] is not None for number in numbers]
        # at full strength, frames that are made do not depend on the picture next to them
        is_shown = any(known) or strength_of(request) < 1
        if not has_known_frames(request) or not is_shown:
            return None
        half = total if request.image_end is None else 0 if request.image is None else (total + 1) // 2
        video = self._pictures().video[part, :, [int(number >= half) for number in numbers]]
        mask = video.new_ones(len(rows), 1, *video.shape[2:])
        mask[:, :, torch.tensor(known)] = 0
        return video, mask

    def _read_pictures(self) -> KnownVideo:
        """The first picture and the last one, as a video of two frames; if one is given, it twice."""
        return read_known_frames(replace(self.request, num_frames=2), self.batch)

    def _no_frames(self, window: Window, rows: range) -> tuple[Tensor, Tensor]:
        size = (window.num_frames, self.request.height, self.request.width)
        return torch.zeros(len(rows), 3, *size), torch.ones(len(rows), 1, *size)

    def _decoded(self, number: int, latents: Tensor) -> Tensor:
        """The frames (N, 3, T, H, W) in 0..1 that window `number` shares with the one before, out of its latents."""
        count, shared = self.windows.all[number - 1].num_frames, self.windows.all[number].frames_before
        rows = [np.stack(list(self.decode(one[None], count, count - shared))) for one in latents]
        return torch.from_numpy(np.stack(rows)).permute(0, 4, 1, 2, 3).float() / 255
