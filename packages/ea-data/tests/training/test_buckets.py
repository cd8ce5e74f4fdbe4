"""The published aspect ratios, the frames that fit, and that no sample is lost on the way to a batch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_data.training.buckets import ASPECT_RATIOS, bucket_size, fit_frames, window_starts
from ea_data.training.dataset import EasyAnimateSet
from ea_runtime.training.data.dataset import SetOptions
from ea_runtime.training.data.order import BatchOrder

#: EasyAnimate V2's ASPECT_RATIO_512, its keys
PUBLISHED = """
0.25 0.26 0.27 0.28 0.32 0.33 0.35 0.4 0.42 0.48 0.5 0.52 0.57 0.6 0.68 0.72 0.78 0.82 0.88 0.94
1.0 1.07 1.13 1.21 1.29 1.38 1.46 1.67 1.75 2.0 2.09 2.4 2.5 2.89 3.0 3.11 3.62 3.75 3.88 4.0
"""


def test_the_forty_published_ratios() -> None:
    assert list(ASPECT_RATIOS) == [float(word) for word in PUBLISHED.split()]
    assert len(ASPECT_RATIOS) == 40
    assert ASPECT_RATIOS[0.25] == (256, 1024)
    assert ASPECT_RATIOS[0.52] == (352, 672)
    assert ASPECT_RATIOS[1.75] == (672, 384)
    assert all(h % 32 == w % 32 == 0 and abs(h * w / 512**2 - 1) < 0.15 for h, w in ASPECT_RATIOS.values())


@pytest.mark.parametrize(
    ("height", "width", "side", "expected"),
    [
        (720, 1280, 512, (384, 672)),
        (1280, 720, 512, (672, 384)),
        (480, 480, 768, (768, 768)),
        (1080, 1920, 384, (288, 496)),  # 384 / 512 x (384, 672) = (288, 504), down to 16
        (100, 9000, 512, (256, 1024)),
        (64, 64, 0, (64, 64)),
        (721, 1283, 0, (720, 1280)),
        (5, 5, 0, (16, 16)),
        (64, 64, 64, (64, 64)),
    ],
)
def test_sizes(height: int, width: int, side: int, expected: tuple[int, int]) -> None:
    assert bucket_size(height, width, side) == expected


def test_sizes_of_a_model_that_wants_multiples_of_64() -> None:
    assert bucket_size(720, 1280, 512, multiple=64) == (384, 640)
    assert bucket_size(10, 10, 0, multiple=64) == (64, 64)


def test_windows() -> None:
    assert window_starts(20, 9, 1, 1.0, 1) == range(12)
    assert list(window_starts(27, 18, 1, 1.0, 9)) == [0, 9]
    assert list(window_starts(100, 9, 1, 0.8, 9)) == [18, 27, 36, 45, 54, 63, 72, 81]
    assert list(window_starts(20, 5, 4, 1.0, 1)) == [0, 1, 2, 3]
    assert not window_starts(8, 9, 1, 1.0, 1)
    assert list(window_starts(5, 1, 1, 0.1, 9)) == [0]


@given(
    st.integers(1, 400),
    st.sampled_from([1, 9, 18, 36, 144]),
    st.integers(1, 4),
    st.floats(0.05, 1.0),
    st.sampled_from([1, 9, 18]),
)
@settings(max_examples=300, deadline=None)
def test_what_fits_is_as_long_as_it_can_be(
    count: int, most: int, stride: int, middle: float, multiple: int
) -> None:
    found = fit_frames(count, most, 9, stride, middle, multiple)
    assert found == most or found == 1 or found % 9 == 0
    starts = window_starts(count, found, stride, middle, multiple)
    assert starts
    assert starts[0] >= 0
    assert starts[-1] + (found - 1) * stride < count
    assert all(start % multiple == 0 for start in starts)
    longer = [n for n in (*range(9, most, 9), most) if n > found]
    assert not any(window_starts(count, n, stride, middle, multiple) for n in longer)


rows = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["image", "video"]),
            "width": st.integers(1, 3000),
            "height": st.integers(1, 3000),
            "num_frames": st.integers(1, 300),
        }
    ),
    min_size=1,
    max_size=60,
)


@given(rows, st.integers(1, 9), st.integers(1, 3), st.sampled_from([0, 64, 512]), st.integers(0, 1 << 40))
@settings(max_examples=60, deadline=None)
def test_every_sample_comes_once_an_epoch(
    listed: list[dict[str, Any]], batch_size: int, repeat: int, size: int, seed: int
) -> None:
    """For any set: nothing lost or doubled, batches of one bucket, and any position can be gone to directly."""
    with TemporaryDirectory() as folder:
        full = [{**row, "file_path": f"{i}.bin", "text": "a"} for i, row in enumerate(listed)]
        (Path(folder) / "dataset.json").write_text(json.dumps(full))
        options = SetOptions(path=folder, num_frames=36, size=size, repeat_videos=repeat, decode="inline")
        data = EasyAnimateSet(options)
        buckets = data.buckets()
    videos = sum(row["type"] == "video" for row in listed)
    assert len(data) == len(buckets) == len(listed) + (repeat - 1) * videos
    for index, bucket in enumerate(buckets):
        item = data.item(index)
        assert bucket.kind == ("video" if item.is_video else "image")
        assert bucket.num_frames in ((1, 9, 18, 27, 36) if item.is_video else (1,))
        assert bucket.height % 16 == bucket.width % 16 == 0
    order = BatchOrder(buckets, batch_size, seed)
    epochs = [
        [order.batch(e * order.batches_per_epoch + i) for i in range(order.batches_per_epoch)]
        for e in range(2)
    ]
    for batches in epochs:
        assert Counter(index for batch in batches for index in batch) == Counter(range(len(data)))
        assert all(len({buckets[index] for index in batch}) == 1 for batch in batches)
        assert all(0 < len(batch) <= batch_size for batch in batches)
    number = seed % (2 * order.batches_per_epoch)
    assert (
        BatchOrder(buckets, batch_size, seed).batch(number)
        == [b for batches in epochs for b in batches][number]
    )


def test_a_dropped_last_batch_would_be_found_out() -> None:
    """The broken twin of the property above."""
    order = BatchOrder(["a"] * 5, 2, 0)
    seen = [
        index for i in range(order.batches_per_epoch) for index in order.batch(i) if len(order.batch(i)) == 2
    ]
    assert Counter(seen) != Counter(range(5))
