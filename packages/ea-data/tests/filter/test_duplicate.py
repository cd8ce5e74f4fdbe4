"""`duplicates` and `duplicate`: copies are found and the largest is kept, whatever the order of work."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest

from ea_data.draw.raw import RawScene, draw_picture
from ea_data.filter.duplicate import DuplicateFilter, DuplicateOptions, HashIndex
from ea_data.protocols import Frames
from ea_data.score.duplicates import HashOptions, HashScorer
from ea_runtime.errors import UserError


def gray(seed: int) -> np.ndarray:
    picture = draw_picture(RawScene((seed, 0, 0), 1, 0.0, "left", seed % 8, "scenes"), 180, 320, 320)
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def hash_of(*frames: np.ndarray) -> str:
    score = HashScorer(HashOptions(frames=len(frames)))(Frames(np.stack(frames), np.arange(len(frames))), {})
    return score.detail["hash"]


def bits(text: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))


def distance(one: str, other: str) -> int:
    return int((bits(one) != bits(other)).sum())


def record(clip_id: str, text: str, width: int = 320, height: int = 180) -> dict:
    scores = {"duplicates": {"value": 0.5, "detail": {"hash": text}}}
    return {"clip_id": clip_id, "width": width, "height": height, "scores": scores}


def judge(records: list[dict], least: float = 4.0) -> dict[str, bool]:
    check = DuplicateFilter(DuplicateOptions(distance=least))
    ordered = sorted(records, key=check.order)
    return {one["clip_id"]: d.is_kept for one, d in zip(ordered, check.judge(iter(ordered)), strict=True)}


def test_a_hash_survives_what_a_copy_goes_through() -> None:
    picture = gray(1)
    coded = cv2.imdecode(
        cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_GRAYSCALE
    )
    for copy in (
        cv2.resize(picture, (200, 120)),
        np.clip(picture * 0.8 + 20, 0, 255).astype(np.uint8),
        coded,
    ):
        assert distance(hash_of(picture), hash_of(copy)) <= 4
    others = [distance(hash_of(gray(a)), hash_of(gray(b))) for a in range(8) for b in range(a)]
    assert min(others) > 12


def test_a_clip_shorter_than_the_frames_asked_for_has_a_hash_of_full_length() -> None:
    score = HashScorer(HashOptions(frames=4))(Frames(gray(1)[None], np.zeros(1)), {})
    assert len(score.detail["hash"]) == 4 * 16


def test_the_largest_of_a_family_stays() -> None:
    picture = gray(2)
    family = [
        record("a", hash_of(cv2.resize(picture, (160, 90))), 160, 90),
        record("b", hash_of(picture), 320, 180),
        record("c", hash_of(cv2.resize(picture, (240, 136))), 240, 136),
        record("d", hash_of(gray(3))),
    ]
    for order in range(10):
        random.Random(order).shuffle(family)
        assert judge(family) == {"a": False, "b": True, "c": False, "d": True}


def test_of_equals_the_smaller_id_stays_and_the_reason_names_it() -> None:
    records = [record(name, hash_of(gray(4))) for name in ("y", "x", "z")]
    assert judge(records) == {"x": True, "y": False, "z": False}
    check = DuplicateFilter(DuplicateOptions())
    reasons = [d.reason for d in check.judge(sorted(records, key=check.order))]
    assert reasons[1] == "looks like x: 0 of 64 bits differ"


def test_a_filter_keeps_nothing_from_one_set_to_the_next() -> None:
    check = DuplicateFilter(DuplicateOptions())
    for _ in range(2):
        assert [d.is_kept for d in check.judge([record("a", hash_of(gray(5)))])] == [True]


def test_a_record_without_a_hash_is_an_error() -> None:
    check = DuplicateFilter(DuplicateOptions())
    for wrong in (
        {},
        {"duplicates": None},
        {"duplicates": {"detail": {}}},
        {"duplicates": {"detail": {"hash": "ab"}}},
    ):
        with pytest.raises(UserError, match="no hash"):
            list(check.judge([{"clip_id": "a", "width": 1, "height": 1, "scores": wrong}]))


@pytest.mark.parametrize(
    ("num_words", "most"), [(4, 0), (4, 3), (4, 12), (4, 16), (4, 40), (4, 44), (1, 0), (1, 4), (1, 11)]
)
def test_the_index_finds_what_looking_at_all_finds(num_words: int, most: int) -> None:
    rng = np.random.default_rng(most)
    index, kept = HashIndex(num_words, most), []
    near = 0
    for number in range(400):
        if kept and rng.uniform() < 0.6:  # a few bits from one that is there
            words = np.packbits(
                np.unpackbits(kept[rng.integers(len(kept))].view(np.uint8))
                ^ (rng.permutation(64 * num_words) < rng.integers(0, 15 * num_words))
            ).view(np.uint64)
        else:
            words = rng.integers(0, 2**63, num_words).astype(np.uint64)
        distances = [int(np.bitwise_count(words ^ other).sum()) for other in kept]
        expected = min(distances, default=999)
        found = index.nearest(words)
        if expected > most:
            assert found is None
            index.add(words, str(number))
            kept.append(words)
        else:
            near += 1
            assert found is not None
            assert found[1] == expected
    assert near > 0
