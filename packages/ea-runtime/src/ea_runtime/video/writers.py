"""One writer for each kind of file; each takes frames one by one and keeps as few as it can.

Frames are (H, W, 3) uint8. A writer writes to the path that it is given and leaves tidying up to output.py.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from ea_runtime.errors import UserError
from ea_runtime.video import embed
from ea_runtime.video.limits import check_limits
from ea_runtime.video.marks import DIGITAL_SOURCE_TYPE, Marks
from ea_runtime.video.sheets import SHEET_FRAMES, frame_grid, spaced
from ea_runtime.video.x264 import THREADS, x264_options

logger = logging.getLogger("ea")


class FrameWriter(ABC):
    """add() each frame in order, then finish(), or abort() at any time. The first frame sets the size.

    marks: what the file says of its making; None: nothing.
    """

    #: as in output's KINDS
    kind: ClassVar[str]

    def __init__(self, path: Path, fps: Fraction, num_frames: int | None, marks: Marks | None = None) -> None:
        self.path = path
        self.fps = fps
        self.num_frames = num_frames
        self.marks = marks
        self.count = 0
        self.size: tuple[int, int] | None = None

    def add(self, frame: np.ndarray) -> None:
        """Write one (H, W, 3) uint8 frame. Raises UserError for another shape or type, and for another size."""
        self._add(np.ascontiguousarray(self._checked(frame)))
        self.count += 1

    def _checked(self, frame: Any) -> np.ndarray:
        try:
            frame = np.asarray(frame)
        except ValueError:  # rows of several lengths
            frame = np.asarray(None)
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
            hint = "move the colours to the last axis" if frame.ndim == 3 and frame.shape[0] == 3 else ""
            hint = (
                "scale to 0..255 and round" if frame.dtype.kind == "f" else hint or "give RGB pixels as uint8"
            )
            raise UserError(
                f"`frames` must be arrays (height, width, 3) of uint8, got shape {frame.shape} of {frame.dtype} "
                f"for frame {self.count}; {hint}"
            )
        if self.size is None:
            check_limits(self.kind, frame.shape[1], frame.shape[0], self.fps)
        height, width = self.size = self.size or (frame.shape[0], frame.shape[1])
        own_height, own_width = frame.shape[:2]
        if (own_height, own_width) != (height, width):
            raise UserError(
                f"`frames` must be of one size, {width}x{height} as frame 0, got {own_width}x{own_height} for "
                f"frame {self.count}; resize it"
            )
        return frame

    @abstractmethod
    def _add(self, frame: np.ndarray) -> None: ...

    def finish(self) -> None:  # noqa: B027 - a folder needs nothing
        """Complete the file."""

    def abort(self) -> None:  # noqa: B027
        """Close what is open; the file is not usable."""


class VideoWriter(FrameWriter):
    """A video stream in a container, without dates or versions: the same frames give the same bytes."""

    codec = "libx264"
    pixels = "yuv420p"
    container_options: ClassVar[dict[str, str]] = {}

    @abstractmethod
    def options(self) -> dict[str, str]:
        """The encoder's options."""

    def tags(self) -> dict[str, str]:
        """The container's tags."""
        return {} if self.marks is None else self.marks.tags

    def __init__(self, path: Path, fps: Fraction, num_frames: int | None, marks: Marks | None = None) -> None:
        super().__init__(path, fps, num_frames, marks)
        self.container: Any = None
        self.stream: Any = None

    def _add(self, frame: np.ndarray) -> None:
        import av

        if self.container is None:
            self._open(*frame.shape[:2])
        assert self.container is not None
        picture = self._picture(av.VideoFrame.from_ndarray(frame, format="rgb24"))
        self.container.mux(self.stream.encode(picture))

    def _picture(self, frame: Any) -> Any:
        return frame.reformat(format=self.pixels)

    def _open(self, height: int, width: int) -> None:
        import av

        options = {"fflags": "+bitexact", **self.container_options}
        tags = self.tags()
        if tags and "movflags" in options:
            options["movflags"] += "+use_metadata_tags"  # FFmpeg drops keys that it does not know otherwise
        # an absolute path: FFmpeg takes what is before a colon for a protocol
        path = os.path.abspath(self.path)
        self.container = av.open(path, "w", format=self.kind, container_options=options)
        self.container.metadata.update(tags)
        self.stream = self.container.add_stream(self.codec, rate=self.fps)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, self.pixels
        self.stream.options = self.options()
        self.stream.codec_context.thread_count = THREADS

    def finish(self) -> None:
        self.container.mux(self.stream.encode(None))
        self.container.close()

    def abort(self) -> None:
        if self.container is not None:
            self.container.close()


class Mp4Writer(VideoWriter):
    """H.264 in MP4, 4:2:0, BT.709.

    4:2:0 needs even sides: the last column or row of an odd one is left out, nothing is padded.
    """

    kind = "mp4"
    container_options: ClassVar[dict[str, str]] = {"movflags": "+faststart"}
    crf = 18

    def options(self) -> dict[str, str]:
        """The encoder's options."""
        return x264_options(self.crf)

    def finish(self) -> None:
        super().finish()
        if self.marks is not None:
            embed.append_xmp_box(self.path, self.marks)

    def _add(self, frame: np.ndarray) -> None:
        height, width = frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2
        if not height or not width:
            raise UserError(
                f"`frames` must be at least 2x2 pixels for {self.kind}, "
                f"got {frame.shape[1]}x{frame.shape[0]}; write .gif or .png"
            )
        if not self.count and (height, width) != frame.shape[:2]:
            logger.warning(
                "%s needs even sides: the last row or column is left out (%dx%d)",
                *(self.kind, width, height),
            )
        # without a contiguous copy PyAV reads the uncropped rows
        super()._add(np.ascontiguousarray(frame[:height, :width]))

    def _picture(self, frame: Any) -> Any:
        return frame.reformat(format=self.pixels, dst_colorspace="ITU709", dst_color_range="MPEG")

    def _open(self, height: int, width: int) -> None:
        super()._open(height, width)
        codec = self.stream.codec_context
        bt709, limited = 1, 1  # players guess from the size otherwise
        codec.colorspace = codec.color_primaries = codec.color_trc = bt709
        codec.color_range = limited


class MovWriter(Mp4Writer):
    """The same stream in QuickTime's container, as editors import it."""

    kind = "mov"


class WebmWriter(Mp4Writer):
    """VP9 in WebM, 4:2:0, BT.709. WebM has no place for XMP: the digital source type is a tag."""

    kind = "webm"
    codec = "libvpx-vp9"
    container_options: ClassVar[dict[str, str]] = {}
    crf = 20

    def options(self) -> dict[str, str]:
        """The encoder's options; b=0 makes crf alone set the quality."""
        return {"crf": str(self.crf), "b": "0", "deadline": "good", "cpu-used": "2", "row-mt": "0"}

    def tags(self) -> dict[str, str]:
        """The container's tags, with what XMP says elsewhere."""
        return super().tags() | ({} if self.marks is None else {"DIGITAL_SOURCE_TYPE": DIGITAL_SOURCE_TYPE})

    def finish(self) -> None:
        VideoWriter.finish(self)


class WebpWriter(VideoWriter):
    """Animated WebP that repeats forever; one frame is a picture without loss."""

    kind = "webp"
    codec = "libwebp_anim"
    pixels = "bgra"  # libwebp converts colours itself
    container_options: ClassVar[dict[str, str]] = {"loop": "0"}

    def __init__(self, path: Path, fps: Fraction, num_frames: int | None, marks: Marks | None = None) -> None:
        super().__init__(path, fps, num_frames, marks)
        self.first: np.ndarray | None = None

    def options(self) -> dict[str, str]:
        """The encoder's options: lossy, of high quality."""
        return {"lossless": "0", "quality": "90"}

    def _add(self, frame: np.ndarray) -> None:
        if not self.count:
            self.first = frame.copy()
            return
        if self.first is not None:
            super()._add(self.first)
            self.first = None
        super()._add(frame)

    def finish(self) -> None:
        from PIL import Image

        if self.first is not None:
            packet = {} if self.marks is None else {"xmp": self.marks.xmp()}
            Image.fromarray(self.first).save(self.path, "WEBP", lossless=True, **packet)
            return
        super().finish()
        if self.marks is not None:
            embed.append_webp_xmp(self.path, self.marks)


class GifWriter(FrameWriter):
    """Animated GIF that repeats forever; each frame has its own 256 colours, so nothing must be known in advance.

    Times are in 1/100 s: the delays alternate so that the whole keeps its length. Under 2/100 s (over 50
    frames per second) viewers slow a GIF down; it is written at 50 then.
    Pillow's `save_all` would hold all frames in memory until the last, and merge equal ones.
    """

    kind = "gif"

    def __init__(self, path: Path, fps: Fraction, num_frames: int | None, marks: Marks | None = None) -> None:
        super().__init__(path, fps, num_frames, marks)
        self.file: IO[bytes] | None = None
        if fps > 50:
            logger.warning("gif cannot be faster than 50 frames a second; %s is written as 50", float(fps))
            self.fps = Fraction(50)

    def _add(self, frame: np.ndarray) -> None:
        from PIL import GifImagePlugin, Image

        if self.file is None:
            self.file = self.path.open("wb")
            height, width = frame.shape[:2]
            self.file.write(
                b"GIF89a" + width.to_bytes(2, "little") + height.to_bytes(2, "little") + b"\0\0\0"
            )
            self.file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0")
            if self.marks is not None:
                self.file.write(embed.gif_blocks(self.marks))
        picture = Image.fromarray(frame).quantize(256, Image.Quantize.MEDIANCUT, kmeans=1)
        delay = round((self.count + 1) * 100 / self.fps) - round(self.count * 100 / self.fps)
        for data in GifImagePlugin.getdata(picture, duration=delay * 10, include_color_table=True):
            self.file.write(data)

    def finish(self) -> None:
        assert self.file is not None, "no frame was added"
        self.file.write(b";")
        self.file.close()

    def abort(self) -> None:
        if self.file is not None:
            self.file.close()


class PictureWriter(FrameWriter):
    """Files in PNG."""

    def chunks(self) -> dict[str, Any]:
        """Pillow's argument for the marks."""
        return {} if self.marks is None else {"pnginfo": embed.png_chunks(self.marks)}


class PngWriter(PictureWriter):
    """One frame: a picture. More: a contact sheet of up to 16 of them, from the first to the last."""

    kind = "png"

    def __init__(self, path: Path, fps: Fraction, num_frames: int | None, marks: Marks | None = None) -> None:
        super().__init__(path, fps, num_frames, marks)
        self.kept: list[np.ndarray] = []

    def _add(self, frame: np.ndarray) -> None:
        if self.num_frames is None or self.count in spaced(self.num_frames, SHEET_FRAMES):
            self.kept.append(frame.copy())

    def finish(self) -> None:
        from PIL import Image

        kept = [
            self.kept[i] for i in spaced(len(self.kept), SHEET_FRAMES)
        ]  # more if their number was not known
        Image.fromarray(frame_grid(kept)).save(self.path, "PNG", **self.chunks())


class FolderWriter(PictureWriter):
    """A folder of pictures: 00000.png, 00001.png and so on."""

    kind = "folder"

    def __init__(self, path: Path, fps: Fraction, num_frames: int | None, marks: Marks | None = None) -> None:
        super().__init__(path, fps, num_frames, marks)
        path.mkdir()

    def _add(self, frame: np.ndarray) -> None:
        from PIL import Image

        place = self.path / f"{self.count:05d}.png"
        Image.fromarray(frame).save(place, "PNG", compress_level=3, **self.chunks())
