"""Frames are written in a thread: in order, a bounded number ahead, and no error is lost."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from ea_runtime.video.output import plan_output
from ea_runtime.video.overlap import overlapped


def frames(count: int) -> list[np.ndarray]:
    return [np.full((16, 16, 3), i % 256, np.uint8) for i in range(count)]


def test_all_frames_are_written_in_order_by_another_thread():
    written, threads = [], set()

    def write(frame):
        written.append(int(frame[0, 0, 0]))
        threads.add(threading.get_ident())

    with overlapped(write, max_waiting=3) as put:
        for frame in frames(50):
            put(frame)
    assert written == list(range(50))
    assert threads
    assert threading.get_ident() not in threads


def test_writing_goes_on_while_the_next_frame_is_made():
    handed_in, written = threading.Event(), threading.Event()

    def write(frame):
        assert handed_in.wait(10)
        written.set()

    with overlapped(write) as put:
        put(frames(1)[0])
        handed_in.set()  # this thread goes on although nothing is written yet
        assert written.wait(10)


def test_memory_is_bounded():
    go, most = threading.Event(), []

    def write(frame):
        assert go.wait(10)
        most.append(given[0])

    given = [0]

    def hand_in_all(put):
        for frame in frames(30):
            put(frame)
            given[0] += 1

    with overlapped(write, max_waiting=4) as put:
        producer = threading.Thread(target=hand_in_all, args=(put,))
        producer.start()
        producer.join(0.2)
        assert given[0] <= 5  # four wait, one is in the writer's hands
        assert producer.is_alive()
        go.set()
        producer.join(10)
    assert len(most) == 30


def test_an_error_of_the_writer_reaches_the_maker():
    def write(frame):
        raise OSError("disk full")

    def write_all(count):
        with overlapped(write, max_waiting=2) as put:
            for frame in frames(count):
                put(frame)

    for count in (100, 1):  # the last frame's error is not lost either
        with pytest.raises(OSError, match="disk full"):
            write_all(count)


def test_nothing_is_written_after_an_error():
    """So no file has frames after one that is missing."""
    asked, gate = [], threading.Event()

    def write(frame):
        asked.append(int(frame[0, 0, 0]))
        assert gate.wait(10)
        if len(asked) == 1:
            raise OSError("disk full")

    def write_all():
        with overlapped(write, max_waiting=3) as put:
            for frame in frames(3):
                put(frame)
            gate.set()

    with pytest.raises(OSError, match="disk full"):
        write_all()
    assert asked == [0]


def test_an_error_of_the_maker_drops_what_waits():
    written, gate = [], threading.Event()

    def write(frame):
        assert gate.wait(10)
        written.append(frame)

    def fail():
        with overlapped(write, max_waiting=20) as put:
            for frame in frames(10):
                put(frame)
            threading.Timer(0.05, gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(written) <= 1
    assert not [thread for thread in threading.enumerate() if thread.name == "ea-writer"]


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "sheet.png", "frames/"])
def test_files_are_the_same_to_the_byte(tmp_path, name):
    found = []
    for way in ("plain", "overlapped"):
        (tmp_path / way).mkdir()
        output = plan_output(f"{tmp_path / way}/{name}")
        with output.writer(24, 20) as write:
            if way == "plain":
                for frame in frames(20):
                    write(frame)
            else:
                with overlapped(write) as put:
                    for frame in frames(20):
                        put(frame)
        place = output.path
        files = sorted(place.iterdir()) if place.is_dir() else [place]
        found.append([file.read_bytes() for file in files])
    assert found[0] == found[1]
