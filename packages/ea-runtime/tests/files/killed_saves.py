"""Saves checkpoints and is killed meanwhile, over and over; run by test_atomic.py as a program without torch.

    python killed_saves.py FOLDER WRITER KIND NUMBER

WRITER: "ours", or a deliberately broken twin: "no-rename", "no-manifest". KIND: "boundary" kills at each file
operation of the third save in turn (up to NUMBER), "random" at NUMBER moments, seeded, during saves; "full" kills
nothing, but keeps files of the third save from growing past one of NUMBER sizes, like a disk that fills up. Prints a
JSON list with one {"at", "begun", "loaded", "whole", "left"} per kill. `loaded` is the step of the newest checkpoint
by the writer's own check (0: none), `whole` is true if all of its bytes are there, `left` lists what the folder holds
after two more saves.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from ea_runtime.files import atomic
from ea_runtime.training.run import checkpoints

FILES = ("state.safetensors", "model/weights.safetensors", "model/config.json")
KEEP = 2
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.fsync", "part"}

count = 0
kill_at = -1


def _event(name: str, *_: object) -> None:
    global count
    if kill_at >= 0 and name in EVENTS:
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1


def counted(function: Callable[[int], None]) -> Callable[[int], None]:
    """fsync raises no audit event of its own."""

    def wrapped(handle: int) -> None:
        _event("os.fsync")
        function(handle)

    return wrapped


def content(step: int, name: str) -> bytes:
    return f"{step} {name} ".encode() * 3000


@contextmanager
def without_manifest(target: Path):
    """A twin: files are written to their final place, and any folder there counts."""
    target.mkdir(parents=True, exist_ok=True)
    yield target


def newest_of_all(run: Path) -> tuple[int, Path] | None:
    return max(checkpoints.checkpoints(run), default=None)


@contextmanager
def without_rename(target: Path):
    """A twin: one checkpoint, overwritten in place, with a manifest."""
    target = target.with_name("checkpoint-1")
    target.mkdir(parents=True, exist_ok=True)
    yield target
    atomic._write_manifest(target)


WRITERS: dict[str, tuple[Callable, Callable]] = {
    "ours": (atomic.atomic_folder, checkpoints.newest_complete),
    "no-manifest": (without_manifest, newest_of_all),
    "no-rename": (without_rename, checkpoints.newest_complete),
}


def save(run: Path, step: int, writer: str, *, slowly: bool = False) -> None:
    whole, _ = WRITERS[writer]
    with whole(run / f"checkpoint-{step}") as folder:
        (folder / "model").mkdir(exist_ok=True)
        for name in FILES:
            data = content(step, name)
            with (folder / name).open("wb") as file:
                for start in range(0, len(data), 16384):
                    _event("part")
                    file.write(data[start : start + 16384])
                    file.flush()
                    if slowly:
                        time.sleep(0.0005)
    checkpoints.prune(run, KEEP)


def judge(run: Path, at: float, writer: str) -> dict[str, object]:
    """The state after a kill, and after the save that follows."""
    begun = int((run / "begun").read_text())
    newest = WRITERS[writer][1](run)
    loaded, whole = 0, False
    if newest is not None:
        there = {name: (newest[1] / name).read_bytes() for name in FILES if (newest[1] / name).is_file()}
        loaded = int((there.get(FILES[0]) or b"0").split()[0])
        whole = there == {name: content(loaded, name) for name in FILES}
        whole = whole and (loaded == newest[0] or writer == "no-rename")
    save(run, loaded + 1, writer)
    save(run, loaded + 2, writer)
    left = sorted(path.name for path in run.iterdir() if path.name != "begun")
    return {"at": at, "begun": begun, "loaded": loaded, "whole": whole, "left": left}


def kill_at_boundaries(folder: Path, writer: str, limit: int) -> list[dict[str, object]]:
    global kill_at
    results = []
    for number in range(limit):
        run = folder / f"boundary-{number}"
        for step in (1, 2):
            save(run, step, writer)
        (run / "begun").write_text("3")
        child = os.fork()
        if child == 0:
            sys.addaudithook(lambda name, args: _event(name))
            os.fsync = counted(os.fsync)
            kill_at = number
            save(run, 3, writer)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            break  # the save has fewer operations than that
        results.append(judge(run, number, writer))
        shutil.rmtree(run)
    return results


def kill_at_random(folder: Path, writer: str, times: int) -> list[dict[str, object]]:
    rng = random.Random(0)
    results = []
    for number in range(times):
        run = folder / f"random-{number}"
        save(run, 1, writer)
        child = os.fork()
        if child == 0:
            step = 2
            while True:
                (run / ".begun").write_text(str(step))
                os.replace(run / ".begun", run / "begun")
                save(run, step, writer, slowly=True)
                step += 1
        while not (run / "begun").exists():
            time.sleep(0.001)
        seconds = rng.uniform(0.0, 0.06)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        (run / ".begun").unlink(missing_ok=True)
        results.append(judge(run, seconds, writer))
        shutil.rmtree(run)
    return results


def fill_the_disk(folder: Path, writer: str, times: int) -> list[dict[str, object]]:
    rng = random.Random(0)
    results = []
    for number in range(times):
        run = folder / f"full-{number}"
        for step in (1, 2):
            save(run, step, writer)
        (run / "begun").write_text("3")
        size = rng.randrange(max(len(content(3, name)) for name in FILES))
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            try:
                save(run, 3, writer)
            except OSError:
                os._exit(3)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 3
        results.append(judge(run, size, writer))
        shutil.rmtree(run)
    return results


if __name__ == "__main__":
    place, chosen, kind, number = sys.argv[1:]
    kinds = {"boundary": kill_at_boundaries, "random": kill_at_random, "full": fill_the_disk}
    work = kinds[kind]
    sys.stdout.write(json.dumps(work(Path(place), chosen, int(number))))
