"""Decoded frames of an unfinished run: what is read back, what is dropped, and that decoding resumes after them."""

from __future__ import annotations

import hashlib
import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ea_runtime.errors import UserError
from ea_runtime.files.hashes import content_hash
from ea_runtime.generation.making import make_video
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.run_files import is_writing, read_state
from ea_runtime.generation.run_state import RunState
from ea_runtime.generation.saved_frames import INDEX, RAW, SavedFrames
from ea_runtime.generation.sidecar import plan_sidecar, read_sidecar
from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae
from ea_runtime.video.output import plan_output

REQUEST = ModelRequest(
    prompt="x",
    negative_prompt="",
    num_frames=27,
    height=32,
    width=48,
    num_inference_steps=2,
    guidance_scale=1.0,
    sampler="euler",
    smooth=True,
    seed=3,
    model="fake",
    fps=12,
    engine="torch",
    compile=False,
    cuda_graphs=False,
)


class Stopped(Exception):
    """What ends a run in these tests."""


def frames(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 8, 16, 3), dtype=np.uint8))


def stored(folder: Path, count: int = 5, first: int = 0) -> list[np.ndarray]:
    made = frames(count)
    saved = SavedFrames(folder, 8, 16)
    for number, frame in enumerate(made, first):
        saved.append(number, frame, number >= first + 3)
    return made


@pytest.mark.parametrize("first", [0, 4])
def test_what_was_appended_comes_back(tmp_path, first):
    made = stored(tmp_path, first=first)
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.first, saved.stop, saved.is_tiled, saved.damaged) == (first, first + 5, True, None)
    assert all(np.array_equal(a, b) for a, b in zip(saved.read(), made, strict=True))
    saved.append(first + 5, made[0], False)
    assert SavedFrames(tmp_path, 8, 16).stop == first + 6


def test_a_kill_at_every_byte_loses_at_most_the_last_frame(tmp_path):
    stored(tmp_path)
    raw, index = (tmp_path / RAW).read_bytes(), (tmp_path / INDEX).read_bytes()
    size = 8 * 16 * 3
    for cut in range(4 * size, 5 * size, 37):
        (tmp_path / RAW).write_bytes(raw[:cut])
        (tmp_path / INDEX).write_bytes(b"".join(index.splitlines(True)[:4]))
        saved = SavedFrames(tmp_path, 8, 16)
        assert (saved.stop, saved.damaged) == (4, None)
        assert (tmp_path / RAW).stat().st_size == 4 * size
    for cut in range(1, len(index.splitlines(True)[-1])):
        (tmp_path / RAW).write_bytes(raw)
        (tmp_path / INDEX).write_bytes(index[:-cut])
        assert SavedFrames(tmp_path, 8, 16).stop == 4


@pytest.mark.parametrize("damaged", [0, 2, 4])
def test_a_damaged_frame_and_those_after_it_are_dropped(tmp_path, damaged):
    made = stored(tmp_path)
    data = bytearray((tmp_path / RAW).read_bytes())
    data[damaged * 384 + 100] ^= 1
    (tmp_path / RAW).write_bytes(data)
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.stop, saved.damaged) == (damaged, damaged)
    assert all(np.array_equal(a, b) for a, b in zip(saved.read(), made, strict=False)) if damaged else True


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"frame": 9}', '{"frame": -1, "sha256": "", "is_tiled": 0}']
)
def test_an_index_that_is_none_ends_there(tmp_path, line):
    stored(tmp_path)
    lines = (tmp_path / INDEX).read_text().splitlines()
    (tmp_path / INDEX).write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    assert SavedFrames(tmp_path, 8, 16).stop == 2


class StartingVae(FakeVae):
    """A fake that can start at a frame, and counts the frames that it decodes."""

    decoded = 0

    def iter_decode(self, latents, smooth=True, generator=None, start=0):
        for chunk in super().iter_decode(latents, smooth, generator):
            skip = min(start, chunk.shape[2])
            start -= skip
            if skip < chunk.shape[2]:
                self.decoded += chunk.shape[2] - skip
                yield chunk[:, :, skip:]


def make(folder: Path, name: str, run: RunState | None, vae: FakeVae | None = None, stop: int | None = None):
    def on_step(phase: str, done: int, total: int) -> None:
        if phase == "decoding" and done == stop:
            raise Stopped

    output = plan_output(folder / name)
    pipe = VideoPipeline(vae or StartingVae(), FakeDenoiser(), FakeTextEncoder())
    return make_video(
        pipe, REQUEST, output, plan_sidecar(output), model_sha256=lambda: "0" * 64, on_step=on_step, run=run
    )


def saving(folder: Path, **more) -> RunState:
    return RunState(folder, **{"first_after": 0, "every": 0, "note": lambda _: None, **more})


@pytest.mark.parametrize("vae", [StartingVae, FakeVae])
def test_decoding_resumes_at_every_frame(tmp_path, vae):
    """Also with a VAE that can only start at its first frame."""
    whole = make(tmp_path, "whole.mp4", None)
    for stop in range(28):
        run = saving(tmp_path / "run")
        with pytest.raises(Stopped):
            make(tmp_path, "out.mp4", run, vae(), stop)
        assert not (tmp_path / "out.mp4").exists()
        again = vae()
        made = make(tmp_path, "out.mp4", saving(tmp_path / "run"), again)
        assert made.sha256 == whole.sha256
        assert made.notes == whole.notes
        if vae is StartingVae:
            assert again.decoded == 27 - stop
        assert not (tmp_path / "run").exists()
        for path in (made.path, made.sidecar):
            path.unlink()


def test_a_run_that_becomes_long_while_it_decodes(tmp_path, monkeypatch):
    """Frames from then on are saved; those before are decoded again."""
    now = [0.0]
    monkeypatch.setattr("ea_runtime.generation.run_state.time.monotonic", lambda: now[0])

    class Slow(StartingVae):
        def iter_decode(self, latents, smooth=True, generator=None, start=0):
            for chunk in super().iter_decode(latents, smooth, generator, start):
                now[0] += 20
                yield chunk

    whole = make(tmp_path, "whole.mp4", None)
    with pytest.raises(Stopped):
        make(tmp_path, "out.mp4", RunState(tmp_path / "run"), Slow(), 25)
    saved = SavedFrames(tmp_path / "run", 32, 48)
    assert (saved.first, saved.stop) == (9, 25)
    vae = StartingVae()
    assert make(tmp_path, "out.mp4", RunState(tmp_path / "run"), vae).sha256 == whole.sha256
    assert vae.decoded == 9 + 2


def test_damaged_frames_are_said_and_decoded_again(tmp_path):
    whole = make(tmp_path, "whole.mp4", None)
    with pytest.raises(Stopped):
        make(tmp_path, "out.mp4", saving(tmp_path / "run"), None, 20)
    data = bytearray((tmp_path / "run" / RAW).read_bytes())
    data[-3] ^= 1
    (tmp_path / "run" / RAW).write_bytes(data)
    lines: list[str] = []
    assert make(tmp_path, "out.mp4", saving(tmp_path / "run", note=lines.append)).sha256 == whole.sha256
    assert any(
        "frame 19 saved in " in line and "is damaged; decoding resumes there" in line for line in lines
    )


def test_frames_that_are_not_checked_are_caught(tmp_path, monkeypatch):
    """The twin: without the hashes damage would be in the file."""
    whole = make(tmp_path, "whole.mp4", None)
    with pytest.raises(Stopped):
        make(tmp_path, "out.mp4", saving(tmp_path / "run"), None, 20)
    raw = tmp_path / "run" / RAW
    raw.write_bytes(bytes(raw.stat().st_size))
    index = [json.loads(line) for line in (tmp_path / "run" / INDEX).read_text().splitlines()]

    class Trusting(SavedFrames):
        def _check(self) -> None:
            self.stop = len(index)

    monkeypatch.setattr("ea_runtime.generation.saved_frames.SavedFrames", Trusting)
    assert make(tmp_path, "out.mp4", saving(tmp_path / "run")).sha256 != whole.sha256


def test_tiles_are_remembered(tmp_path):
    """Memory ran out at frame 9: decoding went on in tiles, and goes on so in the next process."""

    class Small(StartingVae):
        def iter_decode(self, latents, smooth=True, generator=None, start=0):
            for number, chunk in enumerate(super().iter_decode(latents, smooth, generator, start)):
                if number == 1 and not self.use_tiling:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                yield chunk

    with pytest.raises(Stopped):
        make(tmp_path, "out.mp4", saving(tmp_path / "run"), Small(), 15)
    seen = []

    class Watched(StartingVae):
        def iter_decode(self, latents, smooth=True, generator=None, start=0):
            for chunk in super().iter_decode(latents, smooth, generator, start):
                seen.append(self.use_tiling)
                yield chunk

    vae = Watched()
    make(tmp_path, "out.mp4", saving(tmp_path / "run"), vae)
    assert set(seen) == {True}
    assert not vae.use_tiling


def test_too_little_disk_is_said_before_and_frames_are_not_saved(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("ea_runtime.generation.run_state.shutil.disk_usage", lambda _: usage(9, 9, 1000))
    whole = make(tmp_path, "whole.mp4", None)
    lines: list[str] = []
    run = saving(tmp_path / "run", note=lines.append)
    with pytest.raises(Stopped):
        make(tmp_path, "out.mp4", run, None, 15)
    told = [line for line in lines if "decoded frames cannot be saved" in line]
    assert len(told) == 1
    assert "they take up to 1 MB, and the disk has 0 MB left" in told[0]
    assert not (tmp_path / "run" / RAW).exists()
    assert read_state(tmp_path / "run").phase == "denoised"
    assert make(tmp_path, "out.mp4", saving(tmp_path / "run")).sha256 == whole.sha256


def test_a_disk_that_fills_up_ends_neither_run_nor_result(tmp_path, monkeypatch):
    whole = make(tmp_path, "whole.mp4", None)
    real = SavedFrames.append

    def append(self, number, frame, is_tiled):
        if number == 5:
            raise OSError(28, "No space left on device")
        real(self, number, frame, is_tiled)

    monkeypatch.setattr(SavedFrames, "append", append)
    lines: list[str] = []
    assert make(tmp_path, "out.mp4", saving(tmp_path / "run", note=lines.append)).sha256 == whole.sha256
    assert sum("No space left on device" in line for line in lines) == 1
    assert not (tmp_path / "run").exists()


def test_a_result_that_is_not_finite_leaves_nothing(tmp_path):
    class Broken(StartingVae):
        def iter_decode(self, latents, smooth=True, generator=None, start=0):
            for chunk in super().iter_decode(latents, smooth, generator, start):
                yield chunk * float("nan")

    with pytest.raises(UserError, match="NaN or infinity"):
        make(tmp_path, "out.mp4", saving(tmp_path / "run"), Broken())
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_the_file_and_its_sidecar(tmp_path, monkeypatch):
    whole = make(tmp_path, "whole.mp4", None)

    def killed(*_):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("ea_runtime.generation.making.write_sidecar", killed)
        with pytest.raises(Stopped):
            make(tmp_path, "out.mp4", saving(tmp_path / "run"))
    assert (tmp_path / "out.mp4").exists()
    assert is_writing(tmp_path / "run")
    output = replace(plan_output(tmp_path / "out.mp4", overwrite=True))
    vae = StartingVae()
    pipe = VideoPipeline(vae, FakeDenoiser(), FakeTextEncoder())
    made = make_video(
        pipe,
        REQUEST,
        output,
        plan_sidecar(output),
        model_sha256=lambda: "0" * 64,
        run=saving(tmp_path / "run"),
    )
    assert vae.decoded == 0
    assert made.sha256 == whole.sha256 == content_hash(tmp_path / "out.mp4")
    assert read_sidecar(tmp_path / "out.json")["settings"] == REQUEST.settings


def test_another_request_is_refused(tmp_path):
    with pytest.raises(Stopped):
        make(tmp_path, "out.mp4", saving(tmp_path / "run"), None, 15)
    output = plan_output(tmp_path / "out.mp4")
    pipe = VideoPipeline(StartingVae(), FakeDenoiser(), FakeTextEncoder())
    for other, sha256, told in (
        (replace(REQUEST, seed=4), "0", "settings.seed 3 -> 4"),
        (replace(REQUEST, smooth=False), "0", "settings.smooth true -> false"),
        (replace(REQUEST, compile=True), "0", "device.compiled nothing -> true"),
        (replace(REQUEST, quantize="int8"), "0", 'device.quantize nothing -> "int8"'),
        (replace(REQUEST, attention="flex"), "0", 'device.attention nothing -> "flex"'),
        (REQUEST, "1", 'model "0000'),
    ):
        with pytest.raises(UserError, match=told):
            make_video(
                pipe,
                other,
                output,
                plan_sidecar(output),
                model_sha256=lambda sha256=sha256: sha256 * 64,
                run=saving(tmp_path / "run", must_match=True),
            )
    pipe.vae.enable_tiling()
    with pytest.raises(UserError, match=r"tiling\.use_tiling false -> true"):
        make_video(
            pipe,
            REQUEST,
            output,
            plan_sidecar(output),
            model_sha256=lambda: "0" * 64,
            run=saving(tmp_path / "run", must_match=True),
        )


# --- the two files by themselves -------------------------------------------------------------------------------


def index_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / INDEX).read_text().splitlines()]


def test_a_frame_is_its_bytes_and_then_a_line_that_vouches_for_them(tmp_path):
    made = stored(tmp_path, 2, first=7)
    assert (tmp_path / RAW).read_bytes() == made[0].tobytes() + made[1].tobytes()
    digests = [hashlib.sha256(frame.tobytes()).hexdigest() for frame in made]
    assert index_of(tmp_path) == [
        {"frame": 7 + number, "sha256": digest, "is_tiled": False} for number, digest in enumerate(digests)
    ]
    saved = SavedFrames(tmp_path, 8, 16)
    assert saved.shape == (8, 16, 3)
    assert [(one.shape, one.dtype, one.flags.writeable) for one in saved.read()] == [
        ((8, 16, 3), np.uint8, True)
    ] * 2


def test_frames_come_in_order_and_the_first_has_any_number(tmp_path):
    made = stored(tmp_path, 2)
    saved = SavedFrames(tmp_path, 8, 16)
    for number in (1, 3):
        with pytest.raises(AssertionError, match="in order"):
            saved.append(number, made[0], False)
    saved.append(2, made[0][:, ::-1], False)  # any layout in memory
    assert np.array_equal(list(SavedFrames(tmp_path, 8, 16).read())[2], made[0][:, ::-1])
    empty = SavedFrames(tmp_path / "none", 8, 16)
    assert (empty.first, empty.stop, empty.is_tiled, empty.damaged) == (0, 0, False, None)


@pytest.mark.parametrize("gone", [RAW, INDEX])
def test_one_file_without_the_other_is_dropped(tmp_path, gone):
    stored(tmp_path)
    (tmp_path / gone).unlink()
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.first, saved.stop, saved.damaged) == (0, 0, None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_dropped_is_gone_from_both_files(tmp_path):
    made = stored(tmp_path)
    raw = bytearray((tmp_path / RAW).read_bytes())
    raw[2 * 384] ^= 1
    (tmp_path / RAW).write_bytes(bytes(raw) + b"more")
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.first, saved.stop, saved.is_tiled, saved.damaged) == (0, 2, False, 2)
    assert (tmp_path / RAW).read_bytes() == made[0].tobytes() + made[1].tobytes()
    assert [line["frame"] for line in index_of(tmp_path)] == [0, 1]
    saved.append(2, made[2], True)
    again = SavedFrames(tmp_path, 8, 16)
    assert (again.stop, again.is_tiled, again.damaged) == (3, True, None)
    assert all(np.array_equal(a, b) for a, b in zip(again.read(), made[:3], strict=True))


def test_damage_of_the_first_frame_leaves_none(tmp_path):
    made = stored(tmp_path, first=4)
    (tmp_path / RAW).write_bytes(bytes(5 * 384))
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.first, saved.stop, saved.damaged) == (0, 0, 4)
    assert list(tmp_path.iterdir()) == []
    saved.append(9, made[0], False)
    assert (saved.first, saved.stop) == (9, 10)


def test_frames_of_another_size_are_not_these(tmp_path):
    stored(tmp_path)
    assert SavedFrames(tmp_path, 16, 16).stop == 0


@pytest.mark.parametrize(
    ("line", "is_taken"),
    [
        ({"frame": 2}, False),
        ({"frame": 2, "sha256": "0"}, False),
        ({"frame": 1, "sha256": "", "is_tiled": False}, False),
        ({"frame": 3, "sha256": "", "is_tiled": False}, False),
        ({"frame": 2.0, "sha256": "", "is_tiled": False}, False),
        ({"frame": True, "sha256": "", "is_tiled": False}, False),
        ("[" * 100_000, False),
        (None, True),
    ],
)
def test_lines_that_are_none_end_the_index(tmp_path, line, is_taken):
    stored(tmp_path, 3)
    lines = (tmp_path / INDEX).read_text().splitlines()
    if line is not None:
        lines[2] = line if isinstance(line, str) else json.dumps(line)
    (tmp_path / INDEX).write_text("\n".join(lines) + "\n")
    saved = SavedFrames(tmp_path, 8, 16)
    assert (saved.stop, saved.damaged) == (3 if is_taken else 2, None)
