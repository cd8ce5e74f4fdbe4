"""Raw video with known truth, to try the data pipeline on: scenes with known cuts, pans of known speed, text of known
area, blur, darkness, grain, duplicates, clips that stand still.

A scene is a textured picture, larger than the frame, over which the frame moves at a constant speed. Video `index` of
a set depends on seed, index and size only, never on how many there are. Speeds are in frame diagonals per second.

Shape legend: T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

_KINDS = "scenes copy still text caption fast blur dark grain short long"
#: Kinds of video. Video `index` has kind KINDS[index % len(KINDS)]; "copy" follows the "scenes" that it copies.
KINDS: tuple[str, ...] = tuple(_KINDS.split())
#: kind -> the filter that drops its clips; the other kinds are kept
DROPPED_BY: dict[str, str] = {
    "copy": "duplicate",
    "still": "motion",
    "fast": "motion",
    "text": "text-area",
    "caption": "text-area",
    "blur": "technical",
    "dark": "technical",
    "grain": "technical",
}
SLOW = (0.02, 0.06)  # diagonals per second: a calm pan
FAST = (0.5, 0.6)
COPY_SCALE = 2 / 3  # a copy is smaller than its original, so the larger one is kept
BLUR_RADIUS = 6.0  # pixels of a 480-wide frame
DARKNESS = 0.08  # factor of a dark scene's light
GRAIN = 18.0  # standard deviation in levels of 255
TEXT_AREAS = {"text": (0.025, 0.06), "caption": (0.003, 0.0045)}  # of the frame, box around the ink
WORDS = ("SALE TODAY", "BREAKING NEWS", "SUBSCRIBE NOW", "EPISODE SEVEN", "MADE BY EA")
SHORT_WORDS = ("EA NOW", "LIVE", "TV TWO", "NEWS", "IN HD")
HUES = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
WAYS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}


@dataclass(frozen=True)
class RawScene:
    """One scene. speed: of the frame over the picture, in diagonals per second. way: where the picture seems to go.

    text: letters that stand still in the frame; text_area: the box around their ink, over the frame's area.
    """

    seed: tuple[int, ...]
    num_frames: int
    speed: float
    way: str
    hue: int
    kind: str
    text: str = ""
    text_area: float = 0.0

    def caption(self) -> str:
        """Its contents in words."""
        moving = f"moves {'fast ' if self.speed > 0.3 else ''}{self.way}" if self.speed else "stands still"
        return f"a pattern of {HUES[self.hue]} shapes {moving}"


@dataclass(frozen=True)
class RawVideo:
    """One file: its scenes one after another. copy_of: the index of the video that it shows at a smaller size.

    drawn: height and width at which it is drawn, before it is scaled down.
    """

    index: int
    kind: str
    height: int
    width: int
    fps: int
    scenes: tuple[RawScene, ...]
    drawn: tuple[int, int]
    copy_of: int | None = None

    @property
    def num_frames(self) -> int:
        return sum(scene.num_frames for scene in self.scenes)

    def cuts(self) -> list[int]:
        """Numbers of the frames at which a new scene begins, without the first."""
        return [int(end) for end in np.cumsum([scene.num_frames for scene in self.scenes])[:-1]]

    def truth(self, file_path: str) -> dict[str, Any]:
        """A line of truth.jsonl."""
        starts = [0, *self.cuts()]
        scenes = [
            {
                "start_frame": start,
                "end_frame": start + scene.num_frames,
                "speed": scene.speed,
                "way": scene.way if scene.speed else "still",
                "text": scene.text,
                "text_area": scene.text_area,
                "caption": scene.caption(),
                "dropped_by": "split" if scene.num_frames < 3 * self.fps else DROPPED_BY.get(self.kind, ""),
            }
            for start, scene in zip(starts, self.scenes, strict=True)
        ]
        names = ("kind", "index", "copy_of", "width", "height", "fps", "num_frames")
        return {
            "file_path": file_path,
            "type": "video",
            **{name: getattr(self, name) for name in names},
            "caption": self.scenes[0].caption(),
            "scenes": scenes,
        }


def sample_video(seed: int, index: int, height: int = 270, width: int = 480, fps: int = 24) -> RawVideo:
    """Video `index` of the set of `seed`. Raises ValueError for sizes that are odd or too small for the text."""
    if min(height, width) < 128 or height % 2 or width % 2 or max(height, width) > 4096:
        raise ValueError(
            f"`height` and `width` must be even and 128 to 4096 pixels, got {height} and {width}"
        )
    if not 8 <= fps <= 120:
        raise ValueError(f"`fps` must be from 8 to 120 frames a second, got {fps}")
    if seed < 0 or index < 0:
        raise ValueError(f"`seed` and `index` must be 0 or more, got {seed} and {index}")
    kind = KINDS[index % len(KINDS)]
    if kind == "copy":
        source = sample_video(seed, index - 1, height, width, fps)
        small = [max(64, 2 * round(side * COPY_SCALE / 2)) for side in (height, width)]
        return replace(source, index=index, kind=kind, height=small[0], width=small[1], copy_of=source.index)
    rng = np.random.default_rng([seed, index])
    seconds = {
        "scenes": rng.uniform(3.4, 5.0, 3),
        "short": np.array([4.0, 2.0, 4.5]),
        "long": np.array([13.5]),
    }
    lengths = seconds.get(kind, rng.uniform(3.4, 4.4, 1))
    first_hue = int(rng.integers(len(HUES)))
    scenes = []
    for number, length in enumerate(lengths):
        low, high = FAST if kind == "fast" else SLOW
        text = ""
        if kind in TEXT_AREAS:
            text = str(rng.choice(WORDS if kind == "text" else SHORT_WORDS))
        scene = RawScene(
            seed=(seed, index, number),
            num_frames=round(float(length) * fps),
            speed=0.0 if kind == "still" else round(float(rng.uniform(low, high)), 4),
            way=str(rng.choice(list(WAYS))),
            hue=(first_hue + 3 * number) % len(HUES),  # neighbouring scenes differ enough for a cut
            kind=kind,
            text=text,
        )
        if text:
            area = float(_letters(scene, height, width)[1])
            scene = replace(scene, text_area=round(area, 6))
        scenes.append(scene)
    return RawVideo(index, kind, height, width, fps, tuple(scenes), (height, width))


def render_video(video: RawVideo) -> Iterator[np.ndarray]:
    """Its frames, one by one: (H, W, 3) uint8."""
    for scene in video.scenes:
        for frame in render_scene(scene, *video.drawn, video.fps):
            is_smaller, size = video.drawn != (video.height, video.width), (video.width, video.height)
            yield np.asarray(Image.fromarray(frame).resize(size)) if is_smaller else frame


def render_scene(scene: RawScene, height: int, width: int, fps: int) -> Iterator[np.ndarray]:
    """The frames of one scene: (H, W, 3) uint8."""
    step = scene.speed * math.hypot(height, width) / fps  # pixels a frame
    across, down = WAYS[scene.way]
    travel = math.ceil(step * max(0, scene.num_frames - 1)) + 2
    picture = draw_picture(scene, height + abs(down) * travel, width + abs(across) * travel, width)
    letters = _letters(scene, height, width)[0] if scene.text else None
    for number in range(scene.num_frames):
        # The frame moves opposite to the apparent motion of the picture.
        offset = number * step
        x = (travel - 1 - offset if across > 0 else offset) if across else 0.0
        y = (travel - 1 - offset if down > 0 else offset) if down else 0.0
        frame = _crop(picture, y, x, height, width)
        yield frame if letters is None else np.where(letters, np.uint8(250), frame)


def _crop(picture: np.ndarray, y: float, x: float, height: int, width: int) -> np.ndarray:
    """A window at a place between pixels: linear interpolation, axis by axis."""
    top, left = int(y), int(x)
    part = picture[top : top + height + 1, left : left + width + 1].astype(np.float32)
    if y != top:
        part = part[:-1] + np.float32(y - top) * (part[1:] - part[:-1])
    if x != left:
        part = part[:, :-1] + np.float32(x - left) * (part[:, 1:] - part[:, :-1])
    return np.rint(part[:height, :width]).astype(np.uint8)


def draw_picture(scene: RawScene, height: int, width: int, frame_width: int) -> np.ndarray:
    """The picture of a scene: smooth colour clouds with shapes on them, (H, W, 3) uint8.

    frame_width: the unit of sizes. A fast scene has larger and fainter shapes, or every frame would look like a new
    scene.
    """
    rng = np.random.default_rng([*scene.seed, 1])
    is_fast = scene.kind == "fast"
    unit = frame_width / 480
    low, high = _colours(scene.hue, rng, 0.35 if is_fast else 0.6)
    grain = (400 if is_fast else 90) * unit
    cloud = _noise(rng, height, width, grain)[..., None]
    pixels = low + (high - low) * cloud
    image = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    spacing = 160 if is_fast else 60
    for _ in range(max(12, int(height * width / (spacing * unit) ** 2))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        radius = rng.uniform(8, 26) * unit
        share = rng.uniform(0, 1)
        colour = low + (high - low) * share + rng.uniform(-30, 30, 3) * (0.5 if is_fast else 1)
        box = [x - radius, y - radius * rng.uniform(0.5, 1), x + radius, y + radius * rng.uniform(0.5, 1)]
        fill = tuple(int(value) for value in np.clip(colour, 0, 255))
        (pen.ellipse if rng.uniform() < 0.5 else pen.rectangle)(box, fill=fill)
    if scene.kind == "blur":
        image = image.filter(ImageFilter.GaussianBlur(BLUR_RADIUS * unit))
    pixels = np.asarray(image, np.float32)
    if scene.kind == "dark":
        pixels = pixels * np.float32(DARKNESS)
    if scene.kind == "grain":
        pixels = pixels + rng.normal(0, GRAIN, (height, width, 1)).astype(np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _colours(hue: int, rng: np.random.Generator, contrast: float) -> tuple[np.ndarray, np.ndarray]:
    """A darker and a lighter colour of one hue: float (3,) in 0..255."""
    import colorsys

    angle = hue / len(HUES) + rng.uniform(-0.02, 0.02)
    dark = colorsys.hsv_to_rgb(angle % 1, 0.75, 0.6 - contrast / 2)
    light = colorsys.hsv_to_rgb((angle + 0.06) % 1, 0.6, 0.6 + contrast / 2)
    return np.asarray(dark) * 255, np.asarray(light) * 255


def _noise(rng: np.random.Generator, height: int, width: int, size: float) -> np.ndarray:
    """Smooth noise in 0..1 with features of `size` pixels, finer ones fainter: (H, W) float32."""
    total = np.zeros((height, width), np.float32)
    for octave in range(3):
        cell = size / 2**octave
        shape = (max(2, math.ceil(height / cell) + 1), max(2, math.ceil(width / cell) + 1))
        grid = Image.fromarray(rng.uniform(0, 1, shape).astype(np.float32))
        smooth = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        total += smooth * np.float32(0.5**octave)
    total -= total.min()
    return total / total.max()


def _letters(scene: RawScene, height: int, width: int) -> tuple[np.ndarray, float]:
    """The ink of a scene's text as a mask (H, W, 1) bool, and the area of its box over the frame's."""
    rng = np.random.default_rng([*scene.seed, 2])
    low, high = TEXT_AREAS[scene.kind]
    wanted = rng.uniform(low, high) * height * width

    def box(size: int) -> tuple[int, int, int, int]:
        left, top, right, bottom = ImageFont.load_default(size).getbbox(scene.text)
        return int(left), int(top), math.ceil(right), math.ceil(bottom)

    def off(size: int) -> float:
        left, top, right, bottom = box(size)
        return abs((right - left) * (bottom - top) - wanted)

    size = min(range(8, 120), key=off)
    left, top, right, bottom = box(size)
    x = int(rng.integers(8, max(9, width - (right - left) - 8)))
    y = int(height * 0.8) - (bottom - top) // 2
    canvas = Image.new("L", (width, height))
    ImageDraw.Draw(canvas).text((x - left, y - top), scene.text, fill=255, font=ImageFont.load_default(size))
    ink = np.asarray(canvas) > 127
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) / (height * width)
    return ink[..., None], float(area)
