"""Frames out of files: videos, gifs, pictures and folders of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ea_runtime.errors import UserError
from ea_runtime.video.pictures import PICTURE_SUFFIXES, open_picture, rgb_frames
from ea_runtime.video.streams import FrameDecoder, best_video

if TYPE_CHECKING:
    import numpy as np

#: Of the pictures in a folder that are its frames.
_STILLS = PICTURE_SUFFIXES - {".gif"}
#: FFmpeg's demuxers for files that hold their pictures themselves; others follow lists to further files.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,gif,ivf,nut,h264,hevc,mxf,mpegvideo"
)


def read_frames(path: str | os.PathLike[str]) -> Iterator[np.ndarray]:
    """The frames of a video, gif, picture or folder of pictures (in order of name): (H, W, 3) uint8, upright,
    one by one.

    Raises UserError if there is nothing to read or it is damaged.
    """
    place = Path(path)
    if place.is_dir():
        names = sorted(entry for entry in place.iterdir() if entry.suffix.lower() in _STILLS)
        if not names:
            raise UserError(f"folder {str(place)!r} holds no pictures ({', '.join(sorted(_STILLS))})")
        return (frame for name in names for frame in _read_picture(name))
    if not place.is_file():
        raise UserError(f"there is no file {str(place)!r}")
    if place.suffix.lower() in PICTURE_SUFFIXES:
        return _read_picture(place)
    return _read_av(place)


def _read_picture(path: Path) -> Iterator[np.ndarray]:
    import numpy as np
    from PIL import Image

    try:
        with open_picture(path) as picture:
            yield from map(np.asarray, rgb_frames(picture))
    # Pillow's decoders raise what they like on damaged files
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, Image.DecompressionBombError) as error:
        raise UserError(f"{str(path)!r} cannot be read as a picture: {error}") from error


def _read_av(path: Path) -> Iterator[np.ndarray]:
    import av
    import numpy as np
    from av.video.reformatter import VideoReformatter

    try:
        # an open file, not its name: FFmpeg takes some names for protocols, and some contents for lists of names
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
        with path.open("rb") as file, av.open(file, "r", options=options) as container:
            stream = best_video(container)
            if stream is None:
                raise UserError(f"{str(path)!r} holds no video")
            decode = FrameDecoder(stream)
            reformatter = VideoReformatter()  # kept: a new one for each frame takes five times as long
            for frame in (frame for packet in container.demux(stream) for frame in decode(packet)):
                turns = round(getattr(frame, "rotation", 0) / 90)  # counter-clockwise, as phones record it
                pixels = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                yield np.ascontiguousarray(np.rot90(pixels, turns)) if turns % 4 else pixels
    except (av.FFmpegError, OSError, ValueError) as error:  # OSError: PyAV cannot seek in an empty file
        if isinstance(error, UserError):
            raise
        raise UserError(f"{str(path)!r} cannot be read as a video: {error}") from error
