"""Lines about the buckets of a set, and where windows start."""

from __future__ import annotations

from ea_runtime.training.data.dataset import Bucket, bucket_name, draw_start, short_videos


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


def test_windows_start_where_runs_had_them() -> None:
    """Rows: samples 0 to 2, columns: seeds 0 to 2. Each pair draws by itself; a resume must draw the same."""
    found = [[draw_start(range(100), index, seed) for seed in range(3)] for index in range(3)]
    assert found == [[85, 47, 83], [52, 51, 29], [97, 64, 50]]
    assert draw_start(range(8, 208, 2), 2, 1) == 8 + 2 * 64
    assert draw_start(range(7, 8), 2, 1) == 7
