"""Groups samples: EasyAnimate V2's 40 aspect ratios, and the number of frames that fits a video.

A bucket is (image or video, frames, height, width). Every sample has one, so none is left out; their batches and
order are those of ea_runtime.training.data.order.
"""

from __future__ import annotations

from functools import lru_cache

#: Side of the square for which the published table is written, in pixels.
TABLE_SIDE = 512
#: Height and width are multiples of it: the VAE's 8 times the denoiser's patch of 2.
MULTIPLE = 16
#: Short side -> its long sides, in portrait and landscape; all about 512 x 512 pixels in area.
_LONG_SIDES = {
    256: (1024, 992, 960, 928),
    288: (896, 864, 832),
    320: (800, 768),
    352: (736, 704),
    384: (672, 640),
    416: (608, 576),
    448: (576, 544),
    480: (544, 512),
}


def _table() -> dict[float, tuple[int, int]]:
    """height / width, to two digits as published -> (height, width) at 512. 40 of them."""
    sizes = [(512, 512), (352, 672)]  # the second has no portrait counterpart
    for short, longs in _LONG_SIDES.items():
        for long in longs:
            sizes += [(short, long), (long, short)]
    return {round(h / w, 2): (h, w) for h, w in sorted(set(sizes), key=lambda size: size[0] / size[1])}


ASPECT_RATIOS = _table()


def bucket_size(height: int, width: int, side: int, multiple: int = MULTIPLE) -> tuple[int, int]:
    """The (height, width) of the nearest of the 40 ratios, with about side x side pixels, multiples of `multiple`.

    side 0: the file's own size, rounded down. Never below `multiple`. As in V2, nearest by height / width and rounded
    down after scaling, so a small `side` leaves fewer sizes than 40.
    """
    if side:
        ratio = min(ASPECT_RATIOS, key=lambda ratio: abs(ratio - height / width))
        height, width = (int(pixels * side / TABLE_SIDE) for pixels in ASPECT_RATIOS[ratio])
    return max(multiple, height // multiple * multiple), max(multiple, width // multiple * multiple)


def window_starts(count: int, num_frames: int, stride: int, middle: float, multiple: int) -> range:
    """The frames at which a window may start in a video of `count` frames; empty if none fits.

    A window is `num_frames` frames, every `stride`-th; it starts at a multiple of `multiple` and is within the
    middle part (0 to 1) of the video. A single frame always fits.
    """
    margin = int(count * (1 - middle) / 2 + 1e-9)
    span = (num_frames - 1) * stride + 1
    first = -(-margin // multiple) * multiple
    starts = range(first, max(first, count - margin - span + 1), multiple)
    if not starts and num_frames == 1 and count:
        place = count // 2 // multiple * multiple
        return range(place, place + 1)
    return starts


@lru_cache(maxsize=4096)
def fit_frames(count: int, num_frames: int, chunk: int, stride: int, middle: float, multiple: int) -> int:
    """The most frames that a video of `count` frames gives: num_frames, else a multiple of `chunk`, else 1."""
    allowed = (num_frames, *range((num_frames - 1) // chunk * chunk, 0, -chunk))
    return next((n for n in allowed if window_starts(count, n, stride, middle, multiple)), 1)
