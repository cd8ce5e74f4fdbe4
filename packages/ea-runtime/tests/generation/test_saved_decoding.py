"""Decoding that resumes after the saved frames of an unfinished run, and what is said of them."""

from __future__ import annotations

import json
import os
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

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
#: frames at which a decoding is stopped; a chunk has 9
STOPS = range(28) if os.environ.get("EA_FULL") else (0, 1, 8, 9, 10, 13, 17, 18, 26, 27)


class Stopped(Exception):
    """Ends a run in these tests."""


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
    """Also with a VAE that can only start at its first frame. Without EA_FULL=1, around the ends of chunks."""
    whole = make(tmp_path, "whole.mp4", None)
    for stop in STOPS:
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
            self.first, self.stop = 0, len(index)

    monkeypatch.setattr("ea_runtime.generation.saved_frames.SavedFrames", Trusting)
    assert make(tmp_path, "out.mp4", saving(tmp_path / "run")).sha256 != whole.sha256


def test_tiles_are_remembered(tmp_path):
    """Memory ran out at frame 9: decoding went on in tiles, and stays so in the next process."""

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
