"""When a run's place is saved and resumed, by a clock of the test: no network runs here."""

from __future__ import annotations

import logging
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ea_runtime.errors import UserError
from ea_runtime.generation import run_state
from ea_runtime.generation.run_files import read_state
from ea_runtime.generation.run_state import RunState

KEY = {"settings": {"seed": 3}}
CPU = torch.device("cpu")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(run_state.time, "monotonic", lambda: clock[0])
    return clock


def capture() -> dict[str, Any]:
    return {"x": torch.ones(3)}


def make(folder: Path, lines: list[str] | None = None, **more: Any) -> RunState:
    options: dict[str, Any] = {"first_after": 0, "every": 0, "key": KEY, **more}
    run = RunState(folder, **options, note=lambda line: None if lines is None else lines.append(line))
    run.begin()
    return run


def saved(folder: Path, done: int = 3, phase: str = "denoising") -> Path:
    make(folder).offer(phase, done, 6, capture)
    return folder


def done_in(folder: Path) -> int | None:
    found = read_state(folder)
    return None if found is None else found.done


# --- when ----------------------------------------------------------------------------------------------------


def test_the_usual_times(tmp_path: Path) -> None:
    """A place is saved after half a minute, each half minute, and takes at most a hundredth of the run."""
    assert (run_state.FIRST_AFTER, run_state.EVERY, run_state.SHARE, run_state.RATE) == (
        30.0,
        30.0,
        100,
        100e6,
    )
    run = RunState(tmp_path, KEY)
    assert (run.first_after, run.every, run.resume, run.must_match, run.is_open) == (
        30.0,
        30.0,
        True,
        False,
        False,
    )


def test_the_first_save_is_at_its_time_and_the_next_at_theirs(tmp_path: Path, now: list[float]) -> None:
    run = make(tmp_path, first_after=10, every=20)
    for time, expected in ((109.9, None), (110.0, 2), (129.9, 2), (130.0, 4), (149.9, 4), (150.0, 6)):
        now[0] = time
        number = {109.9: 1, 110.0: 2, 129.9: 3, 130.0: 4, 149.9: 5, 150.0: 6}[time]
        run.offer("denoising", number, 9, capture)
        assert done_in(tmp_path) == expected
    assert run.is_open


def test_a_save_that_takes_long_is_rarer(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path, first_after=10, every=20)
    write = run._write

    def slow(*offered: Any) -> None:
        now[0] += 0.5
        write(*offered)

    monkeypatch.setattr(run, "_write", slow)
    now[0] = 110.0
    run.offer("denoising", 1, 9, capture)
    assert done_in(tmp_path) == 1
    for time, number, expected in ((160.4, 2, 1), (160.5, 3, 3)):  # 100 times half a second after its end
        now[0] = time
        run.offer("denoising", number, 9, capture)
        assert done_in(tmp_path) == expected


def test_zero_seconds_save_each_step(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any cost."""
    run = make(tmp_path)
    write = run._write

    def slow(*offered: Any) -> None:
        now[0] += 0.5
        write(*offered)

    monkeypatch.setattr(run, "_write", slow)
    for number in range(1, 4):
        run.offer("denoising", number, 9, capture)
        assert done_in(tmp_path) == number


def test_a_state_that_is_large_for_so_short_a_run_waits(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "RATE", 4.0)  # 12 bytes and 4 in a list: 4 seconds
    run = make(tmp_path, first_after=10, every=20)
    state = {"x": torch.ones(3), "deep": [{"y": (torch.ones(1), 7, None)}]}
    for time, expected in ((399.0, None), (499.9, None), (500.0, 3)):
        now[0] = time
        run.offer("denoising", 3, 9, lambda: state)
        assert done_in(tmp_path) == expected
    other = make(tmp_path / "other", first_after=10, every=20)
    now[0] = 900.0  # of its first offer
    other.offer("denoising", 4, 9, lambda: state)
    assert done_in(tmp_path / "other") == 4


def test_once_a_save_was_measured_nothing_is_guessed(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "RATE", 4.0)
    run = make(tmp_path, first_after=10, every=20)
    write = run._write

    def slow(*offered: Any) -> None:
        now[0] += 0.1
        write(*offered)

    monkeypatch.setattr(run, "_write", slow)
    now[0] = 200.0  # a guess of 1 second
    run.offer("denoising", 1, 9, lambda: {"x": torch.ones(1)})
    now[0] = 221.0  # one of 10
    run.offer("denoising", 2, 9, lambda: {"x": torch.ones(10)})
    assert done_in(tmp_path) == 2


def test_nothing_is_saved_before_the_key_is_known_for_nothing(tmp_path: Path, now: list[float]) -> None:
    """Hashing a model for the key may take a minute; it is done in the background."""
    ready = [False]
    asked = []

    def key() -> dict[str, Any]:
        asked.append(1)
        return KEY

    run = RunState(tmp_path / "run", first_after=0, every=0)
    run.bind(key, lambda: ready[0])
    run.begin()
    run.offer("denoising", 1, 9, capture)
    assert not (tmp_path / "run").exists()
    assert not asked
    ready[0] = True
    run.offer("denoising", 2, 9, capture)
    run.offer("denoising", 3, 9, capture)
    assert done_in(tmp_path / "run") == 3
    assert asked == [1]
    bound = RunState(tmp_path / "bound", first_after=0, every=0)
    bound.bind(key)  # it takes no time
    assert bound.begin() is None
    bound.offer("denoising", 1, 9, capture)
    assert done_in(tmp_path / "bound") == 1
    ready[0] = False
    late = RunState(tmp_path / "late", first_after=0, every=0)
    late.bind(key, lambda: ready[0])
    late.begin()
    late.offer("denoised", 9, 9, capture)
    late.keep_frame(0, 1, np.zeros((2, 2, 3), np.uint8), False)
    assert not (tmp_path / "late").exists()


def test_a_key_that_was_given_is_the_key(tmp_path: Path) -> None:
    run = RunState(tmp_path, KEY, first_after=0, every=0)
    run.bind(lambda: {"other": 1}, lambda: False)
    run.begin()
    run.offer("denoising", 1, 9, capture)
    found = read_state(tmp_path)
    assert found is not None
    assert found.key == KEY
    with pytest.raises(
        ValueError, match="`key` of a RunState is needed where make_video does not compute it"
    ):
        RunState(tmp_path).begin()


def test_saving_when_asked_saves_once(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path, first_after=1000)
    run.save()
    assert not list(tmp_path.iterdir())  # nothing was offered
    writes: list[int] = []
    write = run._write

    def counted(*offered: Any) -> None:
        writes.append(offered[1])
        write(*offered)

    monkeypatch.setattr(run, "_write", counted)
    run.offer("denoising", 1, 9, capture)
    assert writes == []
    run.save()
    run.save()
    run.offer("denoising", 2, 9, capture)
    run.save()
    assert writes[:2] == [1, 2]
    assert done_in(tmp_path) == 2
    run.remove()
    assert not run.is_open
    run.offer("denoising", 3, 9, capture)
    run.save()
    assert not tmp_path.exists()


# --- what is resumed -----------------------------------------------------------------------------------------


def test_a_saved_place_is_resumed_and_said(tmp_path: Path) -> None:
    saved(tmp_path)
    lines: list[str] = []
    run = make(tmp_path, lines)
    assert lines == [f"continues the saved run in {tmp_path}: step 3 of 6"]
    assert run.found is not None
    assert run.begin() is run.found
    assert run.is_open
    state = run.load(CPU)
    assert state is not None
    assert torch.equal(state["x"], torch.ones(3))


def test_a_resumed_run_saves_again_after_the_usual_time(tmp_path: Path, now: list[float]) -> None:
    saved(tmp_path)
    now[0] = 200.0
    run = make(tmp_path, first_after=10, every=20)
    for time, number, expected in ((219.9, 4, 3), (220.0, 5, 5)):
        now[0] = time
        run.offer("denoising", number, 6, capture)
        assert done_in(tmp_path) == expected


@pytest.mark.parametrize("resume", [False, True])
def test_starting_over_leaves_what_is_there_until_the_first_save(tmp_path: Path, resume: bool) -> None:
    saved(tmp_path)
    lines: list[str] = []
    run = make(tmp_path, lines, resume=resume)
    assert (run.found is None, run.is_open, bool(lines)) == (not resume, resume, resume)
    assert done_in(tmp_path) == 3
    assert (run.load(CPU) is None) is not resume


def test_another_run_is_said_or_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    lines: list[str] = []
    run = make(tmp_path, lines, key={"settings": {"seed": 4}})
    assert lines == [
        f"the saved run in {tmp_path} is another one: settings.seed 3 -> 4; this one starts over"
    ]
    assert (run.found, run.is_open, run.load(CPU)) == (None, False, None)
    with pytest.raises(UserError, match="give its settings again, or start over without --resume"):
        make(tmp_path, key={"settings": {"seed": 4}}, must_match=True)
    assert make(tmp_path, must_match=True).found is not None
    # a key is compared as it reads back from JSON
    assert make(tmp_path, key={"settings": {"seed": 3}, "none": None}).found is not None


def test_a_damaged_state_is_said_and_left(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "state.json").write_text("{]")
    for must_match in (False, True):
        lines: list[str] = []
        run = make(tmp_path, lines, must_match=must_match)
        assert [line.endswith("; the run starts over") for line in lines] == [True]
        assert run.found is None


def test_tensors_that_cannot_be_read_later_are_said(tmp_path: Path) -> None:
    saved(tmp_path)
    lines: list[str] = []
    run = make(tmp_path, lines)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"x")
    assert run.load(CPU) is None
    assert lines[-1].endswith("; the run starts over")
    assert (run.found, run.is_open) == (None, False)


def test_a_run_that_begins_again_forgets_what_it_found(tmp_path: Path) -> None:
    saved(tmp_path)
    run = make(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert run.begin() is None
    assert (run.found, run.is_open) == (None, False)


def test_lines_go_to_the_logger_unless_somebody_takes_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path)
    with caplog.at_level(logging.WARNING, "ea"):
        RunState(tmp_path, KEY).begin()
    assert caplog.messages == [f"continues the saved run in {tmp_path}: step 3 of 6"]


# --- what fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError("odd")])
def test_a_place_that_cannot_be_written_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    lines: list[str] = []
    run = make(tmp_path, lines)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(run_state, "write_state", fail)
    for number in (1, 2):
        run.offer("denoising", number, 6, capture)
    run.mark_writing()
    run.keep_frame(0, 1, np.zeros((2, 2, 3), np.uint8), False)
    assert lines == [f"the run's place cannot be saved in {tmp_path}: {error.strerror or error}"]
    assert not list(tmp_path.iterdir())


def test_a_state_that_cannot_be_packed_is_said_once(tmp_path: Path) -> None:
    run = make(tmp_path, lines := [])
    for number in (1, 2):
        run.offer("denoising", number, 6, lambda: {"hook": print})
    assert [line.startswith("this run cannot be saved and resumed: state.hook is a ") for line in lines] == [
        True
    ]
    assert not list(tmp_path.iterdir())


# --- frames --------------------------------------------------------------------------------------------------

FRAME = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


def usage(free: int) -> Callable[[Any], Any]:
    return lambda _: namedtuple("usage", "total used free")(0, 0, free)


def test_frames_are_kept_once_the_run_is_saved(tmp_path: Path, now: list[float]) -> None:
    run = make(tmp_path / "run", first_after=10, every=20)
    run.offer("denoised", 6, 6, capture)
    run.keep_frame(0, 3, FRAME, False)
    run.mark_writing()
    assert not (tmp_path / "run").exists()
    now[0] = 110.0
    run.keep_frame(1, 3, FRAME, False)
    run.keep_frame(2, 3, FRAME, True)
    assert done_in(tmp_path / "run") == 6
    run.mark_writing()
    assert (tmp_path / "run" / "writing").exists()
    again = make(tmp_path / "run")
    frames = again.saved_frames(2, 2)
    assert frames is not None
    assert (frames.first, frames.stop, frames.is_tiled) == (1, 3, True)
    assert all(np.array_equal(one, FRAME) for one in frames.read())
    again.keep_frame(3, 4, FRAME, False)
    assert frames.stop == 4


def test_frames_without_denoised_latents_are_none(tmp_path: Path) -> None:
    assert make(tmp_path / "none").saved_frames(2, 2) is None
    assert make(saved(tmp_path / "run")).saved_frames(2, 2) is None
    run = make(tmp_path / "other")
    run.keep_frame(0, 1, FRAME, False)  # nothing was offered, so there is nothing to resume from
    assert not (tmp_path / "other").exists()


def test_a_damaged_frame_is_said(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.offer("denoised", 6, 6, capture)
    for number in range(2):
        run.keep_frame(number, 2, FRAME, False)
    (tmp_path / "frames.raw").write_bytes(FRAME.tobytes() + bytes(12))
    lines: list[str] = []
    frames = make(tmp_path, lines).saved_frames(2, 2)
    assert lines[1:] == [f"frame 1 saved in {tmp_path} is damaged; decoding resumes there"]
    assert frames is not None
    assert frames.stop == 1


def test_frames_that_cannot_be_read_or_written_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(saved(tmp_path, phase="denoised"), lines := [])

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ea_runtime.generation.saved_frames.SavedFrames._check", fail)
    assert run.saved_frames(2, 2) is None
    run.keep_frame(0, 1, FRAME, False)
    assert lines[1:] == [f"the frames in {tmp_path} cannot be read: Input/output error"]
    run = make(tmp_path, lines := [])
    run.keep_frame(0, 1, FRAME, False)
    run.keep_frame(1, 1, FRAME, False)
    assert lines[1:] == [f"decoded frames cannot be saved in {tmp_path}: Input/output error"]


@pytest.mark.parametrize(("free", "is_kept"), [(36, True), (35, False)])
def test_frames_need_room_for_all_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, is_kept: bool
) -> None:
    monkeypatch.setattr(run_state.shutil, "disk_usage", usage(free))
    run = make(tmp_path, lines := [])
    run.offer("denoised", 6, 6, capture)
    run.keep_frame(2, 5, FRAME, False)
    assert (tmp_path / "frames.raw").exists() is is_kept
    monkeypatch.setattr(run_state.shutil, "disk_usage", usage(0))
    run.keep_frame(3, 5, FRAME, False)  # asked once
    said = (
        f"decoded frames cannot be saved in {tmp_path}: they take up to 1 MB, and the disk has 0 MB left; "
        "if the run is ended now, it resumes before decoding"
    )
    assert lines[1:] == ([] if is_kept else [said])
    monkeypatch.setattr(run_state.shutil, "disk_usage", usage(10**9))
    run.keep_frame(4, 5, FRAME, False)  # one that is off stays off
    assert (tmp_path / "frames.raw").exists() is is_kept


def test_a_run_that_is_off_does_no_more(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state.shutil, "disk_usage", usage(0))
    saved(tmp_path, phase="denoised")
    run = make(tmp_path, lines := [], every=20)
    assert run.saved_frames(2, 2) is not None  # none yet, so the first one asks for room
    run.keep_frame(0, 1, FRAME, False)
    assert "the disk has 0 MB left" in lines[-1]
    run.mark_writing()
    assert not (tmp_path / "writing").exists()
    now[0] += 1000

    def never() -> dict[str, Any]:
        raise AssertionError

    run.offer("denoised", 6, 6, never)


@pytest.mark.parametrize(
    ("frame_bytes", "said"),
    [(0, ""), (1, ", with frames up to 1 MB"), (2_000_001, ", with frames up to 3 MB")],
)
def test_the_first_save_says_where_it_is_and_what_it_takes(
    tmp_path: Path, frame_bytes: int, said: str
) -> None:
    lines: list[str] = []
    run = make(tmp_path, lines)
    if frame_bytes:
        run.begin(frame_bytes)
    for number in (1, 2):
        run.offer("denoising", number, 6, capture)
    assert lines == [f"from now on the run's place is saved in {tmp_path}{said}; removed at the end"]


def test_what_another_run_left_goes_with_the_first_save(tmp_path: Path) -> None:
    saved(tmp_path, phase="denoised")
    (tmp_path / "frames.raw").write_bytes(bytes(12))
    (tmp_path / "writing").touch()
    run = make(tmp_path, key={"other": 1})
    run.offer("denoising", 1, 6, capture)
    assert sorted(path.suffix or path.name for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    resumed = make(tmp_path, key={"other": 1})
    (tmp_path / "frames.raw").write_bytes(bytes(12))
    resumed.offer("denoising", 2, 6, capture)
    assert (tmp_path / "frames.raw").exists()  # its own
