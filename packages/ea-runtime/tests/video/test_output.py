"""Files out and in: what each kind holds, the same bytes each time, nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ea_runtime.errors import UserError
from ea_runtime.video.output import check_fps, plan_output, write_video
from ea_runtime.video.reader import read_frames
from ea_runtime.video.sheets import frame_grid

FILES = ["out.mp4", "out.mov", "out.webm", "out.webp", "out.gif", "out.png"]


def clip(count: int = 12, height: int = 48, width: int = 64) -> Iterator[np.ndarray]:
    """A red square that moves right over a shaded ground."""
    for i in range(count):
        frame = np.zeros((height, width, 3), np.uint8)
        frame[..., 2] = np.linspace(0, 120, width).astype(np.uint8)
        frame[8:24, 4 + i : 20 + i] = (230, 20, 20)
        yield frame


def error(kept: np.ndarray, given: np.ndarray) -> float:
    return float(np.abs(kept.astype(int) - given.astype(int)).mean())


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# -- each kind -----------------------------------------------------------------------------------------


def test_mp4_holds_the_frames_in_their_colours(tmp_path):
    av = pytest.importorskip("av")
    path = write_video(tmp_path / "out.mp4", clip(), 12)
    found = list(read_frames(path))
    assert len(found) == 12
    assert max(error(f, g) for f, g in zip(found, clip(), strict=True)) < 4
    assert error(found[0][10:22, 8:16], np.full((12, 8, 3), (230, 20, 20))) < 4
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        assert (codec.name, codec.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 12)
        assert (codec.colorspace, codec.color_range) == (1, 1)  # BT.709, limited


@pytest.mark.parametrize("name", FILES)
def test_the_same_frames_give_the_same_bytes(tmp_path, name):
    first = write_video(tmp_path / name, clip(), 12).read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    assert write_video(other / name, clip(), 12).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "codec", "format_"), [("out.mov", "h264", "mov"), ("out.webm", "vp9", "webm")]
)
def test_other_containers_hold_the_frames_in_their_colours(tmp_path, name, codec, format_):
    av = pytest.importorskip("av")
    path = write_video(tmp_path / name, clip(), 12)
    found = list(read_frames(path))
    assert len(found) == 12
    assert max(error(f, g) for f, g in zip(found, clip(), strict=True)) < 4
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate) == (codec, 12)
        assert format_ in container.format.name
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)


def test_webp_is_animated_and_one_frame_is_a_picture_without_loss(tmp_path):
    path = write_video(tmp_path / "out.webp", clip(), 12)
    found = list(read_frames(path))
    assert len(found) == 12
    assert max(error(f, g) for f, g in zip(found, clip(), strict=True)) < 4
    with Image.open(path) as picture:
        assert picture.info["loop"] == 0
        durations = [(frame.load(), frame.info["duration"])[1] for frame in ImageSequence.Iterator(picture)]
    assert sum(durations) == pytest.approx(1000, abs=20)
    one = write_video(tmp_path / "one.webp", clip(1), 12)
    assert np.array_equal(next(read_frames(one)), next(clip(1)))


@pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
def test_odd_sizes_of_every_codec(tmp_path, name):
    assert next(read_frames(write_video(tmp_path / name, clip(3, 49, 65), 12))).shape == (48, 64, 3)


BAD_FRAMES = {
    "floats": (np.zeros((8, 8, 3), np.float32), "uint8, .* float32 .* scale to 0..255"),
    "colours first": (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\) .* last axis"),
    "gray": (np.zeros((8, 8), np.uint8), r"\(8, 8\)"),
    "alpha": (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\) .* RGB"),
    "empty": (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
    "a list": ([1, 2], r"\(2,\)"),
    "rows of several lengths": ([[1, 2], [3]], r"shape \(\) of object"),
    "another size": (np.zeros((48, 32, 3), np.uint8), "one size, 64x48 .* 32x48"),
}


@pytest.mark.parametrize("name", [*FILES, "frames/"])
@pytest.mark.parametrize("kind", BAD_FRAMES)
def test_wrong_frames_are_one_line_and_leave_nothing(tmp_path, name, kind):
    frame, message = BAD_FRAMES[kind]
    with pytest.raises(UserError, match=f"`frames` must be .*{message}") as found:
        write_video(f"{tmp_path}/{name}", [*clip(1), frame])
    assert "frame 1" in str(found.value)
    assert "\n" not in str(found.value)
    assert names(tmp_path) == []


def test_frames_too_small_for_a_codec(tmp_path):
    with pytest.raises(UserError, match="at least 2x2 pixels for mp4, got 1x8"):
        write_video(tmp_path / "out.mp4", [np.zeros((8, 1, 3), np.uint8)])


@pytest.mark.parametrize(
    ("name", "most"),
    [("a.mp4", 16_384), ("a.mov", 16_384), ("a.webm", 65_534), ("a.webp", 16_383), ("a.gif", 65_535)],
)
def test_frames_too_large_for_a_format(tmp_path, name, most):
    for shape in ((most, 2, 3), (2, most, 3)):
        write_video(tmp_path / name, [np.zeros(shape, np.uint8)] * 2, overwrite=True)
    for shape in ((most + 1, 2, 3), (2, most + 1, 3)):
        with pytest.raises(
            UserError, match=rf"{name[1:]} holds at most {most:,} pixels a side, got .*; give a smaller"
        ):
            write_video(tmp_path / f"large{name}", [np.zeros(shape, np.uint8)] * 2)
    assert names(tmp_path) == [name]


def test_a_gif_so_slow_that_it_cannot_be_counted(tmp_path):
    frames = list(clip(3))
    write_video(tmp_path / "slow.gif", frames, fps=Fraction(2, 1001))
    with pytest.raises(UserError, match=r"`fps` must be above 0\.00153 for \.gif, got 0\.0014"):
        write_video(tmp_path / "slower.gif", frames, fps=0.0015)
    assert names(tmp_path) == ["slow.gif"]


@pytest.mark.parametrize(
    "name", [":smile:{}", "a:b{}", "file:a{}", "pipe:1{}", "http:/a/b{}", "concat:a|b{}", "[red]%d{}"]
)
def test_names_that_ffmpeg_would_take_for_addresses(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for suffix in (".mp4", ".mov", ".webm", ".webp", ".gif", ".png"):
        path = Path(name.format(suffix))
        write_video(path, clip(2))
        assert path.stat().st_size
    assert all(one.parent.resolve().is_relative_to(tmp_path) for one in tmp_path.rglob("*"))


@pytest.mark.parametrize("frames", [None, 5, 1.5])
def test_what_are_no_frames(tmp_path, frames):
    with pytest.raises(UserError, match="`frames` must be arrays"):
        write_video(tmp_path / "out.mp4", frames)


@pytest.mark.parametrize("path", [None, 5, "", ".mp4", "new/.GIF", "a\0.mp4"])
def test_names_that_are_none(path):
    with pytest.raises(UserError, match=r"`output` must be a file name such as out\.mp4"):
        plan_output(path)


@pytest.mark.parametrize("number", [0, -1, 2.5, "3", True])
def test_numbers_of_frames_that_are_none(tmp_path, number):
    with pytest.raises(UserError, match="`num_frames` must be a whole number of 1 or more, or None, got"):
        write_video(tmp_path / "out.png", clip(3), num_frames=number)
    assert names(tmp_path) == []


def test_a_stop_while_a_place_is_tried_leaves_nothing(tmp_path, monkeypatch):
    touch = Path.touch

    def stopped(path: Path, **options: bool) -> None:
        touch(path, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "touch", stopped)
    with pytest.raises(KeyboardInterrupt):
        plan_output(tmp_path / "out.mp4")
    assert names(tmp_path) == []


def test_folders_are_made(tmp_path):
    path = tmp_path / "new" / "folder" / "out.gif"
    output = plan_output(path)
    assert names(tmp_path) == []
    with output.writer(12) as write:
        write(next(clip(1)))
    assert path.is_file()


@pytest.mark.parametrize("letter", ["x", "é", "🎈"])
def test_long_names(tmp_path, letter):
    size = len(letter.encode())
    longest = letter * ((250 - 4) // size) + ".gif"
    assert write_video(tmp_path / longest, clip(1)).is_file()
    for name in (f"{letter * (300 // size)}.gif", f"{letter * (300 // size)}/out.gif"):
        with pytest.raises(UserError, match="at most 250 bytes, got 30"):
            plan_output(tmp_path / name)
    assert names(tmp_path) == [longest]


def test_mp4_of_an_odd_size_loses_the_last_row_and_column_and_says_so(tmp_path, caplog):
    path = write_video(tmp_path / "out.mp4", clip(height=49, width=65), 12)
    found = list(read_frames(path))
    assert found[0].shape == (48, 64, 3)
    assert error(found[3], list(clip(height=49, width=65))[3][:48, :64]) < 4
    assert sum("even" in r.message for r in caplog.records) == 1


def test_mp4_of_fractional_frame_rates(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(write_video(tmp_path / "out.mp4", clip(), 23.976))) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(24000 / 1001, abs=1e-3)


def test_one_frame_makes_an_mp4_and_a_gif_too(tmp_path):
    for name in ("out.mp4", "out.gif"):
        assert len(list(read_frames(write_video(tmp_path / name, clip(1), 12)))) == 1


@pytest.mark.parametrize("fps", [12, 24, 30, 7.5])
def test_gif_keeps_its_length_repeats_and_has_good_colours(tmp_path, fps):
    path = write_video(tmp_path / "out.gif", clip(24), fps)
    with Image.open(path) as picture:
        assert picture.info["loop"] == 0
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(picture)]
    assert len(durations) == 24
    assert sum(durations) == pytest.approx(24000 / fps, abs=10)
    assert max(error(f, g) for f, g in zip(read_frames(path), clip(24), strict=True)) < 2


def test_gif_of_many_colours(tmp_path):
    ramp = np.stack(np.meshgrid(np.arange(0, 256, 4), np.arange(0, 256, 4)), axis=-1)
    frame = np.concatenate([ramp, 255 - ramp[..., :1]], axis=-1).astype(np.uint8)
    found = list(read_frames(write_video(tmp_path / "out.gif", [frame] * 2, 12)))
    assert len(found) == 2
    assert error(found[1], frame) < 8


def test_gif_faster_than_viewers_can_is_written_at_50(tmp_path, caplog):
    path = write_video(tmp_path / "out.gif", clip(5), 60)
    with Image.open(path) as picture:
        assert [frame.info["duration"] for frame in ImageSequence.Iterator(picture)] == [20] * 5
    assert "50" in caplog.text


def test_png_of_one_frame_is_that_picture(tmp_path):
    path = write_video(tmp_path / "out.png", clip(1), 12)
    assert np.array_equal(next(read_frames(path)), next(clip(1)))


@pytest.mark.parametrize(("count", "known"), [(6, True), (16, True), (37, True), (37, False)])
def test_png_of_a_video_is_a_contact_sheet(tmp_path, count, known):
    path = write_video(tmp_path / "out.png", clip(count), 12, num_frames=count if known else None)
    sheet = next(read_frames(path))
    frames = list(clip(count))
    shown = min(count, 16)
    assert sheet.shape == (-(-shown // 4) * 50 - 2, 4 * 66 - 2, 3)
    assert np.array_equal(sheet[:48, :64], frames[0])
    top, left = (shown - 1) // 4 * 50, (shown - 1) % 4 * 66
    assert np.array_equal(sheet[top : top + 48, left : left + 64], frames[-1])
    assert (sheet[48:50] == 255).all()


def test_a_grid_of_few():
    assert frame_grid(list(clip(1))).shape == (48, 64, 3)
    assert frame_grid(list(clip(3))).shape == (48, 3 * 66 - 2, 3)


@pytest.mark.parametrize("name", ["frames/", "frames", "there"])
def test_a_folder_of_frames(tmp_path, name):
    (tmp_path / "there").mkdir()
    output = plan_output(f"{tmp_path}/{name}")
    assert output.kind == "folder"
    with output.writer(12) as write:
        for frame in clip(3):
            write(frame)
    folder = tmp_path / name.rstrip("/")
    assert names(folder) == ["00000.png", "00001.png", "00002.png"]
    assert all(np.array_equal(f, g) for f, g in zip(read_frames(folder), clip(3), strict=True))


def test_frames_are_taken_one_at_a_time(tmp_path):
    made = []

    def counted() -> Iterator[np.ndarray]:
        for frame in clip(5):
            made.append(1)
            yield frame

    output = plan_output(tmp_path / "out.gif")
    frames = counted()
    with output.writer(12) as write:
        write(next(frames))
        assert len(made) == 1
        for frame in frames:
            write(frame)


@pytest.mark.parametrize(("name", "count"), [*((name, 3) for name in FILES), ("out.webp", 1), ("out", 3)])
def test_a_caller_may_use_one_array_for_all_frames(tmp_path, name, count):
    buffer = np.empty((48, 64, 3), np.uint8)

    def reused() -> Iterator[np.ndarray]:
        for frame in clip(count):
            buffer[:] = frame
            yield buffer
            buffer[:] = 255

    found = write_video(tmp_path / "one array" / name, reused(), 12)
    expected = write_video(tmp_path / "arrays" / name, clip(count), 12)
    for file in sorted(expected.iterdir()) if expected.is_dir() else [expected]:
        assert (found / file.relative_to(expected)).read_bytes() == file.read_bytes()


# -- faults --------------------------------------------------------------------------------------------


def test_unknown_suffix(tmp_path):
    with pytest.raises(UserError, match=r"\.mp4, .*\.gif, \.png.* got 'out\.avi'"):
        plan_output(tmp_path / "out.avi")
    with pytest.raises(UserError, match="file name"):
        plan_output("")
    with pytest.raises(UserError, match="file name"):
        plan_output("a\0.mp4")


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, message in (
        (tmp_path / "file" / "out.mp4", "is a file"),
        (tmp_path / "file" / "no" / "out.mp4", "is a file"),
        (Path("/proc/out.mp4"), "cannot be written"),
        (tmp_path / "file", "is a file, not a folder"),
    ):
        with pytest.raises(UserError, match=message) as found:
            plan_output(path)
        assert "\n" not in str(found.value)
    assert names(tmp_path) == ["file"]


def test_what_exists_is_replaced_only_with_leave(tmp_path):
    path = write_video(tmp_path / "out.gif", clip(2), 12)
    with pytest.raises(UserError, match="exists already"):
        plan_output(path)
    write_video(path, clip(3), 12, overwrite=True)
    assert len(list(read_frames(path))) == 3

    folder = tmp_path / "frames"
    write_video(folder, clip(2))
    with pytest.raises(UserError, match="not empty"):
        plan_output(folder)
    write_video(folder, clip(1), overwrite=True)
    assert names(folder) == ["00000.png"]
    (folder / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match=r"letter\.txt"):
        plan_output(folder, overwrite=True)
    assert names(tmp_path) == ["frames", "out.gif"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "out.gif"

    def frames() -> Iterator[np.ndarray]:
        yield from clip(2)
        path.write_text("mine")

    with pytest.raises(UserError, match="exists already"):
        write_video(path, frames())
    assert path.read_text() == "mine"
    assert names(tmp_path) == ["out.gif"]


@pytest.mark.parametrize("name", [*FILES, "frames/"])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError, UserError])
@pytest.mark.parametrize("after", [0, 3])
def test_nothing_half_written_stays(tmp_path, name, fault, after):
    def broken() -> Iterator[np.ndarray]:
        yield from clip(after)
        raise fault("stopped")

    with pytest.raises(fault):
        write_video(f"{tmp_path}/{name}", broken())
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", [*FILES, "frames/"])
def test_no_frames_at_all(tmp_path, name):
    with pytest.raises(UserError, match="no frames"):
        write_video(f"{tmp_path}/{name}", [])
    assert names(tmp_path) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    from ea_runtime.video import writers

    def full(self, frame):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers.GifWriter, "_add", full)
    with pytest.raises(UserError, match="No space left"):
        write_video(tmp_path / "out.gif", clip())
    assert names(tmp_path) == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 5000, "x", True, None])
def test_frame_rates_that_are_none(fps):
    with pytest.raises(UserError, match="`fps` must be"):
        check_fps(fps)


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"\0" * 100)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    (tmp_path / "empty").mkdir()
    whole = write_video(tmp_path / "out.gif", clip(), 12).read_bytes()
    (tmp_path / "cut.gif").write_bytes(whole[: len(whole) // 2])
    for name in ("bad.mp4", "bad.png", "empty", "nothing.mp4", "cut.gif"):
        with pytest.raises(UserError) as found:
            list(read_frames(tmp_path / name))
        assert name in str(found.value)
        assert "\n" not in str(found.value)


def test_a_turned_video_is_read_upright(tmp_path):
    path = write_video(tmp_path / "out.mp4", clip(4), 12)
    data = path.read_bytes()

    def matrix(*values: int) -> bytes:
        return b"".join(v.to_bytes(4, "big", signed=True) for v in values)

    one = 1 << 16
    upright = matrix(one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    at = data.index(upright, data.index(b"tkhd"))
    clockwise = matrix(0, one, 0, -one, 0, 0, 0, 0, 1 << 30)  # as a phone held upright records
    path.write_bytes(data[:at] + clockwise + data[at + len(upright) :])
    found = list(read_frames(path))
    assert found[0].shape == (64, 48, 3)
    assert error(found[2], np.rot90(list(clip(4))[2], -1)) < 4


def test_planning_an_output_imports_neither_torch_nor_av():
    code = "import sys, ea_runtime.video.output; sys.exit(bool({'torch', 'av', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{0}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{0}'\n",
    ],
)
def test_a_list_of_other_files_is_not_followed(tmp_path, text):
    secret = write_video(tmp_path / "secret.mp4", [np.zeros((16, 16, 3), np.uint8)] * 3, fps=8)
    place = tmp_path / "list.mp4"
    place.write_text(text.format(secret), encoding="utf-8")
    with pytest.raises(UserError, match="cannot be read"):
        list(read_frames(place))


PROGRAM = """
import sys
import numpy as np
from ea_runtime.video.output import write_video
height, width, count = map(int, sys.argv[1:4])
rng = np.random.default_rng(0)
ball = np.kron(rng.integers(0, 255, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
for path in sys.argv[4:]:
    write_video(path, (np.roll(ball, 3 * shift, axis=1) for shift in range(count)), 12)
"""


@pytest.mark.parametrize("size", [(64, 64, 18), (112, 112, 18), (384, 672, 4)])
def test_a_video_has_the_same_bytes_whatever_the_heap(size: tuple[int, int, int], tmp_path: Path) -> None:
    """Three processes, whose fresh memory holds other bytes and whose libraries use other numbers of threads."""
    contents: dict[str, set[bytes]] = {name: set() for name in FILES}
    for heap, threads in (("0", "1"), ("85", "2"), ("170", "1")):
        paths = {name: tmp_path / heap / name for name in FILES}
        environment = {**os.environ, "MALLOC_PERTURB_": heap, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", PROGRAM, *map(str, (*size, *paths.values()))]
        subprocess.run(command, check=True, env=environment)
        for name, path in paths.items():
            contents[name].add(path.read_bytes())
    assert {name: len(found) for name, found in contents.items()} == dict.fromkeys(FILES, 1)
