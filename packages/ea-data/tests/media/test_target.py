"""`--fps` and `--size`: the rate and size of written clips."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ea_data.media.cut import Written, write_clip
from ea_data.media.probe import probe
from ea_data.media.target import Target, frame_ticks, read_rate, read_size, time_ticks
from ea_data.protocols import Span
from ea_runtime.cli.main import run as ea
from ea_runtime.video.reader import read_frames as read_all


def numbered(number: int, height: int = 64, width: int = 128) -> np.ndarray:
    """A frame whose brightness is its number, in steps of three."""
    frame = np.full((height, width, 3), 20 + 3 * number, np.uint8)
    frame[:, : width // 8], frame[:, -width // 8 :] = (255, 0, 0), (0, 0, 255)
    return frame


def numbers_of(path: Path) -> list[int]:
    return [
        round((float(frame[:, frame.shape[1] // 4 : -frame.shape[1] // 4].mean()) - 20) / 3)
        for frame in read_all(path)
    ]


def encode(path: Path, times: list[int] | None = None, fps: Fraction | int = 24, **shape: int) -> Path:
    """72 numbered frames. times: in milliseconds."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps, options={"crf": "4", "g": "24"})
        first = numbered(0, **shape)
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(72):
            frame = av.VideoFrame.from_ndarray(numbered(number, **shape), format="rgb24").reformat(
                format="yuv420p"
            )
            frame.pts, frame.time_base = number, 1 / Fraction(fps)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, form: Target, span: tuple[float, float] | None = None) -> tuple[Written, Path]:
    from ea_data.run.worker import clip_entry

    found = probe(path, path.parent)
    info = found.info
    entry = clip_entry(Span(*(span or (0.0, info.seconds))), info, found.content, found.timeline, "test")
    record = {**asdict(info), **entry, "path": str(path), "fps_exact": str(info.fps)}
    target = path.parent / "clip.mp4"
    return write_clip(record, path.parent, target, form=form), target


@pytest.mark.parametrize(
    ("fps", "wanted", "count"),
    [
        (24, "12", 36),
        (24, "30", 90),
        (24, "24000/1001", 72),
        (30, "24", 58),
        (25, "50", 144),
        (24, "60", 180),
    ],
)
def test_frames_are_repeated_or_left_out_at_their_times(tmp_path: Path, fps: int, wanted: str, count: int):
    written, clip = cut(encode(tmp_path / "a.mp4", fps=fps), Target(Fraction(wanted)))
    assert (written.num_frames, written.fps) == (count, wanted)
    rate = Fraction(wanted)
    numbers = numbers_of(clip)
    # each tick shows the last frame whose time is nearest to it or to a tick before
    expected = [
        max(n for n in range(72) if int(n * rate / fps + Fraction(1, 2)) <= tick) for tick in range(count)
    ]
    assert numbers == expected
    assert max(abs(n / fps - tick / rate) for tick, n in enumerate(numbers)) <= 1 / fps
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == rate


def test_a_part_of_a_file_at_another_rate(tmp_path: Path):
    written, clip = cut(encode(tmp_path / "a.mkv"), Target(Fraction(12)), (1.0, 2.0))
    assert (written.num_frames, numbers_of(clip)) == (12, list(range(24, 48, 2)))


def test_a_variable_rate_becomes_the_wanted_one(tmp_path: Path):
    times = [40 * number + (13 if number % 2 else 0) + (400 if number >= 36 else 0) for number in range(72)]
    written, clip = cut(encode(tmp_path / "a.mkv", times), Target(Fraction(50)))
    numbers = numbers_of(clip)
    assert written.num_frames == len(numbers) == round((times[-1] / 1000 + 0.04) * 50)
    shown = np.array([times[number] / 1000 for number in numbers])
    ticks = np.arange(len(numbers)) / 50
    assert (shown - ticks).max() <= 0.5 / 50 + 1e-3  # none too early
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("32", (64, 32)),
        ("128", (256, 128)),
        ("64x64", (64, 64)),
        ("128x32", (128, 32)),
        ("128x64", (128, 64)),
    ],
)
def test_sizes(tmp_path: Path, size: str, expected: tuple[int, int]):
    written, clip = cut(encode(tmp_path / "a.mp4"), Target.of("", size))
    frames = np.stack(list(read_all(clip)))
    assert (written.width, written.height) == expected
    assert frames.shape == (72, *expected[::-1], 3)
    assert numbers_of(clip) == list(range(72))
    is_cropped_across = expected[0] < 2 * expected[1]
    assert bool(frames[0, :, 2, 0].mean() < 100) == is_cropped_across
    assert bool(frames[0, :, -3, 2].mean() < 100) == is_cropped_across


def test_odd_and_turned_sources(tmp_path: Path, draw_video: Any):
    path = draw_video(tmp_path / "a.mp4", 24, size=(96, 128), rotation=90)
    written, clip = cut(path, Target.of("", "64x96"))
    assert (written.width, written.height) == (64, 96)
    truth = np.stack(list(read_all(path))).astype(int)[:, ::1]
    assert np.abs(np.stack(list(read_all(clip))).mean((0, 1, 2)) - truth.mean((0, 1, 2))).max() < 12
    path = draw_video(tmp_path / "b.mkv", 24, size=(97, 129), codec="ffv1", pix_fmt="yuv444p")
    written, _ = cut(path, Target.of("", "64"))
    assert (written.width, written.height) == (86, 64)


def test_what_already_fits_is_copied(tmp_path: Path):
    path = encode(tmp_path / "a.mp4")
    written, clip = cut(path, Target(Fraction(24), 128, 64))
    assert written.luma_error == 0
    assert np.array_equal(np.stack(list(read_all(clip))), np.stack(list(read_all(path))))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (24, "24"),
        ("23.976", "24000/1001"),
        (29.97, "30000/1001"),
        ("59.94", "60000/1001"),
        ("30000/1001", "30000/1001"),
    ],
)
def test_rates_as_people_write_them(given: Any, expected: str):
    assert read_rate(given) == expected


@pytest.mark.parametrize("given", ["0", "-24", "abc", "1/0", "1000", "nan", "inf"])
def test_rates_that_cannot_be(given: str):
    with pytest.raises(ValueError, match="1 to 240 frames a second, such as 24"):
        read_rate(given)


@pytest.mark.parametrize(
    "given", ["0", "-64", "511", "512x287", "4", "x288", "512x", "512*288", "99999", "1e3"]
)
def test_sizes_that_cannot_be(given: str):
    with pytest.raises(ValueError, match=r"short side such as 512.*512x288.*even"):
        read_size(given)


def test_ticks():
    assert frame_ticks(4, Fraction(24), Fraction(24)) == [0, 1, 2, 3, 4]
    assert frame_ticks(1, Fraction(60), Fraction(1)) == [0, 1]
    assert time_ticks(np.array([0.0, 0.5]), Fraction(2), Fraction(2)) == [0, 1, 2]


# -- the command


def test_a_set_of_one_rate_and_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw, out = tmp_path / "raw", tmp_path / "set"
    raw.mkdir()
    encode(raw / "a.mp4")
    encode(raw / "b.mp4", fps=30, height=96, width=128)
    Image.fromarray(numbered(3)).save(raw / "c.png")
    profile = tmp_path / "p.toml"
    profile.write_text('[split]\nname = "whole"\n')
    words = [
        "data",
        "run",
        str(raw),
        "-o",
        str(out),
        "--profile",
        str(profile),
        "--workers",
        "1",
        "--pictures",
    ]
    assert ea([*words, "--fps", "12", "--size", "96x48", "--no-report"]) == 0
    entries = json.loads((out / "dataset.json").read_text())
    assert [(one["width"], one["height"]) for one in entries] == [(96, 48)] * 3
    assert sorted(one["num_frames"] for one in entries) == [1, 29, 36]
    assert sorted(one.get("fps", 0) for one in entries) == [0, 12, 12]  # a picture has none
    for one in entries:
        frames = np.stack(list(read_all(out / one["file_path"])))
        assert frames.shape == (one["num_frames"], 48, 96, 3)
    # the same clips at another rate
    assert ea([*words, "--fps", "24", "--no-report"]) == 0
    entries = json.loads((out / "dataset.json").read_text())
    assert sorted((one["width"], one["height"], one["num_frames"]) for one in entries) == [
        (128, 64, 1),
        (128, 64, 72),
        (128, 96, 58),
    ]
    assert len(list(out.glob("clips/*/*"))) == 3
    capsys.readouterr()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--fps", "fast"), ("--fps", "0"), ("--size", "511"), ("--size", "wide"), ("--size", "0")],
)
def test_nonsense_is_refused_in_a_line(tmp_path: Path, capsys: Any, option: str, value: str):
    (tmp_path / "raw").mkdir()
    assert ea(["data", "run", str(tmp_path / "raw"), "-o", str(tmp_path / "set"), option, value]) != 0
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert f"clips.{option[2:]}" in told[0]
    assert value in told[0]
    assert "such as" in told[0]
