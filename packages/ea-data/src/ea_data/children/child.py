"""The child's side of `supervisor.py`: the loop of a supervised process, and the framing of messages.

Imports the standard library only, so a child starts as fast as Python and its target do. A message is a pickle
(protocol 5), followed by its large buffers:

    8 bytes  length of the pickle        4 bytes  number of buffers        8 bytes each  their lengths
    the pickle, then the buffers

    python -m ea_data.children.child TASKS RESULTS PARENT     two file descriptors, a process id
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import pickle
import signal
import struct
import sys
import traceback
from collections.abc import Generator
from pkgutil import resolve_name
from typing import Any

#: Kinds of message from a child.
READY, VALUE, ERROR, NOTE = "ready", "value", "error", "note"
#: Faults of the system, not of the input: the same task may well succeed later.
_NAMES = "EIO EAGAIN ENFILE EMFILE ENOSPC EDQUOT EINTR ESTALE ETIMEDOUT ECONNRESET"
_TRANSIENT = {getattr(errno, name) for name in _NAMES.split()}
_HEAD = struct.Struct("<QI")
_results: int | None = None


class TransientError(Exception):
    """Raised by a target for a fault that is not its task's: the same task may well succeed later."""


def note(text: str) -> None:
    """Called by a target with its next step, which the Failure names if the process ends. No-op outside a child."""
    if _results is not None:
        _send(_results, (NOTE, text))


def pack(message: Any) -> list[memoryview]:
    """A message as pieces to write in order. Arrays are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views))
    head = _HEAD.pack(len(body), len(views)) + sizes + body
    return [memoryview(head), *(view for view in views if view.nbytes)]


class Unpacker:
    """Reads messages from a file descriptor, however they are split into reads."""

    def __init__(self) -> None:
        self._restart()

    def read(self, fd: int) -> tuple[Any] | None:
        """The message, in a tuple, once it is complete; None if a non-blocking descriptor has no more for now.

        Raises EOFError if the other side is gone.
        """
        while True:
            while self._at < len(self._piece):
                try:
                    count = os.readv(fd, [memoryview(self._piece)[self._at :]])
                except BlockingIOError:
                    return None
                if not count:
                    raise EOFError
                self._at += count
            try:
                self._expect(self._steps.send(self._piece))
            except StopIteration as whole:
                self._restart()
                return (whole.value,)

    def _restart(self) -> None:
        self._steps = _unpack()
        self._expect(next(self._steps))

    def _expect(self, size: int) -> None:
        self._piece, self._at = bytearray(size), 0


def _unpack() -> Generator[int, bytearray, Any]:
    """Yields the number of bytes it needs next, is sent them, returns the message."""
    length, count = _HEAD.unpack((yield _HEAD.size))
    sizes = struct.unpack(f"<{count}Q", (yield 8 * count))
    body = yield length
    buffers = []
    for size in sizes:
        buffers.append((yield size))
    return pickle.loads(body, buffers=buffers)


def resolve(target: str) -> Any:
    """The object named by "module:name"; a class is called without arguments."""
    found = resolve_name(target)
    return found() if isinstance(found, type) else found


def describe(error: BaseException) -> tuple[str, str, bool, str]:
    """(class name, one line, True if a retry may help, traceback)."""
    line = " ".join(str(error).split()) or type(error).__name__
    return type(error).__name__, line, is_transient(error), "".join(traceback.format_exception(error))


def is_transient(error: BaseException) -> bool:
    """True if an error is not the task's fault: one of the system's, by its errno, or a TransientError."""
    if isinstance(error, OSError) and type(error).__module__ == "builtins":
        return error.errno in _TRANSIENT
    return isinstance(error, TransientError)


def main() -> None:
    """Serves tasks until the parent closes the pipe or dies."""
    tasks, results, parent = (int(word) for word in sys.argv[1:4])
    # this module runs as __main__, which is not the one that targets import
    sys.modules["ea_data.children.child"] = sys.modules["__main__"]
    globals()["_results"] = results
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _limit("RLIMIT_CORE", 0)
    _die_with_parent(parent)
    unpacker = Unpacker()
    try:
        ((paths, blob, memory),) = unpacker.read(tasks) or ((None, None, None),)
    except EOFError:
        return
    try:
        sys.path[:] = paths
        gc.disable()  # what is imported here is no garbage
        target = pickle.loads(blob)
        if isinstance(target, str):
            target = resolve(target)
        getattr(target, "prepare", lambda: None)()
        gc.enable()
        if memory:
            # A backstop to the parent's watch, for tasks that take memory faster than it looks. It caps private memory,
            # which includes thread stacks and allocator arenas that were never touched: hence the margin.
            _limit("RLIMIT_DATA", (2 * memory + 1024) << 20)
        _send(results, (READY, None))
    except BaseException as error:
        _send(results, (ERROR, describe(error)))
        return
    while True:
        try:
            message = unpacker.read(tasks)
        except EOFError:
            return
        assert message is not None, "the descriptor blocks"
        task = message[0]
        del message
        try:
            pieces = pack((VALUE, target(task)))
        except Exception as error:
            pieces = pack((ERROR, describe(error)))
        del task
        _write(results, pieces)
        del pieces


def _send(fd: int, message: Any) -> None:
    _write(fd, pack(message))


def _write(fd: int, pieces: list[memoryview]) -> None:
    for piece in pieces:
        at = 0
        while at < piece.nbytes:
            at += os.write(fd, piece[at:])


def _die_with_parent(parent: int) -> None:
    """Linux: the kernel kills this process when the thread that started it ends."""
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _limit(name: str, most: int) -> None:
    """Lowers one of the system's limits on this process, unless it is lower already."""
    import resource

    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.setrlimit(kind, (most, hard))


if __name__ == "__main__":
    main()
