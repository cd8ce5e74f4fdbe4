"""Frames as they are shown: upright, with square pixels, without interlacing, in BT.709; without bars on request."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from ea_data.media.bars import NO_BARS, Bars
from ea_data.media.containers import BadFile
from ea_data.media.planes import luma
from ea_data.media.target import Target

#: FFmpeg's numbers of the transfers of high dynamic range.
TRANSFERS = {16: "pq", 18: "hlg"}
#: FFmpeg filters by the degrees that the file says to turn its frames counter-clockwise.
_TURNS = {90: ("transpose", "cclock"), 270: ("transpose", "clock")}
_TO_BT709 = "out_transfer=bt709:out_primaries=bt709:out_color_matrix=bt709:out_range=tv"
#: Pixels this much wider than high, or higher than wide, are a broken header.
_MOST_ASPECT = 4
#: Shares of combed pixels from which on a frame counts as combed, and how many times those of columns.
_COMBED, _MORE_THAN_COLUMNS = 0.01, 4


@dataclass(frozen=True, slots=True)
class Look:
    """sample_aspect: width of a pixel over its height. transfer: "pq", "hlg" or "". rotation: degrees
    counter-clockwise. crop: what is cut off, in square pixels, before the rotation."""

    sample_aspect: Fraction = Fraction(1)
    is_interlaced: bool = False
    transfer: str = ""
    rotation: int = 0
    crop: Bars = NO_BARS

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Look:
        """That of a clip's record."""
        aspect = Fraction(record["sample_aspect"])
        rotation = record["rotation"]
        crop = Bars(*record["bars"]).turned(-rotation).for_cropping() if record["is_cropped"] else NO_BARS
        return cls(aspect, record["is_interlaced"], record["transfer"], rotation, crop)

    @property
    def is_plain(self) -> bool:
        """True if frames are shown as they are coded, but for a rotation."""
        return self.sample_aspect == 1 and not self.is_interlaced and not self.transfer and not self.crop

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The size of a frame as it is shown, before its rotation."""
        width, height = self._square_size(width, height)
        return width - self.crop.left - self.crop.right, height - self.crop.top - self.crop.bottom

    def _square_size(self, width: int, height: int) -> tuple[int, int]:
        """That of a frame with square pixels; the height stays."""
        return width if self.sample_aspect == 1 else 2 * round(width * self.sample_aspect / 2), height

    def show(
        self,
        frames: Iterable[Any],
        *,
        is_turned: bool = True,
        is_even: bool = False,
        target: Target | None = None,
    ) -> Iterator[Any]:
        """As many frames, shown. is_turned: apply the rotation. is_even: without the last column or row of an odd side,
        which 4:2:0 cannot have. target: the size to scale and crop them to. Raises BadFile if this build of FFmpeg
        cannot.
        """
        from av import FFmpegError

        graph: Any = None
        for frame in frames:
            if graph is None:
                fit = self._fit(frame, is_turned, target)
                is_odd = (
                    is_even and not fit and any(side % 2 for side in self.size(frame.width, frame.height))
                )
                if self.is_plain and not (is_turned and self.rotation) and not is_odd and not fit:
                    yield frame
                    continue
                try:
                    graph = self._graph(frame, is_turned, is_odd, fit)
                except (FFmpegError, ValueError) as error:
                    raise BadFile(f"its frames cannot be shown with this build of FFmpeg: {error}") from error
            graph.push(frame)
            yield from _ready(graph)
        if graph is not None:
            graph.push(None)
            yield from _ready(graph)

    def show_numbered(self, frames: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """The same for numbered frames, without the rotation."""
        numbers: deque[int] = deque()

        def given() -> Iterator[Any]:
            for number, frame in frames:
                numbers.append(number)
                yield frame

        for frame in self.show(given(), is_turned=False):
            yield numbers.popleft(), frame

    def _fit(self, frame: Any, is_turned: bool, target: Target | None) -> list[tuple[str, str]]:
        """The filters that bring a shown frame to the target's size: it covers it and is cropped around the centre."""
        if target is None:
            return []
        width, height = self.size(frame.width, frame.height)
        if is_turned and self.rotation % 180:
            width, height = height, width
        wanted = target.size(width, height)
        if wanted == (width, height):
            return []
        scale = max(Fraction(wanted[0], width), Fraction(wanted[1], height))
        scaled = max(wanted[0], round(width * scale)), max(wanted[1], round(height * scale))
        filters = [("scale", f"{scaled[0]}:{scaled[1]}:flags=bicubic+accurate_rnd"), ("setsar", "1")]
        return filters if scaled == wanted else [*filters, ("crop", f"{wanted[0]}:{wanted[1]}")]

    def _graph(self, frame: Any, is_turned: bool, is_odd: bool, fit: list[tuple[str, str]]) -> Any:
        from av.filter import Graph

        graph = Graph()
        width, height = self._square_size(frame.width, frame.height)
        size = {"width": frame.width, "height": frame.height}
        nodes = [graph.add_buffer(**size, format=frame.format.name, time_base=frame.time_base)]
        if self.is_interlaced:
            nodes.append(graph.add("bwdif", "mode=send_frame:parity=auto:deint=all"))
        if self.sample_aspect != 1 or self.transfer:
            colours = f":{_TO_BT709}" if self.transfer else ""
            nodes.append(graph.add("scale", f"{width}:{height}:flags=bicubic{colours}"))
            nodes.append(graph.add("setsar", "1"))
        if self.transfer:
            nodes.append(graph.add("format", "yuv420p"))
        if self.crop:
            width, height = self.size(frame.width, frame.height)
            nodes.append(graph.add("crop", f"{width}:{height}:{self.crop.left}:{self.crop.top}"))
        if is_turned and self.rotation == 180:
            nodes += [graph.add("hflip"), graph.add("vflip")]
        elif is_turned and self.rotation:
            nodes.append(graph.add(*_TURNS[self.rotation]))
        if is_odd:
            nodes.append(graph.add("crop", "trunc(iw/2)*2:trunc(ih/2)*2:0:0"))
        nodes += [graph.add(*one) for one in fit]
        nodes.append(graph.add("buffersink"))
        for one, other in pairwise(nodes):
            one.link_to(other)
        graph.configure()
        return graph


def _ready(graph: Any) -> Iterator[Any]:
    """The frames that a graph has by now."""
    from av import BlockingIOError, EOFError

    try:
        while True:
            yield graph.pull()
    except (BlockingIOError, EOFError):
        return


def pixel_aspect(stream: Any) -> Fraction:
    """Width over height of a video's pixels; 1 if the file does not say. Raises BadFile for what cannot be."""
    stated = stream.sample_aspect_ratio
    aspect = Fraction(stated) if stated else Fraction(1)
    if not 1 / _MOST_ASPECT <= aspect <= _MOST_ASPECT:
        raise BadFile(f"its pixels are {aspect} times as wide as high; at most {_MOST_ASPECT} is read")
    return Fraction(1) if abs(aspect - 1) < 0.005 else aspect


def combing(frame: Any) -> float:
    """The share of pixels that differ from both the rows above and below, which agree: 0 to 1.

    0 unless it is far higher than for columns: grain and textures are alike in both directions.
    """
    rows, bits = luma(frame)
    across, down = (_zigzag(part, bits) for part in (rows[::4].T, rows[:, ::4]))
    return down if down >= _COMBED and down > _MORE_THAN_COLUMNS * across else 0.0


def _zigzag(lines: np.ndarray, bits: int) -> float:
    if len(lines) < 3:
        return 0.0
    lines = lines.astype(np.int32) >> max(0, bits - 8)
    above, below = lines[1:-1] - lines[:-2], lines[1:-1] - lines[2:]
    sharp = np.minimum(np.abs(above), np.abs(below)) > 12
    return float((sharp & ((above > 0) == (below > 0)) & (np.abs(above - below) < 10)).mean())
