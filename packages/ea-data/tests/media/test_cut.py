"""Clips as files: when packets and pictures are kept as they are, decoding times, formats, and what is written down."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ea_data.media import cut
from ea_data.media.containers import BadFile
from ea_data.media.cut import Written, measure, suffix_of, write_clip
from ea_data.media.probe import probe
from ea_data.media.target import Target
from ea_data.protocols import Span

Record = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, draw_video: Callable[..., Path]) -> Record:
    """The record of a whole H.264 file of 12 frames, 64x48 at 24 per second, with B-frames."""
    from ea_data.run.worker import clip_entry

    folder = tmp_path_factory.mktemp("whole")
    path = draw_video(folder / "a.mkv", 12, size=(48, 64), options={"bf": "2"})
    found = probe(path, folder)
    entry = clip_entry(Span(0.0, found.info.seconds), found.info, found.content, found.timeline, "test")
    return {**asdict(found.info), **entry, "path": str(path), "fps_exact": str(found.info.fps)}


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]


# -- what is kept as it is


@pytest.mark.parametrize(
    ("is_picture", "codec", "suffix"),
    [
        (False, "png", ".mp4"),
        (True, "jpeg", ".jpg"),
        (True, "png", ".png"),
        (True, "webp", ".webp"),
        (True, "tiff", ".png"),
    ],
)
def test_suffixes(is_picture: bool, codec: str, suffix: str) -> None:
    assert suffix_of({"is_picture": is_picture, "codec": codec}) == suffix


@pytest.mark.parametrize(
    ("change", "form"),
    [
        *(
            (change, Target())
            for change in (
                {"rotation": 90},
                {"is_variable_rate": True},
                {"codec": "hevc"},
                {"width": 65},
                {"height": 49},
                {"width": 65, "height": 49},
                {"is_whole": False},
                {"is_counted": True},
                {"sample_aspect": "2"},
                {"transfer": "pq"},
                {"rotation": 180, "is_variable_rate": True, "codec": "vp9"},
            )
        ),
        ({}, Target(fps=Fraction(25))),
        ({}, Target(height=32)),
    ],
)
def test_packets_are_copied_only_if_frames_are_shown_as_they_are_coded(
    whole: Record, change: Record, form: Target
) -> None:
    assert cut._may_copy(whole, Target()) is True
    assert cut._may_copy(whole | {"width": 66, "height": 50}, Target(fps=Fraction(24))) is True
    assert cut._may_copy(whole | change, form) is False


def test_a_whole_file_is_copied_and_else_encoded(
    whole: Record, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, target = Path(whole["path"]), tmp_path / "a.mp4"
    written = write_clip(whole, path.parent, target)
    assert written == Written(64, 48, "24", 12, 0.0, *measure(target))
    assert all(map(np.array_equal, frames_of(target), frames_of(path)))
    with av.open(str(path)) as source, av.open(str(target)) as copy:
        packets = [[bytes(p) for p in one.demux(video=0) if p.size] for one in (source, copy)]
        assert [len(packet) for packet in packets[0]] == [len(packet) for packet in packets[1]]
    # encoded: other bits, the frames of the span
    part = write_clip(whole | {"is_whole": False}, path.parent, tmp_path / "b.mp4")
    assert (part.width, part.height, part.fps, part.num_frames) == (64, 48, "24", 12)
    assert 0 < part.luma_error < 3
    # packets that fail their proof
    real = cut._decoding_times
    monkeypatch.setattr(cut, "_decoding_times", lambda times: [3 * (time or 0) for time in real(times)])
    again = write_clip(whole, path.parent, tmp_path / "c.mp4")
    assert again.luma_error == part.luma_error
    monkeypatch.undo()
    with pytest.raises(BadFile, match="it holds packets without a frame"):
        cut._copy_packets(path, path.parent, tmp_path / "d.mp4", 11)


def test_quality_and_damage_by_default(
    whole: Record, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def refuse(*given: Any) -> Any:
        asked.append(given[-3:])
        raise BadFile("it is refused")

    monkeypatch.setattr(cut, "_encoded", refuse)
    for more in ({}, {"crf": 30, "strict": True, "form": Target(height=32)}):
        with pytest.raises(BadFile):
            write_clip(whole | {"is_whole": False}, Path(whole["path"]).parent, tmp_path / "a.mp4", **more)
    assert asked == [(18, False, Target()), (30, True, Target(height=32))]
    assert list(tmp_path.iterdir()) == []


# -- rate, size and frames


def test_a_rate_and_a_size(whole: Record, tmp_path: Path) -> None:
    root = Path(whole["path"]).parent
    written = write_clip(whole, root, tmp_path / "a.mp4", form=Target(Fraction(12), 32, 32))
    assert (written.width, written.height, written.fps, written.num_frames) == (32, 32, "12", 6)
    written = write_clip(whole, root, tmp_path / "b.mp4", form=Target(Fraction(48)))
    assert (written.fps, written.num_frames) == ("48", 24)
    with av.open(str(tmp_path / "b.mp4")) as container:
        stream: Any = container.streams.video[0]
        assert stream.average_rate == 48
        assert [float(frame.pts * stream.time_base * 48) for frame in container.decode(stream)] == list(
            range(24)
        )
    # at the moments of their own times if the rate varies
    varying = whole | {"is_variable_rate": True}
    assert write_clip(varying, root, tmp_path / "c.mp4").num_frames == 12


@pytest.mark.parametrize(("is_variable", "asked"), [(False, "frame_ticks"), (True, "time_ticks")])
def test_frames_are_placed_by_their_numbers_or_by_their_times(
    whole: Record, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_variable: bool, asked: str
) -> None:
    """At a constant rate by numbers: containers round the times."""
    seen: list[str] = []
    for name in ("frame_ticks", "time_ticks"):
        real = getattr(cut, name)
        monkeypatch.setattr(
            cut, name, lambda *given, name=name, real=real: (seen.append(name), real(*given))[1]
        )
    record = whole | {"is_whole": False, "is_variable_rate": is_variable}
    write_clip(record, Path(whole["path"]).parent, tmp_path / "a.mp4")
    assert seen == [asked]


def test_frames_that_change_their_size(
    whole: Record, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Look:
        is_plain = True

        @classmethod
        def of(cls, record: Record) -> Look:
            return cls()

        def show(self, frames: Iterator[Any], **more: Any) -> Iterator[Any]:
            assert more == {"is_even": True, "target": Target()}
            for number, frame in enumerate(frames):
                yield frame if number < 5 else frame.reformat(width=32, height=48)

    monkeypatch.setattr(cut, "Look", Look)
    with pytest.raises(BadFile, match="its frames change their size within the clip"):
        write_clip(whole | {"is_whole": False}, Path(whole["path"]).parent, tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [([0, 1, 2], None), ([], 0), ([1, 2], 0), ([0, 2], 1), ([0, 1], 2), ([0, 1, 1], 2), ([1, 0, 1, 2], 0)],
)
def test_a_clip_has_every_frame_in_order(numbers: list[int], missing: int | None) -> None:
    seen: list[int] = []
    window: Any = SimpleNamespace(times=np.zeros(3), decode=lambda: ((number, number) for number in numbers))
    if missing is None:
        assert list(cut._complete(window)) == [0, 1, 2]
        return
    with pytest.raises(BadFile, match=f"it cannot be read: frame {missing} of the clip cannot be decoded"):
        seen.extend(cut._complete(window))
    assert cut._complete(window) is not None


# -- decoding times


@settings(derandomize=True, deadline=None, max_examples=60)  # the same cases each time, no limit by the clock
@given(st.lists(st.integers(0, 500), min_size=1, max_size=12, unique=True))
def test_missing_decoding_times_ascend_and_are_never_late(times: list[int]) -> None:
    """In any order of packets: as late as they can be, and each no later than its frame is shown."""
    made = cut._decoding_times(
        [(pts, None if number else pts) for number, pts in enumerate(times)] + [(900, None)]
    )
    assert all(dts is not None for dts in made)
    gaps = [pts - dts for pts, dts in zip([*times, 900], made, strict=True) if dts is not None]
    assert min(gaps) == 0
    assert made == sorted(made)  # type: ignore[type-var]
    assert sorted(np.diff(made)) == sorted(np.diff(sorted([*times, 900])))  # type: ignore[arg-type]


def test_decoding_times_that_are_there_stay() -> None:
    times: list[tuple[int, int | None]] = [(0, -80), (120, -40), (40, 0), (80, 40)]
    assert cut._decoding_times(times) == [-80, -40, 0, 40]
    assert cut._decoding_times([(pts, None) for pts, _ in times]) == [-40, 0, 40, 80]


# -- formats


def flat(form: str, level: int, color_range: int) -> Any:
    frame = av.VideoFrame(16, 16, form)
    for plane in frame.planes:
        size = plane.buffer_size
        wide = np.full(size // 2, level, np.uint16) if "10le" in form else np.full(size, level, np.uint8)
        plane.update(wide.tobytes())
    frame.color_range = color_range
    return frame


@pytest.mark.parametrize(
    ("form", "level", "color_range", "expected"),
    [
        ("yuv444p10le", 940, 1, 235),
        ("yuv444p10le", 1023, 2, 235),
        ("yuvj444p", 255, 0, 235),
        ("yuvj444p", 255, 2, 235),
        ("yuv422p", 235, 0, 235),
        ("yuv422p", 255, 2, 235),
    ],
)
def test_other_formats_become_a_limited_range(form: str, level: int, color_range: int, expected: int) -> None:
    found = cut._in_format(flat(form, level, color_range), "yuv444p")
    assert found.format.name == "yuv444p"
    assert abs(int(bytes(found.planes[0])[0]) - expected) <= 1
    same = flat("yuv444p", 255, 2)
    assert cut._in_format(same, "yuv444p") is same


@pytest.mark.parametrize(
    ("form", "kept", "ranges"),
    [
        ("yuv420p", "yuv420p", (2, 5)),
        ("yuv422p", "yuv422p", (2, 5)),
        ("yuv444p", "yuv444p", (2, 5)),
        ("yuv420p10le", "yuv420p", (1, 5)),
        ("yuvj420p", "yuv420p", (1, 5)),
        ("rgb24", "yuv420p", (1, 2)),
    ],
)
def test_chroma_formats_and_colours_that_are_kept(form: str, kept: str, ranges: tuple[int, int]) -> None:
    """Full range stays where pixels do; colours by number stay for everything that is YUV (5: BT.601, 2: unknown)."""
    frame = SimpleNamespace(
        width=64,
        height=48,
        format=SimpleNamespace(name=form),
        colorspace=5,
        color_range=2,
        color_primaries=5,
        color_trc=5,
    )
    codec = SimpleNamespace(colorspace=2, color_range=0, color_primaries=2, color_trc=2, thread_count=0)
    stream: Any = SimpleNamespace(codec_context=codec)
    cut._set_up(stream, frame, 20)
    assert (stream.width, stream.height, stream.pix_fmt) == (64, 48, kept)
    assert (codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc) == (
        ranges[0],
        *[ranges[1]] * 3,
    )
    assert codec.thread_count == 1  # with which x264 gives the same bytes everywhere


# -- pictures


def drawn(path: Path, size: tuple[int, int] = (32, 24), **more: Any) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **more)
    return path


def saved(path: Path, folder: Path, form: Target = Target()) -> tuple[Written, Path]:
    record = {"path": str(path), "is_picture": True, "codec": path.suffix[1:]}
    target = folder / f"clip{suffix_of(record)}"
    return write_clip(record, path.parent, target, form=form), target


def test_pictures_that_are_kept_byte_by_byte(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("a.jpeg", "a.png", "a.webp"):
        path = drawn(tmp_path / name)
        written, target = saved(path, tmp_path / "out")
        assert target.read_bytes() == path.read_bytes()
        assert written == Written(32, 24, "0", 1, 0.0, *measure(path))
        with pytest.raises(AttributeError):
            written.width = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_pictures_that_are_changed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, kind in (("a.jpeg", "JPEG"), ("b.webp", "WEBP"), ("c.png", "PNG")):
        path = drawn(tmp_path / name, exif=exif)
        written, target = saved(path, tmp_path / "out")
        assert (written.width, written.height) == (24, 32)
        with Image.open(target) as picture, Image.open(path) as source:
            assert (picture.format, picture.size) == (kind, (24, 32))
            turned = source.transpose(Image.Transpose.ROTATE_270)
            turned.convert("RGB").save(
                tmp_path / "wanted", kind, **({} if kind == "PNG" else {"quality": 95})
            )
            with Image.open(tmp_path / "wanted") as wanted:
                assert np.array_equal(np.asarray(picture), np.asarray(wanted))
    path = drawn(tmp_path / "square.png", (24, 24), exif=exif)  # its size alone does not show that it lies
    _, target = saved(path, tmp_path / "out")
    with Image.open(target) as picture, Image.open(path) as source:
        assert np.array_equal(np.asarray(picture), np.asarray(source.transpose(Image.Transpose.ROTATE_270)))
    written, target = saved(drawn(tmp_path / "d.bmp"), tmp_path / "out")
    assert (Image.open(target).format, written.width) == ("PNG", 32)
    written, target = saved(drawn(tmp_path / "e.png"), tmp_path / "out", Target(width=16, height=16))
    assert (written.width, written.height) == Image.open(target).size == (16, 16)
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "f.webp", save_all=True, append_images=frames[1:], lossless=True)
    _, target = saved(tmp_path / "f.webp", tmp_path / "out")
    assert not getattr(Image.open(target), "is_animated", False)


def test_the_measure_of_a_file(tmp_path: Path) -> None:
    for size in (0, 1, (1 << 20) + 5):
        data = bytes(range(251)) * (size // 251 + 1)
        (tmp_path / "a").write_bytes(data[:size])
        assert measure(tmp_path / "a") == (size, zlib.crc32(data[:size]))
