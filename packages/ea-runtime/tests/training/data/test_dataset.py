"""Lines about the buckets of a set."""

from __future__ import annotations

from ea_runtime.training.data.dataset import Bucket, bucket_name, short_videos


def test_names() -> None:
    assert bucket_name(Bucket("video", 18, 32, 64)) == "video 64x32, 18 frames"
    assert bucket_name(Bucket("image", 1, 32, 64)) == "image 64x32"
    assert bucket_name(("any", 3)) == "('any', 3)"


def test_short_videos() -> None:
    buckets = [Bucket("image", 1, 8, 8), None, *(Bucket("video", n, 8, 8) for n in (18, 9, 1, 9))]
    assert short_videos(buckets, 18) == (
        "3 of 4 videos are too short for 18 frames and give fewer (1 give 1, 2 give 9)"
    )
    assert short_videos(buckets, 1) is None
    assert short_videos(buckets[:2], 18) is None
    many = [Bucket("video", n, 8, 8) for n in range(9, 99, 9)]
    assert str(short_videos(many, 99)).endswith("(1 give 9, 1 give 18, 1 give 27, 1 give 36, ...)")
