"""Moving pictures of kinds that a measure of compression must tell apart from damage: `render_look`.

Each is clean: nothing in it was compressed or scaled up. Some have little fine detail all the same (fog, bokeh, night,
cartoon), some hardly change (screen, talk), some are made of blocks (pixels), some are noisy (grain).

Shape legend: T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Paint = Callable[[int], np.ndarray]  # number of the frame -> (H, W, 3) float32, 0..255
_SPEED = 0.04  # widths a second, of a pan


def render_look(
    look: str, num_frames: int, height: int, width: int, fps: int = 24, seed: int = 0
) -> Iterator[np.ndarray]:
    """The frames of one look, one by one: (H, W, 3) uint8. Equal arguments give equal frames."""
    if look not in LOOKS:
        raise ValueError(f"`look` must be one of {', '.join(LOOKS)}, got {look!r}")
    rng = np.random.default_rng([seed, list(LOOKS).index(look)])
    paint = LOOKS[look](rng, height, width, num_frames, fps)
    return _frames(paint, num_frames)


def _frames(paint: Paint, num_frames: int) -> Iterator[np.ndarray]:
    for number in range(num_frames):
        yield np.clip(paint(number), 0, 255).astype(np.uint8)


def _field(rng: np.random.Generator, height: int, width: int, slope: float = 1.0) -> np.ndarray:
    """Noise whose amplitude falls with frequency to the power of `slope`, as in photographs: (H, W), of spread 1."""
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.hypot(down, across)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**slope
    field = np.fft.irfft2(spectrum, (height, width)).astype(np.float32)
    return (field - field.mean()) / field.std()


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A sharp still picture: ground of three colours, strokes such as grass, stones with edges. (H, W, 3) float32."""
    import cv2

    tones = rng.uniform(40, 200, (2, 3)).astype(np.float32)
    ground = _field(rng, height, width, 1.3)[..., None]
    picture = (tones.mean(0) + ground * (tones[1] - tones[0]) / 4).astype(np.float32)
    picture += _field(rng, height, width, 0.6)[..., None] * 12
    for _ in range(height * width // 500):
        x, y = int(rng.integers(width)), int(rng.integers(height // 2, height))
        tip = (x + int(rng.integers(-6, 7)), y - int(rng.integers(6, 24)))
        colour = tuple(float(tone) for tone in rng.uniform(30, 220, 3))
        cv2.line(picture, (x, y), tip, colour, 1, cv2.LINE_AA)
    for _ in range(height * width // 6000):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(4, 16)), int(rng.integers(4, 16)))
        colour = tuple(float(tone) for tone in rng.uniform(30, 220, 3))
        cv2.ellipse(picture, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
    return picture


def _pan(picture: np.ndarray, height: int, width: int, fps: int) -> Paint:
    """Moves the frame over a wider picture at a steady speed, between pixels too."""
    import cv2

    def paint(number: int) -> np.ndarray:
        x = min(number * _SPEED * width / fps, picture.shape[1] - width - 1)
        shift = np.array([[1, 0, -x], [0, 1, 0]], np.float32)
        return cv2.warpAffine(picture, shift, (width, height), flags=cv2.INTER_LANCZOS4)

    return paint


def _wider(width: int, num_frames: int, fps: int) -> int:
    return width + int(_SPEED * width * num_frames / fps) + 2


def texture(rng: np.random.Generator, height: int, width: int, num_frames: int, fps: int) -> Paint:
    """Grass and stones, all in focus."""
    return _pan(_texture(rng, height, _wider(width, num_frames, fps)), height, width, fps)


def bokeh(rng: np.random.Generator, height: int, width: int, num_frames: int, fps: int) -> Paint:
    """A sharp thing of a fifth of the frame's area before a ground far out of focus."""
    import cv2

    far = cv2.GaussianBlur(_texture(rng, height, _wider(width, num_frames, fps)), (0, 0), height / 30)
    behind = _pan(far, height, width, fps)
    near = _texture(rng, height, width)
    mask = np.zeros((height, width, 1), np.float32)
    cv2.ellipse(
        mask, (width // 2, height // 2), (width // 6, height // 3), 0, 0, 360, (1.0,), -1, cv2.LINE_AA
    )

    def paint(number: int) -> np.ndarray:
        sway = round(4 * np.sin(number / fps * 3))
        front = np.roll(mask, sway, 1)
        return behind(number) * (1 - front) + np.roll(near, sway, 1) * front

    return paint


def fog(rng: np.random.Generator, height: int, width: int, num_frames: int, fps: int) -> Paint:
    """Trees that fade into grey, the nearest of them with contrast; a sensor's noise of one level."""
    import cv2

    wide = _wider(width, num_frames, fps)
    picture = np.full((height, wide, 3), 190, np.float32)
    for depth in (0.12, 0.25, 0.5):
        for _ in range(wide // 40):
            x, base = int(rng.integers(wide)), int(height * (0.6 + 0.5 * depth))
            tall, thick = int(height * depth * 1.5), max(1, int(width * depth / 60))
            tone = 190 - 150 * depth
            cv2.line(picture, (x, base), (x, base - tall), (tone, tone, tone + 5), thick, cv2.LINE_AA)
            for _ in range(8):
                y = base - int(rng.uniform(0.3, 1) * tall)
                end = (x + int(rng.integers(-20, 21) * 2 * depth), y - int(tall * 0.15))
                cv2.line(picture, (x, y), end, (tone, tone, tone + 5), 1, cv2.LINE_AA)
    move = _pan(picture, height, width, fps)
    return lambda number: move(number) + rng.normal(0, 1, (height, width, 1)).astype(np.float32)


def night(rng: np.random.Generator, height: int, width: int, num_frames: int, fps: int) -> Paint:
    """A dark street with small bright lights and their glow; a sensor's noise of two levels."""
    import cv2

    wide = _wider(width, num_frames, fps)
    picture = _texture(rng, height, wide) * 0.2
    lights = np.zeros_like(picture)
    for _ in range(wide * height // 4000):
        centre = (int(rng.integers(wide)), int(rng.integers(height // 3, height)))
        warm = float(rng.uniform(120, 255))
        cv2.circle(lights, centre, int(rng.integers(1, 4)), (255.0, warm, warm * 0.6), -1, cv2.LINE_AA)
    picture += lights + cv2.GaussianBlur(lights, (0, 0), height / 40) * 2
    move = _pan(picture, height, width, fps)
    return lambda number: move(number) + rng.normal(0, 2, (height, width, 1)).astype(np.float32)


def water(rng: np.random.Generator, height: int, width: int, num_frames: int, fps: int) -> Paint:
    """Waves of many lengths that run at their own speeds, with glints."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    waves = [(np.exp(rng.uniform(1.4, 5.8)), rng.uniform(-0.6, 0.6), rng.uniform(0, 6)) for _ in range(24)]

    def paint(number: int) -> np.ndarray:
        total = np.zeros((height, width), np.float32)
        for pitch, lean, phase in waves:
            way = (x * lean + y * (1.5 - 0.5 * y)) * pitch
            total += np.sin(way + phase + number / fps * np.sqrt(pitch)) / np.sqrt(pitch) / 2
        glint = np.clip(total - 0.9, 0, 1) * 200
        return np.stack([30 + 25 * total + glint, 80 + 30 * total + glint, 110 + 35 * total + glint], -1)

    return paint


def cartoon(rng: np.random.Generator, height: int, width: int, num_frames: int, fps: int) -> Paint:
    """Flat shapes with dark outlines that move over a flat ground."""
    import cv2

    size = np.array([width, height])
    things = [
        (rng.uniform(0, 1, 2) * size, rng.uniform(-60, 60, 2), rng.uniform(15, 45), rng.uniform(60, 255, 3))
        for _ in range(14)
    ]
    ground = rng.uniform(120, 230, 3).astype(np.float32)

    def paint(number: int) -> np.ndarray:
        picture = np.full((height, width, 3), ground, np.float32)
        for start, way, radius, colour in things:
            x, y = start + way * number / fps
            at = (int(x), int(y))
            cv2.circle(picture, at, int(radius * height / 270), tuple(map(float, colour)), -1, cv2.LINE_AA)
            cv2.circle(picture, at, int(radius * height / 270), (20.0, 20.0, 20.0), 2, cv2.LINE_AA)
        return picture

    return paint


def screen(rng: np.random.Generator, height: int, width: int, num_frames: int, fps: int) -> Paint:
    """A screen recording: lines of text, of which one grows letter by letter."""
    import cv2

    page = np.full((height, width, 3), 245, np.uint8)
    words = ["".join(chr(int(code)) for code in rng.integers(97, 123, 60)) for _ in range(height // 14)]
    for row, word in enumerate(words[:-2]):
        cv2.putText(
            page, word, (10, 14 + 14 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (30, 30, 30), 1, cv2.LINE_AA
        )

    def paint(number: int) -> np.ndarray:
        shown, at = page.copy(), (10, 14 * len(words) - 10)
        cv2.putText(shown, words[-1][: number // 2 + 1], at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (20, 20, 160), 1)
        return shown.astype(np.float32)

    return paint


def talk(rng: np.random.Generator, height: int, width: int, num_frames: int, fps: int) -> Paint:
    """A speaker before a still wall: an eighth of the frame moves. A sensor's noise of one level."""
    import cv2

    wall = cv2.GaussianBlur(_texture(rng, height, width), (0, 0), 2)
    face = _texture(rng, height, width) * 0.3 + 120
    mask = np.zeros((height, width, 1), np.float32)
    cv2.ellipse(
        mask, (width // 2, height // 2), (width // 8, height // 4), 0, 0, 360, (1.0,), -1, cv2.LINE_AA
    )

    def paint(number: int) -> np.ndarray:
        shift = (round(3 * np.sin(number / fps * 4)), round(2 * np.sin(number / fps * 7)))
        here = np.roll(mask, shift, (1, 0))
        shown = wall * (1 - here) + np.roll(face, shift, (1, 0)) * here
        return shown + rng.normal(0, 1, (height, width, 1)).astype(np.float32)

    return paint


def grain(rng: np.random.Generator, height: int, width: int, num_frames: int, fps: int) -> Paint:
    """The texture with film grain of 5 levels."""
    move = texture(rng, height, width, num_frames, fps)
    return lambda number: move(number) + rng.normal(0, 5, (height, width, 1)).astype(np.float32)


def pixels(rng: np.random.Generator, height: int, width: int, num_frames: int, fps: int) -> Paint:
    """Pixel art: the cartoon, of pixels 6 times as large."""
    import cv2

    small = cartoon(rng, height // 6, width // 6, num_frames, fps)
    return lambda number: cv2.resize(small(number), (width, height), interpolation=cv2.INTER_NEAREST)


#: look -> its painter
LOOKS: dict[str, Callable[[np.random.Generator, int, int, int, int], Paint]] = {
    painter.__name__: painter
    for painter in (texture, bokeh, fog, night, water, cartoon, screen, talk, grain, pixels)
}
