"""Video composed of single shots, with known transitions: what splitters are compared on.

Shots are drawn (`ea_data.draw.raw`) or real (files that hold one shot each), and filmed in STYLES. The same seed and
the same real files give the same frames.

Shape legend: T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ea_data.draw.raw import HUES, WAYS, RawScene, draw_picture, render_scene

HEIGHT, WIDTH, FPS = 144, 256, 24
#: transition -> its share; hard cuts are one half
TRANSITIONS = {"hard": 0.5, "dissolve": 0.24, "fade": 0.13, "wipe": 0.13}
#: Frames of a gradual transition, the least and the most; a fade goes out and in again.
LENGTHS = (6, 24)
STYLES = ("still", "pan", "fast pan", "shake", "zoom", "flash", "strobe", "exposure", "passer-by", "grain")


@dataclass(frozen=True)
class Transition:
    """start: its first changed frame. end: the new shot's first whole frame. A hard cut: both are that."""

    kind: str
    start: int
    end: int


def real_pictures(files: Sequence[Path]) -> list[np.ndarray]:
    """The frames of each file that exists: uint8 (T, HEIGHT, WIDTH, 3), the middle of the picture."""
    return [np.stack(list(_read(path))) for path in files if path.is_file()]


def _read(path: Path) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            picture = frame.to_image()
            scale = min(picture.width / WIDTH, picture.height / HEIGHT)
            left, top = (picture.width - WIDTH * scale) / 2, (picture.height - HEIGHT * scale) / 2
            box = (left, top, left + WIDTH * scale, top + HEIGHT * scale)
            yield np.asarray(picture.resize((WIDTH, HEIGHT), Image.Resampling.BOX, box=box))


def shoot(
    rng: np.random.Generator, num_frames: int, style: str, hue: int, real: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """One shot: uint8 (T, H, W, 3). real: films to take it from; without any, it is drawn."""
    if real:
        shot = _from_film(rng, real[rng.integers(len(real))], num_frames)
    else:
        shot = _drawn(rng, num_frames, style, hue)
    return _light(rng, shot, style)


def _from_film(rng: np.random.Generator, film: np.ndarray, num_frames: int) -> np.ndarray:
    """A stretch of a film; a film that is too short is played forwards and backwards."""
    there_and_back = np.concatenate([np.arange(len(film)), np.arange(len(film) - 2, 0, -1)])
    start = int(rng.integers(len(there_and_back)))
    film = film[there_and_back[np.arange(start, start + num_frames) % len(there_and_back)]]
    return film[:, :, ::-1] if rng.random() < 0.5 else film


def _drawn(rng: np.random.Generator, num_frames: int, style: str, hue: int) -> np.ndarray:
    speed = {"still": 0.0, "fast pan": rng.uniform(0.3, 0.6)}.get(style, rng.uniform(0.02, 0.08))
    kind = "fast" if style == "fast pan" else "grain" if style == "grain" else "scenes"
    way = str(rng.choice(list(WAYS)))
    seed = tuple(int(part) for part in rng.integers(0, 2**31, 3))
    scene = RawScene(seed, num_frames, float(speed), way, hue, kind)
    if style in ("shake", "zoom"):
        return _moved(rng, draw_picture(scene, 2 * HEIGHT, 2 * WIDTH, WIDTH), num_frames, style)
    shot = np.stack(list(render_scene(scene, HEIGHT, WIDTH, FPS)))
    return _passed(rng, shot) if style == "passer-by" else shot


def _moved(rng: np.random.Generator, picture: np.ndarray, num_frames: int, style: str) -> np.ndarray:
    """A window that trembles like a hand-held camera, or that widens or narrows."""
    image = Image.fromarray(picture)
    steps = rng.normal(0, 1.6, (num_frames, 2))
    place = np.cumsum(steps, 0) * 0.5 + steps if style == "shake" else np.zeros((num_frames, 2))
    zoom = np.linspace(1, rng.uniform(0.5, 0.8), num_frames) if style == "zoom" else np.ones(num_frames)
    frames = []
    for (x, y), size in zip(place, zoom, strict=True):
        width, height = WIDTH * 1.4 * size, HEIGHT * 1.4 * size
        left = np.clip(WIDTH - width / 2 + x, 0, 2 * WIDTH - width)
        top = np.clip(HEIGHT - height / 2 + y, 0, 2 * HEIGHT - height)
        box = (left, top, left + width, top + height)
        frames.append(np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box)))
    return np.stack(frames)


def _passed(rng: np.random.Generator, shot: np.ndarray) -> np.ndarray:
    """Something dark and large crosses the picture once, and covers up to half of it."""
    middle, seconds = rng.uniform(0.3, 0.7) * len(shot), rng.uniform(1.0, 2.0)
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    colour = rng.uniform(20, 90, 3)
    out = shot.copy()
    for number in range(len(shot)):
        x = WIDTH / 2 + (number - middle) / (seconds * FPS) * 2 * WIDTH
        inside = ((xs - x) / (0.28 * WIDTH)) ** 2 + ((ys - 0.6 * HEIGHT) / (0.6 * HEIGHT)) ** 2 < 1
        out[number][inside] = colour
    return out


def _light(rng: np.random.Generator, shot: np.ndarray, style: str) -> np.ndarray:
    """Flashes of 1 to 3 frames, a strobe, or light that changes within a second."""
    gain = np.zeros(len(shot), np.float32)  # 0: as it is, 1: white
    if style == "flash":
        for at in rng.integers(4, len(shot) - 6, 2):
            gain[at : at + rng.integers(1, 4)] = rng.uniform(0.5, 0.95)
    elif style == "strobe":
        period = int(rng.integers(3, 9))
        gain[np.arange(len(shot)) % period < max(1, period // 3)] = rng.uniform(0.3, 0.8)
    elif style == "exposure":
        change = 1 / (1 + np.exp(-(np.arange(len(shot)) - len(shot) / 2) / rng.uniform(3, 8)))
        gain = (rng.choice([-0.6, 0.4]) * change).astype(np.float32)
    if not gain.any():
        return shot
    out = shot.astype(np.float32)
    white = np.clip(gain, 0, 1)[:, None, None, None]
    out = out * (1 - white) + 255 * white
    out *= 1 + np.clip(gain, -1, 0)[:, None, None, None]
    return np.rint(out).astype(np.uint8)


def join(rng: np.random.Generator, kind: str, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The frames of a gradual transition, from two stretches of the same length: uint8 (T, H, W, 3)."""
    count = len(one)
    share = (np.arange(1, count + 1, dtype=np.float32) / (count + 1))[:, None, None, None]
    if kind == "dissolve":
        mixed = one * (1 - share) + other * share
    elif kind == "fade":
        paper = 255.0 if rng.random() < 0.15 else 0.0
        out, into = np.clip(1 - 2 * share, 0, 1), np.clip(2 * share - 1, 0, 1)
        mixed = one * out + other * into + paper * (1 - out - into)
    else:
        across, back = rng.random() < 0.6, rng.random() < 0.5
        line = np.linspace(0, 1, WIDTH if across else HEIGHT, dtype=np.float32)
        line = line[::-1] if back else line
        is_new = (line[None, None, :] if across else line[None, :, None]) < share[..., 0]
        mixed = np.where(is_new[..., None], other, one)
    return np.rint(mixed).astype(np.uint8)


def compose(
    seed: int, num_shots: int, films: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], list[Transition]]:
    """The frames of one video in pieces of (T, H, W, 3), and its transitions. A third of the shots is real."""
    rng = np.random.default_rng(seed)
    pieces: list[np.ndarray] = []
    transitions: list[Transition] = []
    shown, last = 0, -1
    hue = int(rng.integers(len(HUES)))
    rest: np.ndarray | None = None
    for _ in range(num_shots):
        # one cut in ten stays within a colour
        hue = (hue + (int(rng.integers(1, len(HUES))) if rng.random() > 0.1 else 0)) % len(HUES)
        style = str(rng.choice(STYLES))
        film = int(rng.integers(len(films))) if len(films) > 1 and rng.random() < 1 / 3 else -1
        # two stretches of one film may be alike
        real = [films[film]] if film not in (-1, last) else ()
        last = film
        shot = shoot(rng, int(rng.integers(44, 84)), style, hue, real)
        if rest is not None:
            kind = str(rng.choice(list(TRANSITIONS), p=list(TRANSITIONS.values())))
            count = 0 if kind == "hard" else int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))
            if kind == "fade":
                count = math.ceil(1.5 * count)
            pieces.append(rest[: len(rest) - count])
            shown += len(pieces[-1])
            transitions.append(Transition(kind, shown, shown + count))
            if count:
                pieces.append(join(rng, kind, rest[-count:], shot[:count]))
                shown += count
                shot = shot[count:]
        rest = shot
    assert rest is not None
    pieces.append(rest)
    return pieces, transitions


def single(seed: int, films: Sequence[np.ndarray]) -> tuple[str, np.ndarray]:
    """One shot of four to five seconds: (style, frames). Styles take turns; a third is real."""
    rng = np.random.default_rng([seed, 1])
    style = STYLES[seed % len(STYLES)]
    real = films if films and seed % 3 == 2 else ()
    return style, shoot(rng, int(rng.integers(96, 121)), style, int(rng.integers(len(HUES))), real)
