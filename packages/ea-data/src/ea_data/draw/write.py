"""Writes a set of drawn clips and pictures to a folder.

    clips/000000.mp4 ...     h264, 4:4:4, visually lossless
    pictures/000000.png ...  when pictures are asked for
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
from ea_data.draw.scene import sample_scene, split_combinations
from ea_data.draw.style import STYLES, render_style, style_caption
from ea_runtime.errors import writing
from ea_runtime.files.atomic import new_folder
from ea_runtime.video.x264 import x264_options

PICTURE_OFFSET = 1_000_000_000  # the index of a set's first picture
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

    def __post_init__(self) -> None:
        if self.num_clips < 0 or self.num_pictures < 0 or self.num_clips + self.num_pictures < 1:
            raise ValueError(
                "`num_clips` and `num_pictures` must be 0 or more and not both 0, "
                f"got {self.num_clips} and {self.num_pictures}"
            )
        if max(self.num_clips, self.num_pictures) > PICTURE_OFFSET:
            raise ValueError(f"`num_clips` and `num_pictures` must be at most {PICTURE_OFFSET}")
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


def _write_items(folder: Path, config: DrawConfig, on_item: Callable[[int], None] | None) -> None:
    counts = {"video": config.num_clips, "image": config.num_pictures}
    items = [(kind, i) for kind, count in counts.items() for i in range(count)]
    entries: list[dict[str, Any]] = []
    with (folder / "truth.jsonl").open("w", encoding="utf-8") as truth:
        for number, (kind, position) in enumerate(items, start=1):
            is_picture = kind == "image"
            index = position + (PICTURE_OFFSET if is_picture else 0)
            scene = sample_scene(config.seed, index, config.split)
            text = style_caption(caption(scene, config.seed, index, is_picture=is_picture), config.style)
            num_frames = 1 if is_picture else config.num_frames
            frames = render_style(scene, config.style, config.height, config.width, num_frames)
            name = f"pictures/{position:06d}.png" if is_picture else f"clips/{position:06d}.mp4"
            (folder / name).parent.mkdir(exist_ok=True)
            if is_picture:
                Image.fromarray(frames[0]).save(folder / name)
            else:
                write_video(folder / name, frames, config.fps)
            size = {"width": config.width, "height": config.height}
            entries.append({"file_path": name, "text": text, "type": kind, **size})
            drawn = {"seed": config.seed, "index": index, "split": config.split, "style": config.style}
            rate = {"num_frames": num_frames, "fps": None if is_picture else config.fps}
            line = {"file_path": name, "type": kind, "caption": text, "scene": asdict(scene)}
            line |= drawn | size | rate
            truth.write(json.dumps(line) + "\n")
            if on_item is not None:
                on_item(number)
    (folder / "dataset.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
