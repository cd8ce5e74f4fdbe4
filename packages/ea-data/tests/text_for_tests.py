"""Drawn clips with and without letters, for the text scorer: overlays of known script, size and duration over moving
backgrounds, and textures on which text detectors see text.

Fonts are those of packages: DejaVu of matplotlib and, for Chinese, Japanese and Korean, those in OpenCV from 5.0 on.

Shape legend: T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ea_data.media.frames import read_frames
from ea_data.media.probe import probe
from ea_data.protocols import Score
from ea_data.score.text import RapidOcrScorer
from ea_runtime.video.x264 import x264_options

FPS = 8
WORDS: dict[str, tuple[str, ...]] = {
    "latin": (
        "SUBSCRIBE NOW",
        "The train leaves at dawn",
        "Where have you been all day?",
        "@river_walks",
        "www.example.org",
        "Épisode sept : le départ",
        "Größere Häuser am Fluss",
        "BREAKING NEWS",
        "Chapter One",
        "shot on my phone",
        "EXCLUSIVE",
        "I never said that.",
    ),
    "digits": (
        "2021-07-14 08:31:07",
        "14/07/2021 20:15:59",
        "CAM 03  23:59:12",
        "00:12:45",
        "REC 00:03:21:08",
        "Jul 14 2021 08:31 AM",
        "52.5200N 13.4050E",
        "1080p 60fps",
    ),
    "cyrillic": (
        "Добрый вечер, друзья",
        "СМОТРИТЕ СЕЙЧАС",
        "Поезд уходит на рассвете",
        "Подписаться",
        "НОВОСТИ ДНЯ",
        "Где ты был весь день?",
    ),
    "greek": (
        "Καλημέρα σε όλους",
        "ΤΕΛΕΥΤΑΙΑ ΝΕΑ",
        "Το τρένο φεύγει την αυγή",
        "Κεφάλαιο πρώτο",
        "Πού ήσουν όλη μέρα;",
        "ΖΩΝΤΑΝΑ ΑΠΟ ΑΘΗΝΑ",
    ),
    "arabic": (
        "صباح الخير جميعا",
        "أخبار عاجلة",
        "القطار يغادر عند الفجر",
        "اشترك الآن",
        "الفصل الأول",
        "أين كنت طوال اليوم؟",
    ),
    "hebrew": (
        "בוקר טוב לכולם",
        "חדשות היום",
        "הרכבת יוצאת עם שחר",
        "הירשמו עכשיו",
        "פרק ראשון",
        "איפה היית כל היום?",
    ),
    "armenian": (
        "Բարի լույս բոլորին",
        "ՎԵՐՋԻՆ ԼՈՒՐԵՐ",
        "Գնացքը մեկնում է լուսաբացին",
        "Բաժանորդագրվել",
        "Գլուխ առաջին",
    ),
    "georgian": (
        "დილა მშვიდობისა",
        "ბოლო ამბები",
        "მატარებელი გამთენიისას გადის",
        "გამოიწერეთ ახლავე",
        "თავი პირველი",
    ),
    "chinese": ("今天天气很好", "火车黎明时出发", "突发新闻", "请订阅我们的频道", "第一章 出发"),
    "japanese": ("おはようございます", "列車は夜明けに出発する", "チャンネル登録", "第一章", "最新ニュース"),
    "korean": ("좋은 아침입니다", "속보입니다", "기차는 새벽에 떠난다", "지금 구독하세요", "제일장 출발"),
}
FONTS = {
    "sans": "DejaVuSans.ttf",
    "bold": "DejaVuSans-Bold.ttf",
    "mono": "DejaVuSansMono.ttf",
    "serif": "DejaVuSerif.ttf",
}
#: Scripts that the fonts of matplotlib have, and those of OpenCV from 5.0 on.
OF_MATPLOTLIB = ("latin", "digits", "cyrillic", "greek", "arabic", "hebrew", "armenian", "georgian")
OF_OPENCV = ("chinese", "japanese", "korean")
HAS_SERIF_AND_MONO = ("latin", "digits", "cyrillic", "greek")
#: size: of a letter's em over the frame's height; opacity; seconds it is shown, 0: all; share that has an outline
STYLES = {
    "subtitle": {"size": (0.055, 0.085), "opacity": (0.95, 1.0), "seconds": (1.0, 3.0)},
    "title": {"size": (0.09, 0.16), "opacity": (0.8, 1.0), "seconds": (1.0, 2.5)},
    "timestamp": {"size": (0.04, 0.06), "opacity": (0.85, 1.0), "seconds": (0.0, 0.0)},
    "watermark": {"size": (0.045, 0.075), "opacity": (0.35, 0.6), "seconds": (0.0, 0.0)},
    "banner": {"size": (0.05, 0.075), "opacity": (1.0, 1.0), "seconds": (1.0, 3.0)},
}
_CONTRAST = 100.0  # levels of 255
SIZES = ((270, 480), (360, 640), (640, 360), (480, 854))


@dataclass(frozen=True)
class Overlay:
    """Letters that stand still in a clip from `start` to `end`, seconds. size: pixels of an em. x, y: of the ink's
    top left corner, shares of what the frame leaves free. colour: of the letters; outline: pixels around them, in
    the opposite shade. tilt: degrees. banner: the letters are on an opaque box."""

    text: str
    script: str
    style: str
    font: str
    size: int
    opacity: float
    start: float
    end: float
    x: float
    y: float
    colour: tuple[int, int, int]
    outline: int = 0
    tilt: float = 0.0


@dataclass(frozen=True)
class TextClip:
    """A drawn clip. ground: a name of GROUNDS. speed: of the frame over the ground, diagonals a second."""

    seed: tuple[int, ...]
    height: int
    width: int
    seconds: float
    ground: str
    speed: float
    overlay: Overlay | None = None

    def frames(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 each, FPS a second."""
        rng = np.random.default_rng(self.seed)
        step = self.speed * math.hypot(self.height, self.width) / FPS
        num_frames = round(self.seconds * FPS)
        travel = math.ceil(step * num_frames) + 2
        turn = rng.uniform(0, 2 * math.pi)
        along = np.array([abs(math.sin(turn)), abs(math.cos(turn))])
        down, across = (math.ceil(travel * share) + 2 for share in along)
        picture = GROUNDS[self.ground](rng, self.height + down, self.width + across, self.height)
        pixels = np.asarray(picture, np.uint8)
        overlay = self.overlay
        ink = None if overlay is None else letters(overlay, pixels[: self.height, : self.width])
        for number in range(num_frames):
            y, x = (along * step * number).astype(int)
            frame = pixels[y : y + self.height, x : x + self.width].copy()
            if ink is not None and overlay is not None and overlay.start <= number / FPS < overlay.end:
                colour, alpha = ink
                frame = np.rint(frame + alpha * (colour - frame)).astype(np.uint8)
            yield frame

    def write(self, path: Path, crf: int = 23) -> Path:
        """An H.264 file, of the same bytes each time."""
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options=x264_options(crf, "veryfast"))
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            stream.codec_context.thread_count = 1
            for frame in self.frames():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        return path


def letters(overlay: Overlay, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """colour (H, W, 3) and opacity (H, W, 1) of an overlay: float32, in 0..255 and 0..1.

    behind: a frame (H, W, 3). Letters without an outline that are about as bright as it turn white or black.
    """
    height, width = behind.shape[:2]
    fill = _line(overlay.text, overlay.script, overlay.font, overlay.size)
    edge = overlay.outline
    pad = edge + (overlay.size // 3 if overlay.style == "banner" else 1)
    fill = np.pad(fill, pad)
    image = Image.fromarray(fill)
    grown = image
    for _ in range(edge):
        grown = Image.fromarray(_grow(np.asarray(grown)))
    if overlay.tilt:
        turned = [one.rotate(overlay.tilt, Image.Resampling.BICUBIC, expand=True) for one in (image, grown)]
        image, grown = turned
    ink, around = (np.asarray(one, np.float32)[..., None] / 255 for one in (image, grown))
    if overlay.style == "banner":
        around = np.ones_like(around)
    limit = min(1.0, 0.96 * width / ink.shape[1], 0.9 * height / ink.shape[0])
    if limit < 1:
        raise ValueError(f"{overlay.text!r} at {overlay.size} pixels does not fit into {width}x{height}")
    top = round(overlay.y * (height - ink.shape[0]))
    left = round(overlay.x * (width - ink.shape[1]))
    place = np.s_[top : top + ink.shape[0], left : left + ink.shape[1]]
    bright = np.array(overlay.colour, np.float32)
    if not edge and overlay.style != "banner" and abs(bright.mean() - behind[place].mean()) < _CONTRAST:
        bright[:] = 250 if behind[place].mean() < 128 else 10
    opposite = np.full(3, 0.0 if bright.mean() > 110 else 250.0, np.float32)
    colour = np.zeros((height, width, 3), np.float32)
    alpha = np.zeros((height, width, 1), np.float32)
    colour[place] = opposite + ink * (bright - opposite) if edge or overlay.style == "banner" else bright
    alpha[place] = np.maximum(ink, around) * np.float32(overlay.opacity)
    return colour, alpha


def _line(text: str, script: str, font: str, size: int) -> np.ndarray:
    """One line of text, (H, W) uint8, cut to its ink."""
    if script in OF_OPENCV:
        import cv2

        canvas = np.zeros((3 * size, 2 * size * (len(text) + 2), 3), np.uint8)
        face = cv2.FontFace("uni")
        cv2.putText(
            canvas, text, (size, 2 * size), (255, 255, 255), face, size, 700 if font == "bold" else 400
        )
        drawn = canvas[..., 0]
    else:
        canvas = Image.new("L", (size * (len(text) + 4), 3 * size))
        face = ImageFont.truetype(str(font_folder() / FONTS[font]), size)
        ImageDraw.Draw(canvas).text((2 * size, size), text, fill=255, font=face)
        drawn = np.asarray(canvas)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    return drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _grow(mask: np.ndarray) -> np.ndarray:
    """The largest of each pixel and its eight neighbours."""
    wide = np.pad(mask, 1)
    height, width = mask.shape
    parts = [wide[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.maximum.reduce(parts)


@cache
def font_folder() -> Path:
    """The folder of matplotlib's fonts."""
    spec = find_spec("matplotlib")
    assert spec is not None, "matplotlib is in the group `dev`"
    assert spec.origin is not None
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


def can_draw(script: str) -> bool:
    """Whether a font for the script is installed."""
    if script in OF_OPENCV:
        import cv2

        return hasattr(cv2, "FontFace")
    return find_spec("matplotlib") is not None


# -- grounds: (H, W, 3) pictures without letters; `unit` is the frame's height, on which sizes depend


def _colour(rng: np.random.Generator, low: float = 20, high: float = 235) -> np.ndarray:
    return rng.uniform(low, high, 3)


def _noise(rng: np.random.Generator, height: int, width: int, cell: float, octaves: int = 1) -> np.ndarray:
    """Smooth noise in 0..1: (H, W) float32."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        size = max(1.0, cell / 2**octave)
        shape = (max(2, math.ceil(height / size) + 1), max(2, math.ceil(width / size) + 1))
        grid = Image.fromarray(rng.uniform(0, 1, shape).astype(np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)) * np.float32(0.6**octave)
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def _mix(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    return np.clip(low + (high - low) * share[..., None], 0, 255).astype(np.uint8)


def _blank(rng: np.random.Generator, height: int, width: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    low, high = _colour(rng), _colour(rng)
    image = Image.fromarray(_mix(low, low + 0.4 * (high - low), _noise(rng, height, width, 120, 3)))
    return image, ImageDraw.Draw(image)


def _fill(rng: np.random.Generator, base: np.ndarray, spread: float) -> tuple[int, int, int]:
    red, green, blue = np.clip(base + rng.normal(0, spread, 3), 0, 255).astype(int)
    return int(red), int(green), int(blue)


def clouds(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    return _mix(_colour(rng), _colour(rng), _noise(rng, height, width, unit / 3, 3))


def bricks(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    image, pen = _blank(rng, height, width)
    tall = max(4, round(unit * rng.uniform(0.02, 0.08)))
    wide, gap, base = round(tall * rng.uniform(1.5, 3)), max(1, tall // 6), _colour(rng)
    for row, y in enumerate(range(0, height, tall)):
        for x in range(-(row % 2) * wide // 2, width, wide):
            pen.rectangle([x, y, x + wide - gap - 1, y + tall - gap - 1], fill=_fill(rng, base, 12))
    return image


def foliage(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    image, pen = _blank(rng, height, width)
    base, size = np.array([60, 110, 50]) + rng.uniform(-30, 30, 3), unit * rng.uniform(0.01, 0.035)
    for _ in range(int(min(9000, height * width / size**2))):
        x, y, turn = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, math.tau)
        tip, side = size * rng.uniform(0.8, 2), size * rng.uniform(0.2, 0.5)
        cos, sin = math.cos(turn), math.sin(turn)
        points = [(x - tip * cos, y - tip * sin), (x - side * sin, y + side * cos)]
        points += [(x + tip * cos, y + tip * sin), (x + side * sin, y - side * cos)]
        pen.polygon(points, fill=_fill(rng, base, 28))
    return image


def grass(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    image, pen = _blank(rng, height, width)
    base, size = np.array([70, 120, 50]) + rng.uniform(-30, 30, 3), unit * rng.uniform(0.03, 0.1)
    for _ in range(int(min(9000, height * width / (size * 3)))):
        x, y = rng.uniform(0, width), rng.uniform(0, height + size)
        bend = rng.normal(0, 0.4) * size
        points = [(x, y), (x + bend * 0.3, y - size * 0.5), (x + bend, y - size)]
        pen.line(points, fill=_fill(rng, base, 30), width=max(1, unit // 240))
    return image


def grid(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    image, pen = _blank(rng, height, width)
    step, thick, colour = (
        unit * rng.uniform(0.02, 0.1),
        max(1, round(unit * rng.uniform(0.002, 0.01))),
        _fill(rng, _colour(rng), 0),
    )
    for number in range(int(width / step) + 1):
        pen.line([(number * step, 0), (number * step, height)], fill=colour, width=thick)
    for number in range(int(height / step) + 1):
        pen.line([(0, number * step), (width, number * step)], fill=colour, width=thick)
    return image


def windows(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    image, pen = _blank(rng, height, width)
    tall = unit * rng.uniform(0.03, 0.12)
    wide, lit, dark = tall * rng.uniform(0.5, 1.3), np.array([230.0, 210, 140]), np.array([40.0, 50, 70])
    for row in range(int(height / (tall * 1.6)) + 1):
        for column in range(int(width / (wide * 1.7)) + 1):
            x, y = column * wide * 1.7 + wide * 0.3, row * tall * 1.6 + tall * 0.3
            pen.rectangle(
                [x, y, x + wide, y + tall], fill=_fill(rng, lit if rng.uniform() < 0.4 else dark, 20)
            )
            pen.line([(x + wide / 2, y), (x + wide / 2, y + tall)], fill=(200, 200, 200))
    return image


def stripes(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    turn, period = rng.uniform(0, math.pi), unit * rng.uniform(0.012, 0.1)
    y, x = np.mgrid[:height, :width]
    wave = np.sin((x * math.cos(turn) + y * math.sin(turn)) * math.tau / period)
    return _mix(_colour(rng), _colour(rng), np.clip(wave * rng.uniform(1, 8) / 2 + 0.5, 0, 1))


def checkers(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    size = max(3, round(unit * rng.uniform(0.015, 0.1)))
    y, x = np.mgrid[:height, :width]
    return _mix(_colour(rng), _colour(rng), ((x // size + y // size) % 2).astype(np.float32))


def gravel(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    image, pen = _blank(rng, height, width)
    base, size = _colour(rng, 80, 170), unit * rng.uniform(0.01, 0.04)
    for _ in range(int(min(9000, 1.5 * height * width / size**2))):
        x, y, wide, tall = rng.uniform(0, width), rng.uniform(0, height), *(size * rng.uniform(0.3, 1, 2))
        colour = _fill(rng, base, 35)
        pen.ellipse(
            [x - wide, y - tall, x + wide, y + tall],
            fill=colour,
            outline=_fill(rng, np.array(colour) * 0.6, 5),
        )
    return image


def fence(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    image = Image.fromarray(clouds(rng, height, width, unit))
    pen = ImageDraw.Draw(image)
    step, colour = unit * rng.uniform(0.02, 0.08), _fill(rng, _colour(rng, 120, 250), 0)
    thick = max(1, round(step * rng.uniform(0.1, 0.5)))
    tops = np.arange(0, height, unit * 0.4)
    for y in tops:
        for number in range(int(width / step) + 1):
            x = number * step
            pen.line([(x, y + unit * 0.05), (x, y + unit * 0.3)], fill=colour, width=thick)
        for rail in (0.1, 0.25):
            pen.line([(0, y + unit * rail), (width, y + unit * rail)], fill=colour, width=thick)
    return image


def mesh(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    image = Image.fromarray(clouds(rng, height, width, unit))
    pen = ImageDraw.Draw(image)
    step, colour = unit * rng.uniform(0.03, 0.1), _fill(rng, _colour(rng), 0)
    for number in range(-int(height / step) - 1, int((width + height) / step) + 2):
        x = number * step
        pen.line([(x, 0), (x + height, height)], fill=colour, width=max(1, unit // 200))
        pen.line([(x, 0), (x - height, height)], fill=colour, width=max(1, unit // 200))
    return image


def shapes(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    image, pen = _blank(rng, height, width)
    size = unit * rng.uniform(0.02, 0.08)
    for _ in range(int(height * width / (size * rng.uniform(2, 4)) ** 2)):
        x, y, wide, tall = rng.uniform(0, width), rng.uniform(0, height), *(size * rng.uniform(0.4, 1, 2))
        draw = (pen.ellipse, pen.rectangle)[int(rng.integers(2))]
        draw([x - wide, y - tall, x + wide, y + tall], fill=_fill(rng, _colour(rng), 20))
    return image


def rings(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    image, pen = _blank(rng, height, width)
    size = unit * rng.uniform(0.02, 0.06)
    colour = _colour(rng)
    for row in range(int(height / size / 2.4) + 1):
        for column in range(int(width / size / 2.4) + 1):
            x, y = (column + 0.5) * size * 2.4, (row + 0.5) * size * 2.4
            pen.ellipse(
                [x - size, y - size, x + size, y + size],
                outline=_fill(rng, colour, 10),
                width=max(1, int(size / 4)),
            )
    return image


def bars(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    """Rows of short upright bars of uneven width and height, like books on shelves."""
    image, pen = _blank(rng, height, width)
    tall, base = unit * rng.uniform(0.06, 0.2), _colour(rng)
    for row in range(int(height / (tall * 1.25)) + 1):
        x, y = 0.0, row * tall * 1.25
        while x < width:
            wide = tall * rng.uniform(0.08, 0.3)
            pen.rectangle(
                [x, y + tall * rng.uniform(0, 0.25), x + wide * 0.9, y + tall], fill=_fill(rng, base, 50)
            )
            x += wide
    return image


def cracks(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    image, pen = _blank(rng, height, width)
    colour = _fill(rng, _colour(rng, 0, 70), 0)
    for _ in range(int(60 * height * width / unit**2)):
        place, turn = rng.uniform((0, 0), (width, height)), rng.uniform(0, math.tau)
        points = [tuple(place)]
        for _ in range(int(rng.integers(4, 14))):
            turn += rng.normal(0, 0.7)
            place = place + unit * rng.uniform(0.01, 0.04) * np.array([math.cos(turn), math.sin(turn)])
            points.append(tuple(place))
        pen.line(points, fill=colour, width=max(1, unit // 180))
    return image


def twigs(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    """Short strokes in rows, of several directions: the nearest to handwriting without a letter."""
    image, pen = _blank(rng, height, width)
    size, colour = unit * rng.uniform(0.015, 0.05), _fill(rng, _colour(rng), 0)
    for _ in range(int(min(5000, height * width / size**2 / 2))):
        x, y, turn = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, math.tau)
        pen.line(
            [(x, y), (x + size * math.cos(turn), y + size * math.sin(turn))],
            fill=colour,
            width=max(1, int(size / 6)),
        )
    return image


def waves(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    y = np.arange(height)[:, None] / unit
    bend = _noise(rng, height, width, unit / 4, 3) * rng.uniform(0.05, 0.3)
    wave = np.sin((y + bend) * math.tau / rng.uniform(0.02, 0.1)) * 0.5 + 0.5
    return _mix(_colour(rng), _colour(rng), wave)


def dots(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    image, pen = _blank(rng, height, width)
    step, colour = unit * rng.uniform(0.015, 0.06), _fill(rng, _colour(rng), 0)
    radius = step * rng.uniform(0.15, 0.35)
    for row in range(int(height / step) + 1):
        for column in range(int(width / step) + 1):
            x, y = column * step + (row % 2) * step / 2, row * step
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
    return image


def grain(rng: np.random.Generator, height: int, width: int, unit: int) -> np.ndarray:
    pixels = clouds(rng, height, width, unit).astype(np.float32)
    return np.clip(pixels + rng.normal(0, rng.uniform(6, 30), (height, width, 1)), 0, 255).astype(np.uint8)


def toys(rng: np.random.Generator, height: int, width: int, unit: int) -> Image.Image:
    """A few large plain things with round eyes and bars on them."""
    image, pen = _blank(rng, height, width)
    for _ in range(int(10 * height * width / unit**2)):
        x, y, size = rng.uniform(0, width), rng.uniform(0, height), unit * rng.uniform(0.08, 0.2)
        pen.rounded_rectangle(
            [x - size, y - size * 0.6, x + size, y + size * 0.6], size / 4, fill=_fill(rng, _colour(rng), 0)
        )
        for side in (-0.5, 0.0, 0.5):
            eye = size * rng.uniform(0.08, 0.2)
            centre = x + side * size
            pen.ellipse(
                [centre - eye, y - eye, centre + eye, y + eye], fill=(245, 245, 245), outline=(20, 20, 20)
            )
            pen.ellipse([centre - eye / 2, y - eye / 2, centre + eye / 2, y + eye / 2], fill=(20, 20, 20))
    return image


Ground = Callable[[np.random.Generator, int, int, int], "np.ndarray | Image.Image"]
_ALL: tuple[Ground, ...] = (
    clouds,
    bricks,
    foliage,
    grass,
    grid,
    windows,
    stripes,
    checkers,
    gravel,
    fence,
    mesh,
    shapes,
)
_ALL = (*_ALL, rings, bars, cracks, twigs, waves, dots, grain, toys)
GROUNDS: dict[str, Ground] = {draw.__name__: draw for draw in _ALL}

#: Moving things without a texture.
PLAIN = ["clouds", "shapes", "grain", "toys"]


def plain_clip(seed: int, index: int) -> TextClip:
    """Clip `index` without letters: every ground in turn, one in three stands still."""
    rng = np.random.default_rng([seed, index, 0])
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    ground = list(GROUNDS)[index % len(GROUNDS)]
    speed = 0.0 if index // len(GROUNDS) % 3 == 0 else float(rng.uniform(0.01, 0.08))
    return TextClip((seed, index, 0), height, width, float(rng.uniform(3.5, 10)), ground, speed)


def text_clip(seed: int, index: int, scripts: tuple[str, ...] = tuple(WORDS)) -> TextClip:
    """Clip `index` with an overlay, scripts and styles in turn; half have a ground of PLAIN, the others any."""
    rng = np.random.default_rng([seed, index, 1])
    height, width = SIZES[int(rng.integers(len(SIZES)))]
    seconds = float(rng.uniform(3.5, 10))
    script = scripts[index % len(scripts)]
    styles = ["timestamp"] if script == "digits" else [name for name in STYLES if name != "timestamp"]
    style = styles[index // len(scripts) % len(styles)]
    of = STYLES[style]
    text = WORDS[script][int(rng.integers(len(WORDS[script])))]
    fonts = list(FONTS) if script in HAS_SERIF_AND_MONO else ["sans", "bold"]
    font = "mono" if style == "timestamp" and rng.uniform() < 0.7 else fonts[int(rng.integers(len(fonts)))]
    size = max(10, round(float(rng.uniform(*of["size"])) * min(height, width)))
    while size > 8 and _line(text, script, font, size).shape[1] > 0.9 * width - size:
        size -= 1
    length = float(rng.uniform(*of["seconds"])) or seconds
    start = 0.0 if length >= seconds else float(rng.uniform(0, seconds - length))
    if style in ("watermark", "timestamp"):
        x, y = ((0.03, 0.97)[int(rng.integers(2))] for _ in range(2))
    else:
        x, y = 0.5, {"title": 0.5, "subtitle": 0.92, "banner": 0.85}[style]
    colours = ((255, 255, 255), (255, 255, 255), (250, 230, 60), (20, 20, 20), (90, 255, 120))
    colour = colours[int(rng.integers(len(colours)))]
    outline = max(1, size // 12) if style != "banner" and (style == "subtitle" or rng.uniform() < 0.6) else 0
    overlay = Overlay(
        text,
        script,
        style,
        font,
        size,
        float(rng.uniform(*of["opacity"])),
        start,
        start + length,
        x,
        y,
        colour,
        outline,
    )
    grounds = PLAIN if index % 2 else list(GROUNDS)
    ground = grounds[int(rng.integers(len(grounds)))]
    speed = 0.0 if index % 4 == 0 else float(rng.uniform(0.01, 0.08))
    return TextClip((seed, index, 1), height, width, seconds, ground, speed, overlay)


def score_file(scorer: RapidOcrScorer, path: Path) -> Score:
    """The score of the first ten seconds of a file, decoded as the pipeline does."""
    info = probe(path, path.parent).info
    span = (0.0, min(10.0, info.seconds), float(info.fps))
    frames = read_frames(path, path.parent, *span, [scorer.needs])[scorer.needs]
    return scorer(frames, {})


def is_on(score: Score, overlay: Overlay) -> bool:
    """Whether a box that counts is at the height of the overlay, in a frame in which it is shown."""
    shown = [one for one in score.detail["frames"] if overlay.start <= one["second"] < overlay.end]
    places = [sum(y for _, y in box) / 4 for one in shown for box in one["boxes"]]
    return any(abs(place - overlay.y) < 0.12 for place in places)
