"""Writes a set of drawn clips and pictures to a folder.

    clips/000000.mp4 ...     h264, 4:4:4, visually lossless
    pictures/000000.png ...  when pictures are asked for
    continued/, bridged/     clips with given frames (given.py), when asked for
    ends/000000-first.png    first and last frame of each clip, when asked for; -last.png
    dataset.json             EasyAnimate's JSON: file_path (relative to the set), text, type, width, height
    truth.jsonl              one line per item: everything that was drawn, bit-exact

The folder appears whole or not at all: everything is written to a temporary sibling, which is renamed at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from ea_data.draw.caption import caption
from ea_data.draw.given import BRIDGE_FRAMES, Given, sample_given
from ea_data.draw.scene import sample_scene, split_combinations
from ea_data.draw.style import STYLES, render_style, style_caption
from ea_runtime.errors import writing
from ea_runtime.files.atomic import new_folder
from ea_runtime.video.x264 import x264_options

PICTURE_OFFSET = 1_000_000_000  # the index of a set's first picture
CONTINUED_OFFSET, BRIDGED_OFFSET = 2_000_000_000, 3_000_000_000
# Tagged in the file, so that no reader has to guess: SMPTE 170M (BT.601) matrix, limited range.
_COLORSPACE = 6
_COLOR_RANGE = 1


@dataclass(frozen=True)
class DrawConfig:
    """The set to draw. Item `index` of a set depends on seed, index, split and size only, never on the counts.

    Clips have the indices 0 .. num_clips - 1, pictures PICTURE_OFFSET and up. Raises ValueError for counts,
    sizes and names that cannot be drawn.
    """

    num_clips: int
    num_pictures: int = 0
    seed: int = 0
    split: str = "train"
    height: int = 64
    width: int = 64
    num_frames: int = 18
    fps: int = 12
    style: str = "filled"
    num_continued: int = 0
    num_bridged: int = 0
    has_ends: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """The number of items of each kind."""
        names = ("num_clips", "num_pictures", "num_continued", "num_bridged")
        return {name: getattr(self, name) for name in names}

    def __post_init__(self) -> None:
        counts = self.counts
        if min(counts.values()) < 0 or sum(counts.values()) < 1:
            raise ValueError(
                "`num_clips`, `num_pictures`, `num_continued` and `num_bridged` must be 0 or more and not all 0, "
                f"got {', '.join(map(str, counts.values()))}"
            )
        if max(counts.values()) > PICTURE_OFFSET:
            raise ValueError(f"`num_clips` and the other counts must be at most {PICTURE_OFFSET}")
        if self.has_ends and not self.num_clips:
            raise ValueError(
                "`first-last` writes the first and last frames of clips; ask for some with num_clips"
            )
        if self.seed < 0:
            raise ValueError(f"`seed` must be 0 or more, got {self.seed}")
        split_combinations(self.split)
        for name, value in (("height", self.height), ("width", self.width)):
            if value < 16 or value > 4096 or value % 2:
                raise ValueError(f"`{name}` must be an even number of pixels from 16 to 4096, got {value}")
        for name, value, most in (("num_frames", self.num_frames, 10_000), ("fps", self.fps, 240)):
            if not 1 <= value <= most:
                raise ValueError(f"`{name}` must be from 1 to {most}, got {value}")
        if self.style not in STYLES:
            raise ValueError(f"`style` must be one of {', '.join(STYLES)}, got {self.style!r}")


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Writes uint8 RGB frames (T, H, W, 3), H and W even, as an h264 mp4.

    Full-resolution chroma at CRF 4: decoded flat colours stay within 3 levels of what was drawn (4:2:0 smears
    the edges of small shapes: 37 dB against 54 over a 64x64 clip). One encoder thread, so that equal frames
    give equal files.
    """
    with av.open(str(path.absolute()), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.options = {**x264_options(4, "veryfast")}
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace, context.color_range = _COLORSPACE, _COLOR_RANGE
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            yuv = picture.reformat(format="yuv444p", dst_colorspace=_COLORSPACE, dst_color_range=_COLOR_RANGE)
            container.mux(stream.encode(yuv))
        container.mux(stream.encode())


def write_set(folder: str | Path, config: DrawConfig, on_item: Callable[[int], None] | None = None) -> None:
    """Draws a whole set into `folder`, which must be absent or empty; parents are made.

    `on_item(number)` is called after each item with the number written so far. Whatever fails, no partial
    files stay behind. Raises ValueError for a target that is in use or cannot be made.
    """
    target = Path(folder).resolve()
    with writing(target, "name another folder"), new_folder(target, "folder") as temporary:
        _write_items(temporary, config, on_item)


@dataclass(frozen=True)
class _Kind:
    """One kind of items: their folder, type, first index, frames each (None: as the set says), and given frames."""

    folder: str
    type: str
    offset: int
    num_frames: int | None = None
    given: Given | None = None


_KINDS = {
    "num_clips": _Kind("clips", "video", 0),
    "num_pictures": _Kind("pictures", "image", PICTURE_OFFSET, 1),
    "num_continued": _Kind("continued", "video", CONTINUED_OFFSET, None, "start"),
    "num_bridged": _Kind("bridged", "video", BRIDGED_OFFSET, BRIDGE_FRAMES, "ends"),
}


def _write_items(folder: Path, config: DrawConfig, on_item: Callable[[int], None] | None) -> None:
    items = [(kind, i) for name, kind in _KINDS.items() for i in range(config.counts[name])]
    entries: list[dict[str, Any]] = []
    with (folder / "truth.jsonl").open("w", encoding="utf-8") as truth:
        for number, (kind, position) in enumerate(items, start=1):
            entry, drawn = _write_item(folder, config, kind, position)
            entries.append(entry)
            truth.write(json.dumps(drawn) + "\n")
            if on_item is not None:
                on_item(number)
    (folder / "dataset.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def _write_item(
    folder: Path, config: DrawConfig, kind: _Kind, position: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draws one item; returns its row of dataset.json and its line of truth.jsonl."""
    is_picture, index = kind.type == "image", position + kind.offset
    num_frames = kind.num_frames or config.num_frames
    if kind.given is None:
        scene = sample_scene(config.seed, index, config.split)
    else:
        scene = sample_given(config.seed, index, config.split, kind.given, num_frames)
    text = style_caption(caption(scene, config.seed, index, is_picture=is_picture), config.style)
    frames = render_style(scene, config.style, config.height, config.width, num_frames)
    name = f"{kind.folder}/{position:06d}.{'png' if is_picture else 'mp4'}"
    (folder / name).parent.mkdir(exist_ok=True)
    if is_picture:
        Image.fromarray(frames[0]).save(folder / name)
    else:
        write_video(folder / name, frames, config.fps)
    if config.has_ends and kind.folder == "clips":
        (folder / "ends").mkdir(exist_ok=True)
        for end, frame in (("first", frames[0]), ("last", frames[-1])):
            Image.fromarray(frame).save(folder / f"ends/{position:06d}-{end}.png")
    size = {"width": config.width, "height": config.height}
    given = {} if kind.given is None else {"given": kind.given}
    entry = {"file_path": name, "text": text, "type": kind.type, **size, **given}
    line = {"file_path": name, "type": kind.type, "caption": text, "scene": asdict(scene)}
    line |= {"seed": config.seed, "index": index, "split": config.split, "style": config.style}
    line |= size | {"num_frames": num_frames, "fps": None if is_picture else config.fps} | given
    return entry, line
