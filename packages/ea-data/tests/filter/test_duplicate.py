"""`duplicates` and `duplicate`: copies are found and the best is kept, whatever the order of work."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ea_data.components import make
from ea_data.draw.raw import RawScene, draw_picture
from ea_data.filter.duplicate import DuplicateFilter, DuplicateOptions
from ea_data.media.signature import RATE, Signature, sign
from ea_data.protocols import Decision, Frames
from ea_data.score.duplicates import SignatureOptions, SignatureScorer
from ea_runtime.errors import UserError

FPS, HEIGHT, WIDTH = 12, 90, 160


def pan(seed: int, seconds: float = 4, start: float = 0, fps: float = FPS) -> np.ndarray:
    """A clip of a camera that goes over a texture: (T, H, W, 3)."""
    texture = draw_picture(RawScene((seed, 0, 0), 1, 0.0, "left", seed % 8, "scenes"), 120, 480, WIDTH)
    places = [int(20 * (start + number / fps)) for number in range(round(seconds * fps))]
    return np.stack([texture[15 : 15 + HEIGHT, x : x + WIDTH] for x in places])


def room(person: int, way: int = 1, seconds: float = 4) -> np.ndarray:
    """A still room in which something of its own size and colour moves to and fro."""
    back = draw_picture(RawScene((99, 0, 0), 1, 0.0, "left", 3, "scenes"), HEIGHT, WIDTH, WIDTH)
    colour = tuple(int(level) for level in np.random.default_rng(person).integers(0, 255, 3))
    frames = []
    for number in range(round(seconds * FPS)):
        x = 80 + round(way * 50 * np.sin(number / FPS * (1 + 0.4 * person) + person))
        half = 8 + 5 * (person % 3)
        frame = cv2.rectangle(back.copy(), (x - half, 30), (x + half, 88), colour, -1)
        frames.append(frame)
    return np.stack(frames)


def score(pixels: np.ndarray, fps: float = FPS) -> dict[str, Any]:
    chosen = np.unique(np.round(np.arange(0, len(pixels) / fps - 1e-9, 1 / RATE) * fps).astype(int))
    chosen = chosen[chosen < len(pixels)]
    scored = SignatureScorer(SignatureOptions())(Frames(pixels[chosen], chosen / fps), {})
    return {"value": scored.value, "detail": scored.detail}


def record(clip_id: str, pixels: np.ndarray, fps: float = FPS, **other: Any) -> dict[str, Any]:
    height, width = pixels.shape[1:3]
    clip = {
        "clip_id": clip_id,
        "source": f"{clip_id}.mp4",
        "start": 2.0,
        "end": 2.0 + len(pixels) / fps,
        "width": width,
        "height": height,
        "codec": "h264",
        "bits": 100_000 * len(pixels),
        "is_picture": False,
    }
    return {**clip, **other, "scores": {"duplicates": score(pixels, fps)}}


def decide(records: list[dict[str, Any]], **options: Any) -> dict[str, Decision]:
    check = DuplicateFilter(DuplicateOptions(**options))
    ordered = sorted(records, key=check.order)
    return {one["clip_id"]: d for one, d in zip(ordered, check.judge(iter(ordered)), strict=True)}


def judge(records: list[dict[str, Any]], **options: Any) -> dict[str, bool]:
    return {name: decision.is_kept for name, decision in decide(records, **options).items()}


def jpeg(frames: np.ndarray) -> np.ndarray:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 25]
    return np.stack([cv2.imdecode(cv2.imencode(".jpg", one, quality)[1], cv2.IMREAD_COLOR) for one in frames])


def logo(frames: np.ndarray) -> np.ndarray:
    frames = frames.copy()
    frames[:, 4:16, 4:30] = (250, 250, 250)
    return frames


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "smaller": lambda frames: np.stack(
        [cv2.resize(one, (112, 64), interpolation=cv2.INTER_AREA) for one in frames]
    ),
    "narrower": lambda frames: np.stack(
        [cv2.resize(one, (120, 90), interpolation=cv2.INTER_AREA) for one in frames]
    ),
    "compressed": jpeg,
    "darker": lambda frames: np.clip(frames * 0.7 + 8, 0, 255).astype(np.uint8),
    "grey": lambda frames: np.repeat((frames @ (0.299, 0.587, 0.114)).astype(np.uint8)[..., None], 3, 3),
    "cropped": lambda frames: frames[:, 2:-1, 1:-3],
    "boxed": lambda frames: np.pad(frames, ((0, 0), (12, 12), (0, 0), (0, 0))),
    "pillared": lambda frames: np.pad(frames, ((0, 0), (0, 0), (20, 20), (0, 0))),
    "logo": logo,
    "noisy": lambda frames: np.clip(
        frames + np.random.default_rng(0).normal(0, 10, frames.shape), 0, 255
    ).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("film", [lambda: pan(1), lambda: room(1)], ids=["pan", "room"])
def test_a_changed_copy_falls(change: str, film: Callable[[], np.ndarray]) -> None:
    frames = film()
    kept = judge([record("a", frames), record("b", CHANGES[change](frames), bits=1)])
    assert sorted(kept.values()) == [False, True]


@pytest.mark.parametrize("fps", [24, 25, 30])
def test_another_cut_at_another_rate_falls(fps: int) -> None:
    one, other = pan(1, 6, 0, 24), pan(1, 6.5, 1.5, fps)
    decisions = decide([record("a", one, 24), record("b", other, fps, bits=1)])
    assert decisions["a"].is_kept
    assert not decisions["b"].is_kept
    # the file, the clip's span in it, and the place of the run
    found = re.search(r"a\.mp4, clip 2\.00 to 8\.00 s, from (.*) to (.*) s", decisions["b"].reason)
    assert found is not None
    assert [float(text) for text in found.groups()] == pytest.approx([3.5, 8], abs=0.3)


def test_what_is_less_than_the_share_of_the_shorter_clip_stays() -> None:
    clips = [record("a", pan(1, 4)), record("b", pan(1, 4, 2.5))]
    assert judge(clips) == {"a": True, "b": True}
    assert judge(clips, share=0.3) == {"a": True, "b": False}


@pytest.mark.parametrize(
    "other",
    [lambda: pan(2), lambda: room(2), lambda: room(1, -1), lambda: room(4)],
    ids=["other film", "other person", "other way", "third person"],
)
def test_another_film_stays(other: Callable[[], np.ndarray]) -> None:
    assert judge([record("a", room(1)), record("b", other()), record("c", pan(1))]) == dict.fromkeys(
        "abc", True
    )


def test_equal_shapes_in_other_colours_stay() -> None:
    frames = pan(1)
    assert judge([record("a", frames), record("b", frames[..., ::-1])]) == {"a": True, "b": True}


def test_colours_are_compared_where_the_clips_meet() -> None:
    film = pan(1, 8)
    film[: 4 * FPS] = film[: 4 * FPS, ..., ::-1]
    end = film[4 * FPS :]
    assert judge([record("a", film), record("b", end, bits=1)]) == {"a": True, "b": False}
    assert judge([record("a", film), record("b", end[..., ::-1], bits=1)]) == {"a": True, "b": True}


def test_flat_clips_are_no_copies_of_each_other() -> None:
    black, gray = np.zeros((48, HEIGHT, WIDTH, 3), np.uint8), np.full((48, HEIGHT, WIDTH, 3), 90, np.uint8)
    assert judge([record("a", black), record("b", black), record("c", gray)]) == dict.fromkeys("abc", True)


def test_a_still_clip_and_its_copy() -> None:
    still = np.repeat(room(1)[:1], 48, 0)
    assert judge([record("a", still), record("b", jpeg(still), bits=1)]) == {"a": True, "b": False}
    assert judge([record("a", still), record("b", room(1))]) == {"a": True, "b": True}
    # a still of the mean frame of a clip in which something moves
    mean = np.repeat(room(1).mean(0, keepdims=True).round().astype(np.uint8), 48, 0)
    assert judge([record("a", mean), record("b", room(1))]) == {"a": True, "b": True}


def test_pictures_are_compared_with_pictures() -> None:
    picture = pan(1)[:1]
    clips = [
        record("a", picture, is_picture=True, end=2.0),
        record("b", jpeg(picture), is_picture=True, end=2.0, bits=1),
        record("c", pan(2)[:1], is_picture=True, end=2.0),
        record("d", np.repeat(picture, 48, 0)),
    ]
    assert judge(clips) == {"a": True, "b": False, "c": True, "d": True}


def test_the_best_of_a_family_stays_whatever_the_order() -> None:
    """Colour before pixels, pixels before bits, bits before the codec, the codec before clip_id."""
    frames = pan(2)
    large = np.stack([cv2.resize(one, (240, 136)) for one in frames])
    family = [
        record("e", CHANGES["grey"](large), bits=9**9),
        record("d", frames, bits=9**9),
        record("c", large, bits=8_000),
        record("b", large, bits=9_000, codec="vp8"),
        record("f", large, bits=9_000, codec="hevc"),
        record("g", large, bits=9_000, codec="hevc"),
        record("z", pan(3)),
    ]
    check = DuplicateFilter(DuplicateOptions())
    assert [one["clip_id"] for one in sorted(family, key=check.order)] == list("fgbcdze")
    for order in range(5):
        random.Random(order).shuffle(family)
        assert [name for name, is_kept in judge(family).items() if is_kept] == ["f", "z"]


def test_bits_count_by_the_second() -> None:
    """The shorter of two cuts is the better one if each of its seconds has more bits."""
    cuts = [record("a", pan(2, 4), bits=80_000), record("b", pan(2, 3), bits=70_000)]
    assert judge(cuts) == {"b": True, "a": False}


def test_bars_are_no_pixels() -> None:
    frames = pan(2)
    boxed = np.pad(frames, ((0, 0), (20, 20), (0, 0), (0, 0)))
    assert judge([record("a", boxed, bits=1), record("b", frames)]) == {"a": False, "b": True}


def test_a_chain_of_cuts_is_judged_by_its_kept_clip() -> None:
    """The first and the last share too little; the one between shares most with each."""
    first, middle, last = (
        record(name, pan(1, 5, start)) for name, start in (("a", 0), ("b", 1.8), ("c", 3.6))
    )
    assert judge([first, middle, last]) == {"a": True, "b": False, "c": True}
    better = {**middle, "bits": 9**9}
    assert judge([first, better, last]) == {"a": False, "b": True, "c": False}


def test_a_signature_is_small_and_comes_back() -> None:
    detail = score(pan(1, 6))["detail"]
    signature = Signature.unpack(detail["signature"])
    assert signature.luma.shape[0] == 24
    assert signature.colour.shape[0] == 6
    assert Signature.unpack(signature.pack()).pack() == detail["signature"]
    assert len(detail["signature"]) < 4000
    for wrong in ("", "!", detail["signature"][:-9]):
        with pytest.raises(ValueError, match=r"."):
            Signature.unpack(wrong)


def test_a_signature_begins_with_its_clip() -> None:
    """Whatever the time of its first frame is."""
    frames, seconds = pan(1, 3), np.arange(3 * FPS) / FPS
    assert sign(frames, seconds + 40)[0].pack() == sign(frames, seconds)[0].pack()


def test_a_filter_keeps_nothing_from_one_set_to_the_next(tmp_path: Path) -> None:
    check = DuplicateFilter(DuplicateOptions())
    check.work_in(tmp_path)
    for _ in range(2):
        assert [decision.is_kept for decision in check.judge([record("a", pan(5))])] == [True]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [None, {}, {"value": 1.0, "detail": {"hash": "ab" * 32}}])
def test_a_record_without_a_signature_is_an_error(wrong: Any) -> None:
    clip = {"clip_id": "a", "width": 1, "height": 1, "scores": {"duplicates": wrong}}
    with pytest.raises(UserError, match=r"clip a has no signature.*ea data score"):
        list(DuplicateFilter(DuplicateOptions()).judge([clip]))


def test_a_damaged_signature_is_an_error() -> None:
    clip = record("a", pan(1))
    clip["scores"]["duplicates"]["detail"]["signature"] = "nothing"
    with pytest.raises(UserError, match=r"clip a.*cannot be read.*ea data run"):
        list(DuplicateFilter(DuplicateOptions()).judge([clip]))


@pytest.mark.parametrize(
    ("kind", "name", "table"),
    [("scorers", "duplicates", {"frames": 4}), ("filters", "duplicate", {"distance": 4.0})],
)
def test_options_of_version_1_say_what_to_do(kind: str, name: str, table: dict[str, Any]) -> None:
    (key,) = table
    with pytest.raises(UserError, match=rf"`{key}`.*version 1.*ea data score SET") as error:
        make(kind, name, table)
    assert "\n" not in str(error.value)
    assert key not in make(kind, name, {}).options.model_dump(mode="json")
