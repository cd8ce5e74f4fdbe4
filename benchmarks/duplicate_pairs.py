"""Pairs of clips of which it is known whether they are duplicates, for benchmarks/test_duplicates.py.

A film is a function from seconds to a frame. Drawn ones: pans over textures, figures that walk through a still room,
shapes on a plain ground. Real ones, from a folder of videos, if there is one.

Shape legend: H height, W width; frames are (H, W, 3) uint8, RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ea_data.draw.raw import RawScene, draw_picture
from ea_data.draw.scene import COMBINATIONS, place, render

HEIGHT, WIDTH = 180, 320
#: Real clips, relative to the folder that is given.
REAL = (
    "copies/bigbuckbunny.mp4",
    "copies/rabbit320.mp4",
    "one_shot/ea1.mp4",
    "no_letters/flower.webm",
    "no_letters/frog.mp4",
    "mkv_b_frames/bunny.mkv",
    "one_gap/gap3s.webm",
    "interlaced/interlaced.mp4",
)
Film = Callable[[float], np.ndarray]
Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Clip:
    """A film from `start`, as a file. fps: of the file. source_fps: of the film's own frames. speed: of playing.
    encoder: name for PyAV, with its options and the file's suffix."""

    film: Film
    start: float
    seconds: float
    fps: Fraction = Fraction(24)
    source_fps: float = 24.0
    speed: float = 1.0
    changes: tuple[Change, ...] = ()
    encoder: tuple[str, dict[str, str], str] = ("libx264", {"crf": "23", "preset": "veryfast"}, ".mp4")

    def frames(self) -> Iterator[np.ndarray]:
        for number in range(round(self.seconds * self.fps / self.speed)):
            seconds = self.start + float(number / self.fps) * self.speed
            frame = self.film(math.floor(seconds * self.source_fps + 1e-6) / self.source_fps)
            for change in self.changes:
                frame = change(frame)
            yield frame

    def write(self, folder: Path, name: str) -> Path:
        """The file."""
        import av

        encoder, options, suffix = self.encoder
        path = folder / (name + suffix)
        with av.open(path, "w") as container:
            stream: Any = None
            for frame in self.frames():
                height, width = (side // 2 * 2 for side in frame.shape[:2])
                if stream is None:
                    stream = container.add_stream(encoder, rate=self.fps, options=options)
                    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                    stream.thread_count = 1
                shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), "rgb24")
                container.mux(stream.encode(shown))
            container.mux(stream.encode(None))
        return path


@dataclass(frozen=True)
class Pair:
    """Two clips. kind: of the change, or of the likeness."""

    kind: str
    is_copy: bool
    one: Clip
    other: Clip


# -- films


@cache
def _real_frames(path: Path) -> tuple[list[np.ndarray], float]:
    import av

    with av.open(path) as container:
        frames = list(container.decode(video=0))
    base = float(frames[0].time_base)
    times = [(frame.pts - frames[0].pts) * base for frame in frames]
    width = round(HEIGHT * frames[0].width / frames[0].height / 2) * 2
    small = [
        cv2.resize(f.to_ndarray(format="rgb24"), (width, HEIGHT), interpolation=cv2.INTER_AREA)
        for f in frames
    ]
    return small, (len(times) - 1) / (times[-1] - times[0])


def real_film(path: Path) -> tuple[Film, float, float]:
    """A film, its seconds and its rate."""
    frames, fps = _real_frames(path)
    return lambda seconds: frames[min(len(frames) - 1, round(seconds * fps))], len(frames) / fps, fps


@cache
def _texture(seed: int, hue: int, scale: float) -> np.ndarray:
    size = round(HEIGHT * scale), round(WIDTH * scale)
    return draw_picture(RawScene((seed, 7, 7), 1, 0.0, "left", hue, "scenes"), *size, WIDTH)


def pan(seed: int) -> Film:
    """The camera goes over a texture, and nearer or away."""
    rng = np.random.default_rng([seed, 1])
    texture = _texture(seed, int(rng.integers(8)), 3)
    start, end = rng.uniform(0.5, 1.5, 2), rng.uniform(0.5, 1.5, 2)
    zoom = rng.uniform(0.8, 1.25)

    def film(seconds: float) -> np.ndarray:
        share = seconds / 12
        x, y = (start + (end - start) * share) * (WIDTH, HEIGHT)
        scale = 1 + (zoom - 1) * share
        matrix = np.array([[scale, 0, x], [0, scale, y]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(texture, matrix, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REFLECT)

    return film


def room(seed: int, real: np.ndarray | None = None) -> np.ndarray:
    """A still background: a texture, or a frame."""
    picture = _texture(1000 + seed, seed % 8, 1) if real is None else real
    return cv2.resize(picture, (WIDTH, HEIGHT))


@dataclass(frozen=True)
class Person:
    """A walking figure. height: of the frame's. coat, legs: colours. path: x and y of its feet at 0 and 12 s, as
    shares of the frame; beats: steps a second."""

    height: float
    breadth: float
    coat: tuple[int, ...]
    legs: tuple[int, ...]
    path: tuple[float, float, float, float]
    beats: float
    bob: float

    @classmethod
    def of(cls, seed: int) -> Person:
        rng = np.random.default_rng([seed, 2])
        coat, legs = (tuple(int(v) for v in rng.integers(20, 236, 3)) for _ in range(2))
        x0, x1 = rng.uniform(0.1, 0.9, 2)
        if abs(x1 - x0) < 0.25:
            x1 = x0 + 0.4 if x0 < 0.5 else x0 - 0.4
        y0, y1 = rng.uniform(0.75, 0.98, 2)
        return cls(
            float(rng.uniform(0.35, 0.7)), float(rng.uniform(0.7, 1.4)), coat, legs,
            (float(x0), float(y0), float(x1), float(y1)), float(rng.uniform(0.6, 2)), float(rng.uniform(0, 6)),
        )  # fmt: skip

    def moved(self, seed: int) -> Person:
        """The same one on another way."""
        other = Person.of(seed)
        return replace(self, path=other.path, beats=other.beats, bob=other.bob)


def walk(background: np.ndarray, person: Person) -> Film:
    """A person walks through a room, to and fro in 12 s."""

    def film(seconds: float) -> np.ndarray:
        frame = background.copy()
        x0, y0, x1, y1 = person.path
        share = (1 - math.cos(seconds / 6 * math.pi)) / 2
        x, y = (x0 + (x1 - x0) * share) * WIDTH, (y0 + (y1 - y0) * share) * HEIGHT
        swing = math.sin(seconds * person.beats * 2 * math.pi + person.bob)
        size = person.height * HEIGHT
        hip, neck, wide = y - 0.45 * size, y - 0.82 * size, 0.13 * size * person.breadth
        width = max(2, round(wide * 0.6))

        def at(u: float, v: float) -> tuple[int, int]:
            return round(u * 16), round(v * 16)

        for side in (-1, 1):
            foot = x + side * swing * 0.2 * size
            cv2.line(frame, at(x, hip), at(foot, y), person.legs, width, cv2.LINE_AA, 4)
            hand = x - side * swing * 0.25 * size
            cv2.line(frame, at(x, neck + 3), at(hand, hip), person.coat, width, cv2.LINE_AA, 4)
        middle = at(x, (hip + neck) / 2)
        cv2.ellipse(frame, middle, at(wide, (hip - neck) / 2 + 2), 0, 0, 360, person.coat, -1, cv2.LINE_AA, 4)
        cv2.circle(
            frame, at(x, neck - 0.08 * size), round(0.09 * size * 16), (214, 170, 140), -1, cv2.LINE_AA, 4
        )
        return frame

    return film


def shape(seed: int, **named: str) -> Film:
    """A shape on a plain ground; `named` attributes are fixed, the others drawn."""
    rng = np.random.default_rng([seed, 3])
    choices = [
        c for c in COMBINATIONS if c.motion != "still" and all(getattr(c, k) == v for k, v in named.items())
    ]
    scene = place(choices[int(rng.integers(len(choices)))], rng)
    frames: list[np.ndarray] = []

    def film(seconds: float) -> np.ndarray:
        if not frames:
            frames.extend(render(scene, HEIGHT, WIDTH, 12 * 24))
        return frames[min(len(frames) - 1, round(seconds * 24))]

    return film


# -- changes


def brightened(gain: float, offset: float, gamma: float) -> Change:
    table = np.clip(255 * (np.arange(256) / 255) ** gamma * gain + offset, 0, 255).astype(np.uint8)
    return lambda frame: table[frame]


def gray(frame: np.ndarray) -> np.ndarray:
    return np.repeat(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)


def sized(height: int, width: int) -> Change:
    return lambda frame: cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def cropped(left: float, top: float, share: float) -> Change:
    """Without `share` of each side's length, `left` and `top` of which at its beginning."""

    def change(frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        y, x = round(top * share * height), round(left * share * width)
        return frame[y : y + round(height * (1 - share)), x : x + round(width * (1 - share))]

    return change


def overlaid(text: str, corner: int, colour: tuple[int, ...]) -> Change:
    """A logo on a plate, about a tenth of the frame's sides, or a line of letters at the lower edge."""

    def change(frame: np.ndarray) -> np.ndarray:
        frame = frame.copy()
        height, width = frame.shape[:2]
        if corner == 4:
            where = (width // 6, height - height // 14)
            cv2.putText(
                frame, text * 2, where, cv2.FONT_HERSHEY_SIMPLEX, height / 260, (0, 0, 0), 3, cv2.LINE_AA
            )
            cv2.putText(
                frame, text * 2, where, cv2.FONT_HERSHEY_SIMPLEX, height / 260, (255,) * 3, 1, cv2.LINE_AA
            )
            return frame
        h, w = height // 8, width // 7
        y, x = (height - h - 6) * (corner // 2) + 3, (width - w - 6) * (corner % 2) + 3
        frame[y : y + h, x : x + w] = colour
        cv2.putText(
            frame, text[:4], (x + 2, y + h - 6), cv2.FONT_HERSHEY_SIMPLEX, height / 400, (255,) * 3, 1
        )
        return frame

    return change


def boxed(share: float, is_pillar: bool) -> Change:
    """With black bars, each of `share` of the side."""

    def change(frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        bar = round((width if is_pillar else height) * share)
        return np.pad(frame, ((0, 0), (bar, bar), (0, 0)) if is_pillar else ((bar, bar), (0, 0), (0, 0)))

    return change


def noisy(seed: int, sigma: float) -> Change:
    rng = np.random.default_rng([seed, 4])

    def change(frame: np.ndarray) -> np.ndarray:
        return np.clip(frame + rng.normal(0, sigma, frame.shape), 0, 255).astype(np.uint8)

    return change


_ENCODERS: tuple[tuple[str, dict[str, str], str], ...] = (
    ("libx264", {"crf": "36", "preset": "veryfast"}, ".mp4"),
    ("libvpx", {"b": "200k", "deadline": "realtime", "cpu-used": "8"}, ".webm"),
    ("libvpx-vp9", {"b": "150k", "deadline": "realtime", "cpu-used": "8"}, ".webm"),
    ("mpeg4", {"qscale": "12", "flags": "+qscale", "global_quality": "1416"}, ".avi"),
    ("mpeg2video", {"b": "500k"}, ".mkv"),
    ("libx265", {"crf": "32", "preset": "ultrafast", "x265-params": "log-level=none:pools=1"}, ".mp4"),
    ("libsvtav1", {"crf": "45", "preset": "12", "svtav1-params": "lp=1"}, ".mp4"),
)

# -- pairs


class Maker:
    """Makes pairs. real: the folder of real clips, or None."""

    def __init__(self, real: Path | None) -> None:
        paths = [real / name for name in REAL if (real / name).is_file()] if real else []
        self.real = [real_film(path) for path in paths]

    def film(self, seed: int) -> Clip:
        """A clip of a film: in turn pan, room, shape, and two real ones."""
        rng = np.random.default_rng([seed, 5])
        kind = seed % 5
        if kind >= 3 and self.real:
            film, seconds, fps = self.real[seed // 5 % len(self.real)]
            start = float(rng.uniform(0, max(0.0, seconds - 6)))
            rate = Fraction(fps).limit_denominator(1001)
            return Clip(film, start, min(6.0, seconds - start), rate, fps)
        if kind == 1:
            film = walk(self.background(seed), Person.of(seed))
        else:
            film = shape(seed) if kind == 2 else pan(seed)
        return Clip(film, float(rng.uniform(0, 6)), float(rng.uniform(4, 6)))

    def background(self, seed: int) -> np.ndarray:
        real = self.real[seed // 10 % len(self.real)][0](1.0) if self.real and seed % 2 else None
        return room(seed, real)

    def copy(self, kind: str, seed: int) -> Pair:
        """A clip and a changed copy."""
        rng = np.random.default_rng([seed, 6])
        one = self.film(seed)
        height, width = one.film(one.start).shape[:2]
        uniform: Any = rng.uniform
        other = one
        if kind == "codec":
            encoder = _ENCODERS[seed % len(_ENCODERS)]
            is_usual = one.fps in (24, 25, 30, Fraction(24000, 1001), Fraction(30000, 1001))
            # MPEG-2 knows a few rates only
            other = replace(one, encoder=encoder, fps=one.fps if is_usual else Fraction(25))
        elif kind == "size":
            scale = uniform(0.35, 0.75)
            aspect = uniform(0.85, 1.2) if seed % 3 == 0 else 1.0
            size = (2 * round(height * scale / 2), 2 * round(width * scale * aspect / 2))
            other = replace(one, changes=(sized(*size),))
        elif kind == "grey":
            other = replace(one, changes=(gray,))
        elif kind == "brightness":
            other = replace(
                one, changes=(brightened(uniform(0.7, 1.3), uniform(-25, 25), uniform(0.7, 1.4)),)
            )
        elif kind == "crop":
            other = replace(one, changes=(cropped(uniform(0, 1), uniform(0, 1), 0.03),))
        elif kind == "overlay":
            colour = tuple(int(v) for v in rng.integers(0, 200, 3))
            other = replace(one, changes=(overlaid("EA TV LIVE ", seed % 5, colour),))
        elif kind == "rate":
            fps = Fraction(str(rng.choice(["25", "30", "30000/1001", "15", "50"])))
            other = replace(one, fps=fps)
        elif kind == "cut":
            one = replace(one, start=one.start if one.start + 6 <= 12 else 0.0)
            begin, end = uniform(0.05, 0.3) * one.seconds, uniform(0, 0.1) * one.seconds
            fps = Fraction(str(rng.choice(["24", "25", "30"])))
            other = replace(one, start=one.start + begin, seconds=one.seconds - begin, fps=fps)
            one = replace(one, seconds=one.seconds - end)
        elif kind == "letterbox":
            other = replace(one, changes=(boxed(uniform(0.05, 0.16), seed % 2 == 1),))
        elif kind == "noise":
            encoder = ("libx264", {"crf": "30", "preset": "veryfast"}, ".mp4")
            other = replace(one, changes=(noisy(seed, uniform(5, 15)),), encoder=encoder)
        else:
            raise ValueError(kind)
        return Pair(kind, True, one, other)

    def alike(self, kind: str, seed: int) -> Pair:
        """Two clips that are no duplicates."""
        rng = np.random.default_rng([seed, 8])
        span: tuple[float, float] = (float(rng.uniform(0, 3)), float(rng.uniform(4, 6)))
        background = self.background(seed)
        if kind == "same room, other person":
            films = [walk(background, Person.of(2 * seed + i)) for i in (0, 1)]
        elif kind == "same scene, other motion":
            if seed % 3 == 0:
                named = {"colour": "red", "shape": "circle", "background": "gray", "size": "large"}
                ways = [
                    str(way)
                    for way in rng.choice(["left", "right", "up", "down", "grow", "shrink"], 2, False)
                ]
                films = [shape(seed, **named, motion=way) for way in ways]
            else:
                person = Person.of(seed)
                films = [walk(background, person), walk(background, person.moved(seed + 5000))]
        elif kind == "same background, other object":
            if seed % 2 == 0:
                values = {
                    "shape": ("circle", "square", "triangle"),
                    "colour": ("red", "green", "blue", "yellow"),
                }
                name = ("shape", "colour")[seed // 2 % 2]
                named = {"motion": "left", "background": "black", "size": "large"}
                named |= {"colour": "white"} if name == "shape" else {"shape": "circle"}
                films = [shape(seed, **named, **{name: str(v)}) for v in rng.choice(values[name], 2, False)]
            else:
                # on one way, so that only the figures differ
                first = Person.of(seed)
                films = [
                    walk(background, first),
                    walk(background, replace(Person.of(seed + 7000), path=first.path)),
                ]
        elif kind == "same colours":
            hue = seed % 8
            textures = [_texture(3000 + 2 * seed + i, hue, 1.5) for i in (0, 1)]
            films = [_drift(texture, seed) for texture in textures]
        elif kind == "later in the same film":
            film = self.film(seed)
            half = min(film.seconds / 2, 3.0)
            one = replace(film, seconds=half)
            return Pair(kind, False, one, replace(film, start=film.start + half, seconds=half))
        elif kind == "other film":
            return Pair(
                kind, False, self.film(seed), self.film(seed + 5 * int(rng.integers(1, 8)) + seed % 2)
            )
        else:
            raise ValueError(kind)
        return Pair(kind, False, Clip(films[0], *span), Clip(films[1], *span))


def _drift(texture: np.ndarray, seed: int) -> Film:
    """The camera goes slowly over a texture; one way for each seed."""
    dx, dy = np.random.default_rng([seed, 9]).uniform(4, 12, 2)

    def film(seconds: float) -> np.ndarray:
        matrix = np.array([[1, 0, dx * seconds], [0, 1, dy * seconds]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(texture, matrix, (WIDTH, HEIGHT), flags=flags)

    return film


COPIES = ("codec", "size", "grey", "brightness", "crop", "overlay", "rate", "cut", "letterbox", "noise")
#: kind -> share of all pairs that are no duplicates
ALIKE = {
    "same room, other person": 0.2,
    "same scene, other motion": 0.2,
    "same background, other object": 0.16,
    "same colours": 0.16,
    "later in the same film": 0.14,
    "other film": 0.14,
}


def pairs(count: int, real: Path | None, first: int = 0) -> Iterator[Pair]:
    """`count` pairs, half of them duplicates, evenly over the kinds. first: another gives other pairs."""
    maker = Maker(real)
    for number in range(count // 2):
        yield maker.copy(
            COPIES[number % len(COPIES)], first + 11 * (number // len(COPIES)) + number % len(COPIES)
        )
    number = first + count
    for kind, share in ALIKE.items():
        for _ in range(round(share * (count - count // 2))):
            yield maker.alike(kind, number)
            number += 1
