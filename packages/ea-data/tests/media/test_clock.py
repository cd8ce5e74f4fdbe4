"""Clips hold exactly their frames, whatever the container does with times: files that are encoded here show the number
of each frame, and every clip is read back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ea_data.media.cut import Written, write_clip
from ea_data.media.frames import read_frames
from ea_data.media.probe import BadFile, Probed, probe
from ea_data.media.timeline import place_of
from ea_data.protocols import FrameRequest, Span, VideoInfo
from ea_data.split.scenes import SceneOptions, SceneSplitter
from ea_runtime.video.reader import read_frames as read_all

HEIGHT, WIDTH, NUM_FRAMES, FPS = 64, 128, 72, 24
SCENE = 24


def numbered(number: int) -> np.ndarray:
    """(H, W, 3) uint8: the number in eight black or white fields (of a Gray code, so that one changes with each frame);
    the ground changes with each scene."""
    frame = np.full((HEIGHT, WIDTH, 3), 50 + 150 * (number // SCENE % 2), np.uint8)
    code = number ^ number >> 1
    for bit in range(8):
        top, left = bit // 4 * 32, bit % 4 * 32
        frame[top + 8 : top + 24, left + 8 : left + 24] = 235 if code >> bit & 1 else 16
    return frame


def numbers_of(frames: Iterator[np.ndarray]) -> list[int]:
    found = []
    for frame in frames:
        height, width = (side // unit for side, unit in zip(frame.shape[:2], (2, 4), strict=True))
        number = 0
        for bit in reversed(range(8)):
            top, left = bit // 4 * height, bit % 4 * width
            field = frame[top + height * 3 // 8 : top + height * 5 // 8, left + width * 3 // 8 :][
                :, : width // 4
            ]
            number = number << 1 | (number & 1) ^ int(field.mean() > 128)
        found.append(number)
    return found


def encode(
    path: Path,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    *,
    num_frames: int = NUM_FRAMES,
    times: dict[int, int] | None = None,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    fps: int = FPS,
    form: str = "",
) -> Path:
    """Writes the numbered frames. times: extra frames' worth of time before a frame."""
    with av.open(str(path), "w", format=form or None) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = {"prores_ks": "yuv422p10le", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.thread_count = 1
        late = 0
        for number in range(num_frames):
            late += (times or {}).get(number, 0)
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame = frame.reformat(*size[::-1], format=stream.pix_fmt)
            frame.pts, frame.time_base = number + late, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut_clips(path: Path, *spans: tuple[float, float]) -> tuple[Probed, list[tuple[Written, list[int]]]]:
    """The result of a probe, and the clips of these spans: (as written, numbers of the frames read back)."""
    from ea_data.run.worker import clip_entry

    found = probe(path, path.parent)
    info = found.info
    clips = []
    for number, span in enumerate(spans or [(0.0, info.seconds)]):
        entry = clip_entry(Span(*span), info, found.content, found.timeline, "test")
        record = {**asdict(info), **entry, "path": str(path), "fps_exact": str(info.fps)}
        target = path.parent / f"{path.name}.{number}.mp4"
        written = write_clip(record, path.parent, target)
        clips.append((written, numbers_of(read_all(target))))
        # what is scored are the same frames
        request = FrameRequest("fps", 1000)
        scored = read_frames(path, path.parent, *span, float(info.fps), [request], place=place_of(record))
        if not info.is_variable_rate:
            assert numbers_of(iter(scored[request].pixels)) == clips[-1][1]
    return found, clips


B_FRAMES = {"g": "24", "bf": "3", "x264-params": "b-adapt=0:scenecut=0"}
OPEN = {"g": "12", "bf": "3", "x264-params": "b-adapt=0:open-gop=1:scenecut=0:keyint-min=12"}
ENCODINGS = [
    ("a.mp4", "libx264", B_FRAMES),
    ("a.mp4", "libx264", OPEN),
    ("a.mkv", "libx264", B_FRAMES),
    ("a.mkv", "libx264", OPEN),
    ("a.avi", "libx264", B_FRAMES),
    ("a.avi", "libx264", {"bf": "0"}),
    ("a.ts", "libx264", OPEN),
    ("a.flv", "libx264", B_FRAMES),
    ("a.mp4", "libx265", {"x265-params": "bframes=3:keyint=24:log-level=none"}),
    ("a.mkv", "libx265", {"x265-params": "bframes=3:keyint=24:log-level=none"}),
    ("a.ts", "libx265", {"x265-params": "bframes=3:keyint=24:log-level=none"}),
    ("a.avi", "mpeg4", {"bf": "2", "b": "2M"}),
    ("a.mkv", "mpeg4", {"bf": "2", "b": "2M"}),
    ("a.mp4", "mpeg4", {"b": "2M"}),
    ("a.mpg", "mpeg2video", {"bf": "2", "g": "12", "b": "4M"}),
    ("a.ts", "mpeg2video", {"bf": "2", "g": "12", "b": "4M"}),
    ("a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "2M"}),
    ("a.webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "2M", "cpu-used": "8"}),
    ("a.mkv", "libaom-av1", {"cpu-used": "8", "crf": "20"}),
    ("a.mkv", "libsvtav1", {"preset": "12", "crf": "20"}),
    ("a.mov", "prores_ks", {}),
    ("a.mov", "mjpeg", {}),
    ("a.avi", "mjpeg", {}),
    ("a.mkv", "ffv1", {}),
    ("a.wmv", "wmv2", {"b": "4M"}),
    ("a.ogv", "libtheora", {"b": "2M"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), ENCODINGS)
def test_a_clip_holds_exactly_its_frames(tmp_path: Path, name: str, codec: str, options: dict[str, str]):
    if codec not in av.codecs_available:
        pytest.skip(f"this build of FFmpeg has no {codec}")
    path = encode(tmp_path / name, codec, options)
    found, clips = cut_clips(path, (0.0, 3.0), (1.0, 2.0), (1.75, 2.5), (2.0, 3.0))
    assert found.info.fps == FPS
    expected = [range(72), range(24, 48), range(42, 60), range(48, 72)]
    assert [numbers for _, numbers in clips] == [list(numbers) for numbers in expected]
    assert [written.num_frames for written, _ in clips] == [len(numbers) for numbers in expected]
    assert max(written.luma_error for written, _ in clips) < 3


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mkv", "libx264", B_FRAMES), ("a.avi", "libx264", B_FRAMES), ("a.mpg", "mpeg2video", {"b": "4M"})],
)
def test_bits_are_those_of_a_clip_s_packets(tmp_path: Path, name: str, codec: str, options: dict[str, str]):
    from ea_data.run.worker import clip_entry

    path = encode(tmp_path / name, codec, options)
    with av.open(str(path)) as container:
        sizes = [packet.size for packet in container.demux(video=0)]
    found = probe(path, tmp_path)
    assert found.info.bits == 8 * sum(sizes)
    clips = [
        clip_entry(Span(start, start + 1), found.info, found.content, found.timeline, "test")
        for start in range(3)
    ]
    assert all(clip["bits"] > 0 for clip in clips)
    assert sum(clip["bits"] for clip in clips) == found.info.bits


def scenes(path: Path, info: VideoInfo) -> list[tuple[float, float]]:
    spans = SceneSplitter(SceneOptions(min_seconds=0.5))(path, info)
    return [(span.start, span.end) for span in spans]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", B_FRAMES),
        ("a.avi", "libx264", B_FRAMES),
        ("a.avi", "mpeg4", {"bf": "2", "b": "2M"}),
        ("a.ts", "libx264", OPEN),
        ("a.mpg", "mpeg2video", {"bf": "2", "g": "12", "b": "4M"}),
    ],
)
def test_a_scene_s_clip_begins_and_ends_with_it(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
):
    path = encode(tmp_path / name, codec, options)
    _, clips = cut_clips(path, *scenes(path, probe(path, tmp_path).info))
    # the passes that skip frames see a cut up to two frames late; a clip of one scene alone begins with it
    assert clips[0][1] == list(range(24))
    assert clips[-1][1] == list(range(48, 72))


def without_start(data: bytes) -> bytes:
    """An MPEG-TS file that begins in the middle of its first group of pictures."""
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    tables = packets[:3]
    return b"".join(tables + packets[len(packets) // 6 :])


def test_a_recording_that_begins_within_a_group_of_pictures(tmp_path: Path):
    whole = encode(tmp_path / "whole.ts", options=OPEN).read_bytes()
    path = tmp_path / "a.ts"
    path.write_bytes(without_start(whole))
    seen = numbers_of(read_all(path))
    assert 0 < seen[0] < 24
    assert seen == list(range(seen[0], 72))
    found, clips = cut_clips(path)
    assert found.info.num_frames == len(seen)
    assert clips[0][1] == seen
    _, clips = cut_clips(path, *scenes(path, found.info))
    assert all(len({number // SCENE for number in numbers}) == 1 for _, numbers in clips)
    assert clips[-1][1] == list(range(48, 72))


def test_joined_recordings_are_one_after_the_other(tmp_path: Path):
    part = encode(tmp_path / "part.ts", options=B_FRAMES).read_bytes()
    path = tmp_path / "a.ts"
    path.write_bytes(part + part)
    found, clips = cut_clips(path, (0.0, 6.0), (2.5, 3.5))
    assert found.timeline is not None
    assert found.timeline.is_counted
    assert [numbers for _, numbers in clips] == [[*range(72), *range(72)], [*range(60, 72), *range(12)]]


def test_frames_that_change_their_size_are_refused_at_once(tmp_path: Path):
    parts = [encode(tmp_path / f"{size[0]}.ts", size=size).read_bytes() for size in ((64, 128), (32, 64))]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(parts))
    with pytest.raises(BadFile, match="from 128x64 to 64x32"):
        probe(path, tmp_path)


def test_a_pause_keeps_the_speed_and_ends_a_scene(tmp_path: Path):
    path = encode(tmp_path / "a.mkv", fps=30, times={30: 90})
    found, clips = cut_clips(path)
    assert (found.info.fps, found.info.is_variable_rate) == (30, True)
    assert clips[0][1] == [*range(29), *[29] * 91, *range(30, 72)]  # the last frame before the pause stays
    seconds = scenes(path, found.info)
    assert all(end <= 1.0 + 1e-6 or start >= 4.0 - 1e-6 for start, end in seconds)
    _, clips = cut_clips(path, *seconds)
    assert sum(len(numbers) for _, numbers in clips) <= 72
    assert all(len(numbers) == numbers[-1] - numbers[0] + 1 for _, numbers in clips)


def test_a_lost_frame_is_repeated(tmp_path: Path):
    path = encode(tmp_path / "a.mkv", fps=30, times={40: 1})
    found, clips = cut_clips(path)
    assert found.info.fps == 30
    assert clips[0][1] == [*range(40), 39, *range(40, 72)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.ts"])
def test_a_pause_keeps_the_rate_where_the_container_states_the_mean(tmp_path: Path, name: str):
    codec = "libvpx" if name == "a.webm" else "libx264"
    path = encode(tmp_path / name, codec, {"b": "2M"}, times={20: 48, 50: 12}, fps=30)
    found, clips = cut_clips(path)
    assert found.info.fps == 30
    assert clips[0][1] == [*range(19), *[19] * 49, *range(20, 49), *[49] * 13, *range(50, 72)]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.m1v", "mpeg1video"), ("a.avi", "mpeg1video"), ("a.h264", "libx264")]
)
def test_files_whose_first_frames_are_numbered_otherwise_after_a_seek(tmp_path: Path, name: str, codec: str):
    path = encode(tmp_path / name, codec, {"bf": "2", "g": "12", "b": "4M"})
    found, clips = cut_clips(path, (0.0, 3.0), (1.0, 2.0))
    assert (found.info.fps, found.info.num_frames) == (FPS, NUM_FRAMES)
    assert [numbers for _, numbers in clips] == [list(range(72)), list(range(24, 48))]


# -- the proof


def test_copied_packets_that_fail_the_proof_are_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ea_data.media import cut

    path = encode(tmp_path / "a.mkv", options=B_FRAMES)
    data = path.read_bytes()
    copied, _ = cut_clips(path)[1][0]
    assert copied.luma_error == 0
    real = cut._decoding_times
    monkeypatch.setattr(cut, "_decoding_times", lambda times: [3 * (time or 0) for time in real(times)])
    written, numbers = cut_clips(path)[1][0]
    assert numbers == list(range(72))
    assert written.luma_error > 0
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda marks: marks[:-1], "more than its 71 frames"),
        (lambda marks: [*marks, marks[-1]], "73 frames, of which 72 decode"),
        (lambda marks: [*marks[:30], *marks[31:], marks[-1]], "another frame 30"),
        # brighter in half of the fields, darker in the others: the mean is that of the frame
        (
            lambda marks: [*marks[:30], marks[30] + np.tile([8, -8], (4, 2)), *marks[31:]],
            "frame 30: 8.0 levels",
        ),
    ],
)
def test_the_proof_notices_other_frames(tmp_path: Path, wrong: Any, reason: str):
    from ea_data.media.proof import mark, prove

    path = encode(tmp_path / "a.mp4", options=B_FRAMES)
    with av.open(str(path)) as container:
        marks = [mark(frame) for frame in container.decode(video=0)]
    assert prove(path, marks, Fraction(24)).num_frames == 72
    with pytest.raises(BadFile, match=reason):
        prove(path, wrong(marks), Fraction(24))
    with pytest.raises(BadFile, match=r"frame 2 at 0\.083.* s, not 0\.166"):
        prove(path, marks, Fraction(12))


def test_a_clip_with_a_frame_that_does_not_decode_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ea_data.media import frames

    path = encode(tmp_path / "a.avi", "mjpeg")
    real = frames.Window.decode

    def lossy(window: frames.Window) -> Iterator[tuple[int, Any]]:
        yield from (one for one in real(window) if one[0] != 5)

    monkeypatch.setattr(frames.Window, "decode", lossy)
    with pytest.raises(BadFile, match="frame 5 of the clip cannot be decoded"):
        cut_clips(path)
    assert not list(tmp_path.glob("*.mp4"))
