"""Measures the contents of a clip from its pixels alone, and compares them with its prompt.

The background is the median of the frame's rim. Every pixel's colour is projected onto the line from there to the
shape's colour, which gives a soft mask: coverage, however blurred the edge. Shape: the mask against templates of
equal area and centre, by intersection over union. Size: the mean radius, from the area. A shape whose middle has the
background's colour is an outline: it is filled up to its hull (hull.py) first, and then judged like any other.
Motion: lines fitted to the centre's track and to the radius. Calibrated on true clips, also blurred and noisy (see
the tests).

Shape legend: T frames, H height, W width. Colours are RGB in 0..255.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ea_data.draw.caption import parse_prompt
from ea_data.draw.hull import core_fill, fill_hulls, rim_cover
from ea_data.draw.known import KnownCheck, check_known
from ea_data.draw.scene import AREAS, BACKGROUNDS, COLOURS, EXTENTS, SHAPES, coverage
from ea_runtime.video import measures

ATTRIBUTES: tuple[str, ...] = ("colour", "shape", "size", "motion", "background")
UNKNOWN = "unknown"

# Between the mean radii of small (0.14, +-5%) and large (0.24 when it moves, 0.255 when it grows).
SIZE_THRESHOLD = 0.185
# Drawn shapes travel at least 0.4 of the side, and grow by 0.82 (large) or 1.0 (small) of their mean radius.
MIN_TRAVEL = 0.2
MIN_GROWTH = 0.4
# How far, as a standard deviation in units of those two, a track may stray from its line.
MAX_STRAY = 0.5
# Motion is unknown where fewer frames than this share show a shape.
MIN_PRESENT = 0.5
# Below this Lab chroma a shape is white (white has 0, the dullest drawn colour 63).
MIN_CHROMA = 28.0
# ... if it is at least this light (white has 98); a dark gray shape has none of the colours.
MIN_WHITE_LIGHTNESS = 65.0
# Further from every background than this in Lab, the rim shows none of them. Black and navy are 43 apart.
MAX_BACKGROUND_DISTANCE = 25.0
# A shape stands out from the background by at least this many levels. Green on gray, the faintest, has 118.
MIN_CONTRAST = 40.0
# Below this area, a share of H x W, a frame shows no shape. The smallest drawn one has 1% (a growing triangle).
MIN_AREA = 0.003
# Where less than this share of the pixels around a shape's middle has its colour, it is an outline.
MAX_OUTLINE_FILL = 0.5
# ... if this much of the band inside its edge is covered; less is noise, or no shape at all.
MIN_RIM_COVER = 0.6
# Below this IoU with every template, the shape is none of them (blur 2 px and noise 20 leave 0.74).
MIN_SHAPE_IOU = 0.5


@dataclass(frozen=True)
class Measurement:
    """The measured contents of a clip. `motion` is None for a single frame; any attribute may be "unknown".

    travel_x, travel_y: the fitted way of the centre over the clip, in fractions of width and height (right
    and down are positive). growth: fitted change of the radius over its mean. radius: mean, in fractions of
    the shorter side. shape_iou: the best template's. present: share of frames that show a shape. fill: share of
    the shape's middle that has its colour, median over frames: about 1 filled, about 0 outlined.
    """

    colour: str
    shape: str
    size: str
    motion: str | None
    background: str
    travel_x: float
    travel_y: float
    growth: float
    radius: float
    shape_iou: float
    present: float
    fill: float = 0.0


_COLOUR_NAMES = tuple(COLOURS)
_COLOUR_LAB = measures.lab(np.array(list(COLOURS.values())))
_BACKGROUND_NAMES = tuple(BACKGROUNDS)
_BACKGROUND_LAB = measures.lab(np.array(list(BACKGROUNDS.values())))


def _smooth(frames: np.ndarray) -> np.ndarray:
    """Mean over 3x3 pixels, edges repeated: (T, H, W, ...) to the same."""
    padding = [(0, 0), (1, 1), (1, 1)] + [(0, 0)] * (frames.ndim - 3)
    padded = np.pad(frames, padding, mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]  # T H W+2 ...
    return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / np.float32(9)


def _rim_colour(frames: np.ndarray) -> np.ndarray:
    """Median colour of the frame's rim, 1/32 of the shorter side wide, over all frames: (3,)."""
    width = max(1, min(frames.shape[1:3]) // 32)
    sides = (frames[:, :width], frames[:, -width:], frames[:, :, :width], frames[:, :, -width:])
    pixels = np.concatenate([side.reshape(-1, 3) for side in sides])
    # The median of clipped noise on black is 0 or 1; a mean would be lifted.
    return np.median(pixels, axis=0)


def _soft_mask(smooth: np.ndarray, frames: np.ndarray, background: np.ndarray) -> np.ndarray | None:
    """Coverage of the shape, (T, H, W) in 0..1, or None if nothing stands out."""
    distance = np.linalg.norm(smooth - background, axis=-1)  # T H W
    peak = float(np.quantile(distance, 0.985))
    if peak < MIN_CONTRAST:
        # A small shape in few frames covers less than 1.5% of the clip.
        peak = float(np.quantile(distance, 0.997))
        if peak < MIN_CONTRAST:
            return None
    colour = np.median(smooth[distance >= 0.85 * peak], axis=0)
    axis = colour - background
    return np.clip((frames - background) @ axis / float(axis @ axis), -0.5, 1.5)  # T H W


def _widen(mask: np.ndarray) -> np.ndarray:
    """A boolean mask (T, H, W) and its eight neighbours."""
    import cv2

    square = np.ones((3, 3), np.uint8)
    return np.stack([cv2.dilate(frame.view(np.uint8), square) for frame in mask]).view(bool)


def _main_piece(mask: np.ndarray) -> np.ndarray:
    """Per frame, the connected pixels above one half around the mask's heaviest spot: boolean (T, H, W)."""
    heavy = _smooth(_smooth(_smooth(mask)))
    peak = heavy.reshape(len(mask), -1).argmax(axis=1)
    solid = mask > 0.5
    piece = np.zeros_like(solid)
    piece.reshape(len(mask), -1)[np.arange(len(mask)), peak] = True
    piece, grown = _widen(piece) & solid, piece
    while not np.array_equal(grown, piece):  # as many rounds as the shape's longest way through itself
        piece, grown = _widen(piece) & solid, piece
    return piece


def _name_background(colour: np.ndarray) -> str:
    distance = np.linalg.norm(_BACKGROUND_LAB - measures.lab(colour), axis=-1)
    nearest = int(distance.argmin())
    return _BACKGROUND_NAMES[nearest] if distance[nearest] <= MAX_BACKGROUND_DISTANCE else UNKNOWN


def _name_colour(pixels: np.ndarray, weights: np.ndarray) -> str:
    """The colour most of the shape's pixels are nearest to. pixels: (N, 3), weights: (N,).

    By hue, as decoders wash colours out and darken them before they turn their hue; white by lack of chroma.
    """
    lab = measures.lab(pixels)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    hue = np.arctan2(lab[:, 2], lab[:, 1])
    reference = np.arctan2(_COLOUR_LAB[:, 2], _COLOUR_LAB[:, 1])
    turn = np.abs(np.angle(np.exp(1j * (hue[:, None] - reference[None, :]))))  # N colours
    white = _COLOUR_NAMES.index("white")
    turn[:, white] = np.inf
    dull = np.where(lab[:, 0] >= MIN_WHITE_LIGHTNESS, white, len(_COLOUR_NAMES))
    nearest = np.where(chroma < MIN_CHROMA, dull, turn.argmin(axis=1))
    votes = np.bincount(nearest, weights=weights, minlength=len(_COLOUR_NAMES) + 1)
    return (*_COLOUR_NAMES, UNKNOWN)[int(votes.argmax())]


def _fit_shape(mask: np.ndarray, x: np.ndarray, y: np.ndarray, area: np.ndarray) -> tuple[str, float]:
    """The template of equal centre and area with the best IoU over all frames, and that IoU.

    mask: (T, H, W); x, y: centroids (T,) in fractions; area: (T,) in pixels.
    """
    height, width = mask.shape[1:]
    side = min(height, width)
    best = ("", -1.0)
    for shape in SHAPES:
        radius = np.sqrt(area / AREAS[shape]) / side
        # A triangle's centroid is a third of its half height below the middle of its box.
        drop = EXTENTS[shape][1] * radius / 3 * side / height if shape == "triangle" else 0.0
        template = coverage(shape, x, y - drop, radius, height, width)  # T H W
        shared, joined = np.minimum(mask, template).sum(), np.maximum(mask, template).sum()
        iou = float(shared / max(float(joined), 1e-6))
        if iou > best[1]:
            best = (shape, iou)
    return best if best[1] >= MIN_SHAPE_IOU else (UNKNOWN, best[1])


def _fit_line(values: np.ndarray, time: np.ndarray) -> tuple[float, float]:
    """Least squares of values over time, both (T,): slope, and standard deviation of the rest.

    Zeros if there are too few points for a line.
    """
    centred = time - time.mean()
    spread = float(centred @ centred)
    if spread == 0:
        return 0.0, 0.0
    slope = float(centred @ (values - values.mean())) / spread
    return slope, float((values - values.mean() - slope * centred).std())


def _name_motion(fits: tuple[tuple[float, float], ...]) -> str:
    """The strongest of x, y and growth, given as (slope, rest), each in units of its threshold.

    Still if none reaches its threshold. Unknown if the track strays from its line by more than MAX_STRAY: a
    shape that jumps about neither moves nor stands still.
    """
    units = (MIN_TRAVEL, MIN_TRAVEL, MIN_GROWTH)
    slopes = [slope / unit for (slope, _), unit in zip(fits, units, strict=True)]
    rests = [rest / unit for (_, rest), unit in zip(fits, units, strict=True)]
    strongest = max(range(3), key=lambda k: abs(slopes[k]))
    if abs(slopes[strongest]) < 1:
        return "still" if max(rests) <= MAX_STRAY else UNKNOWN
    if rests[strongest] > MAX_STRAY:
        return UNKNOWN
    return (("left", "right"), ("up", "down"), ("shrink", "grow"))[strongest][slopes[strongest] > 0]


def measure(frames: np.ndarray) -> Measurement:
    """Measures a clip of one shape on a plain background. frames: uint8 RGB (T, H, W, 3), T >= 1, H and W >= 16.

    A clip on which nothing stands out has an unknown colour, shape, size and motion. Raises ValueError for
    another shape or dtype.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or min(frames.shape[:3]) < 1:
        raise ValueError(f"`frames` must be uint8 (T, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")
    num_frames, height, width = frames.shape[:3]
    if min(height, width) < 16:
        raise ValueError(f"`frames` must be at least 16 pixels high and wide, got {height}x{width}")
    pixels = frames.astype(np.float32)
    background = _rim_colour(pixels)
    smooth = _smooth(pixels)
    raw_mask = _soft_mask(smooth, pixels, background)
    named = (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN if num_frames > 1 else None, _name_background(background))
    nothing = Measurement(
        *named, travel_x=0.0, travel_y=0.0, growth=0.0, radius=0.0, shape_iou=0.0, present=0.0
    )
    if raw_mask is None:
        return nothing
    smooth_mask = _smooth(raw_mask)
    # Noise and ghosts far from the shape would pull the centroid and swell the area: only pixels within 2 of
    # the shape's solid ones count.
    piece = _main_piece(smooth_mask)
    near = _widen(_widen(piece))
    mask = np.clip(raw_mask, 0, 1) * near  # T H W
    area = (raw_mask * near).sum(axis=(1, 2))  # T; unclipped, so that noise averages out
    fills = core_fill(raw_mask, piece)  # T
    fill = float(np.nanmedian(fills)) if np.isfinite(fills).any() else 0.0
    if fill < MAX_OUTLINE_FILL and rim_cover(raw_mask, piece) >= MIN_RIM_COVER:
        mask = fill_hulls(mask, piece & (raw_mask > 0.5))
        area = mask.sum(axis=(1, 2))
    shown = ((smooth_mask > 0.5) & near).sum(axis=(1, 2)) >= MIN_AREA * height * width
    shown &= area > 0
    if not shown.any():
        return nothing
    mask, area, smooth_mask, solid = mask[shown], area[shown], smooth_mask[shown], smooth[shown]
    time = (np.linspace(0, 1, num_frames) if num_frames > 1 else np.zeros(1))[shown]
    weight = mask.sum(axis=(1, 2))
    x = (mask.sum(axis=1) @ (np.arange(width) + 0.5)) / weight / width  # T
    y = (mask.sum(axis=2) @ (np.arange(height) + 0.5)) / weight / height  # T
    shape, iou = _fit_shape(mask, x, y, area)
    radius = np.sqrt(area / AREAS.get(shape, AREAS["circle"])) / min(height, width)  # T
    smooth_mask = smooth_mask * near[shown]
    inside = smooth_mask >= min(0.8, 0.9 * float(smooth_mask.max()))
    mean_radius, present = float(radius.mean()), float(shown.mean())
    fits = (_fit_line(x, time), _fit_line(y, time), _fit_line(radius / mean_radius, time))
    motion = None
    if num_frames > 1:
        motion = _name_motion(fits) if present >= MIN_PRESENT else UNKNOWN
    return Measurement(
        colour=_name_colour(solid[inside], smooth_mask[inside]),
        shape=shape,
        size="small" if mean_radius < SIZE_THRESHOLD else "large",
        motion=motion,
        background=nothing.background,
        travel_x=fits[0][0],
        travel_y=fits[1][0],
        growth=fits[2][0],
        radius=mean_radius,
        shape_iou=iou,
        present=present,
        fill=fill,
    )


@dataclass(frozen=True)
class Checked:
    """One clip: the attributes asked for, the measured ones, and which of those asked for are right.

    known: of a clip that was made from pictures.
    """

    name: str
    prompt: str
    asked: dict[str, str]
    verdict: Measurement
    right: dict[str, bool]
    known: KnownCheck | None = None


@dataclass(frozen=True)
class Report:
    """Rates over clips. `counts[attribute]` is (right, asked); "all" counts clips with nothing wrong."""

    items: tuple[Checked, ...]
    counts: dict[str, tuple[int, int]]

    def rate(self, attribute: str) -> float | None:
        """Share right of those asked, in 0..1; None if no prompt asked for it."""
        right, asked = self.counts[attribute]
        return right / asked if asked else None

    @property
    def fill(self) -> float | None:
        """Mean `fill` of the clips that show a shape; None without any."""
        fills = [item.verdict.fill for item in self.items if item.verdict.present > 0]
        return float(np.mean(fills)) if fills else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: rates with counts, then every clip."""
        return {
            "num_clips": len(self.items),
            "fill": self.fill,
            "rates": {
                name: {"rate": self.rate(name), "right": right, "asked": asked}
                for name, (right, asked) in self.counts.items()
            },
            **({} if (known := self.known) is None else {"known": known}),
            "clips": [asdict(item) for item in self.items],
        }

    @property
    def known(self) -> dict[str, Any] | None:
        """Of the clips made from pictures: dB to the given ones, and (right, of) by name; None if there are none."""
        checks = [item.known for item in self.items if item.known is not None]
        if not checks:
            return None
        found: dict[str, Any] = {"num_clips": len(checks)}
        for name in ("first_psnr", "last_psnr"):
            values = [value for check in checks if (value := getattr(check, name)) is not None]
            if values:
                found[name] = {"median": float(np.median(values)), "least": min(values)}
        names = dict.fromkeys(name for check in checks for name in check.right)
        verdicts = {name: [check.right[name] for check in checks if name in check.right] for name in names}
        return found | {"right": {name: (sum(all_), len(all_)) for name, all_ in verdicts.items()}}


def check_clip(
    prompt: str,
    frames: np.ndarray,
    name: str = "",
    asked: Mapping[str, str] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Checked:
    """Judges one clip by its prompt, or by `asked` if the truth is known. Pictures need not move.

    given: the pictures that it was made from, as `known.check_known` takes them.
    """
    verdict = measure(frames)
    wanted = dict(parse_prompt(prompt) if asked is None else asked)
    if verdict.motion is None:
        wanted.pop("motion", None)
    right = {attribute: getattr(verdict, attribute) == value for attribute, value in wanted.items()}
    known = check_known(frames, given, wanted.get("motion")) if given else None
    return Checked(name, prompt, wanted, verdict, right, known)


def summarise(items: Iterable[Checked]) -> Report:
    """Adds up clips. An attribute counts only where it was asked for."""
    items = tuple(items)
    counts = {}
    for attribute in ATTRIBUTES:
        answers = [item.right[attribute] for item in items if attribute in item.right]
        counts[attribute] = (sum(answers), len(answers))
    asked_any = [item for item in items if item.right]
    counts["all"] = (sum(all(item.right.values()) for item in asked_any), len(asked_any))
    return Report(items, counts)


def check_prompts(pairs: Iterable[tuple[str, np.ndarray]]) -> Report:
    """Judges (prompt, frames) pairs, one at a time: a generator keeps memory low. See `measure`."""
    return summarise(check_clip(prompt, frames, str(number)) for number, (prompt, frames) in enumerate(pairs))
