"""Videos of any number of frames: the pieces that pass the network together, and the numbers of frames that fit.

MagViT mode: independent chunks, `mini_batch_encoder` frames <-> `mini_batch_decoder` latent frames (9 <-> 3).
Slice mode: slices of 8 frames <-> 2 latent frames; with an odd number of frames, frame 0 is encoded alone; the
decoder's mid block also sees the two neighbouring slices.

Shapes: frames (B, 3, T, H, W), latents (B, 4, t, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from torch import Tensor

from .config import VaeConfig
from .conv import Mode


@dataclass(frozen=True)
class Piece:
    """Frames (or latent frames) start..stop of one pass, and the neighbours that it sees."""

    start: int
    stop: int
    mode: Mode
    num_before: int = 0
    num_after: int = 0


def encode_pieces(num_frames: int, config: VaeConfig, chunked: bool = True) -> list[Piece]:
    """Passes that encode `num_frames` frames, in order; `chunked=False`: MagViT takes them as one."""
    size = config.mini_batch_encoder
    if not config.slice_compression_vae:
        size = size if chunked else num_frames
        return [Piece(i, min(i + size, num_frames), "causal") for i in range(0, num_frames, size)]
    first = num_frames % 2
    pieces = [Piece(0, 1, "single")] if first else []
    return pieces + [Piece(i, min(i + size, num_frames), "slice") for i in range(first, num_frames, size)]


def decode_pieces(
    num_latents: int, config: VaeConfig, chunked: bool = True, first_alone: bool | None = None
) -> list[Piece]:
    """Passes that decode `num_latents` latent frames, in order; `chunked=False`: MagViT takes them as one.

    first_alone: slice mode: latent frame 0 stands for one frame. None: it does if `num_latents` is odd, as
        in EasyAnimate.
    """
    size = config.mini_batch_decoder
    if not config.slice_compression_vae:
        size = size if chunked else num_latents
        return [Piece(i, min(i + size, num_latents), "causal") for i in range(0, num_latents, size)]
    first = int(num_latents % 2 == 1 if first_alone is None else first_alone)
    pieces = [Piece(0, 1, "single")] if first else []
    for start in range(first, num_latents, size):
        stop = min(start + size, num_latents)
        # The lone first latent frame is nobody's neighbour: it was encoded alone.
        pieces.append(Piece(start, stop, "slice", min(size, start - first), min(size, num_latents - stop)))
    return pieces


def count_latents(pieces: Sequence[Piece], config: VaeConfig) -> int:
    """Latent frames that the encoding `pieces` yield."""
    return sum(_latents_of(piece, config) for piece in pieces)


def count_frames(pieces: Sequence[Piece], config: VaeConfig) -> int:
    """Frames that the decoding `pieces` yield."""
    return sum(_frames_of(piece, config) for piece in pieces)


def find_frame(pieces: Sequence[Piece], frame: int, config: VaeConfig) -> tuple[int, int]:
    """The decoding piece that yields `frame`, and the first frame of that piece."""
    return _find([_frames_of(piece, config) for piece in pieces], frame, "frames")


def find_latent(pieces: Sequence[Piece], latent: int, config: VaeConfig) -> tuple[int, int]:
    """The encoding piece that yields latent frame `latent`, and the first latent frame of that piece."""
    return _find([_latents_of(piece, config) for piece in pieces], latent, "latent frames")


def _find(sizes: Sequence[int], position: int, name: str) -> tuple[int, int]:
    """The part, of parts of these sizes, that holds `position`, and where that part begins."""
    first = 0
    for number, size in enumerate(sizes):
        if position < first + size:
            return number, first
        first += size
    raise IndexError(f"there are {first} {name}, not {position}")


def _frames_of(piece: Piece, config: VaeConfig) -> int:
    enlarged = (piece.stop - piece.start) * config.temporal_ratio
    return {"causal": enlarged - config.temporal_ratio + 1, "slice": enlarged, "single": 1}[piece.mode]


def _latents_of(piece: Piece, config: VaeConfig) -> int:
    return -(-(piece.stop - piece.start) // config.temporal_ratio)


def resolve_first_alone(num_latents: int, num_frames: int | None, config: VaeConfig) -> bool | None:
    """True if latent frame 0 stands alone in a video of `num_frames` frames; None leaves it to the parity.

    Raises:
        ValueError: `num_latents` latent frames do not fit `num_frames` frames.
    """
    if num_frames is None:
        return None
    options = (False, True) if config.slice_compression_vae else (None,)
    fitting = {
        count_frames(decode_pieces(num_latents, config, first_alone=alone), config): alone
        for alone in options
    }
    if num_frames not in fitting:
        use = " or ".join(str(number) for number in fitting)
        raise ValueError(f"`num_frames` must be {use} for {num_latents} latent frames, got {num_frames}")
    return fitting[num_frames]


def check_frames(x: Tensor, config: VaeConfig, chunked: bool, name: str = "x") -> None:
    """Raises ValueError unless `x` is a (B, C, T, H, W) that this VAE can encode."""
    _check_layout(x, name, "frames", config.in_channels)
    if not x.is_floating_point():
        raise ValueError(f"`{name}` must be floating point in -1..1, got {x.dtype}; use {name} / 127.5 - 1")
    ratio = config.spatial_ratio
    for axis, size in (("height", x.shape[3]), ("width", x.shape[4])):
        if size % ratio or size == 0:
            low = size // ratio * ratio
            use = f"{low} or {low + ratio}" if low else f"{ratio}"
            raise ValueError(f"{axis} of `{name}` must be a multiple of {ratio}, got {size}; use {use}")
    check_num_frames(x.shape[2], config, chunked)


def check_latents(z: Tensor, config: VaeConfig, name: str = "z") -> None:
    """Raises ValueError unless `z` is a (B, C, t, h, w) that this VAE can decode."""
    _check_layout(z, name, "latent frames", config.latent_channels)
    if 0 in z.shape:
        raise ValueError(f"`{name}` must hold one latent frame or more, got shape {tuple(z.shape)}")


def check_num_frames(num_frames: int, config: VaeConfig, chunked: bool) -> None:
    """Raises ValueError with the two nearest numbers that fit if `num_frames` cannot be encoded."""
    if _fits(num_frames, config, chunked):
        return
    above = next(n for n in count(max(num_frames, 0) + 1) if _fits(n, config, chunked))
    below = next((n for n in range(num_frames - 1, 0, -1) if _fits(n, config, chunked)), None)
    use = above if below is None else f"{below} or {above}"
    raise ValueError(f"number of frames must be {_rule(config, chunked)}, got {num_frames}; use {use}")


def _fits(num_frames: int, config: VaeConfig, chunked: bool) -> bool:
    ratio = config.temporal_ratio
    if num_frames < 1:
        return False
    if config.slice_compression_vae:
        return (num_frames - num_frames % 2) % ratio == 0
    rest = num_frames % config.mini_batch_encoder if chunked else num_frames
    return rest == 0 or (rest - 1) % ratio == 0


def _rule(config: VaeConfig, chunked: bool) -> str:
    ratio, size = config.temporal_ratio, config.mini_batch_encoder
    if config.slice_compression_vae:
        return f"a multiple of {ratio}, or one more"
    if not chunked:
        return f"one more than a multiple of {ratio}"
    rests = " or ".join(str(rest) for rest in range(1, size, ratio))
    return f"a multiple of {size}, or {rests} more"


def _check_layout(x: Tensor, name: str, time: str, channels: int) -> None:
    if x.ndim != 5:
        hint = "; add the time axis with unsqueeze(2)" if x.ndim == 4 else ""
        raise ValueError(
            f"`{name}` must be (batch, channels, {time}, height, width), got shape {tuple(x.shape)}{hint}"
        )
    if x.shape[1] != channels:
        raise ValueError(f"`{name}` must have {channels} channels on axis 1, got shape {tuple(x.shape)}")
