"""Writing frames while the next ones are decoded."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Write = Callable[["np.ndarray"], None]
#: frames that may wait to be written: a chunk of the VAE's and a little more, so that memory stays flat
MAX_WAITING = 12
_END = object()


@contextmanager
def overlapped(write: Write, max_waiting: int = MAX_WAITING) -> Iterator[Write]:
    """Yields a function that hands frames to `write` in a thread, in order, and waits where `max_waiting` wait.

    An error of `write` is raised at the next frame, or when the block ends. When it ends without an error all frames
    are written; with one, those that wait are dropped.
    """
    waiting: queue.Queue[object] = queue.Queue(max_waiting)
    failures: list[BaseException] = []
    is_over = threading.Event()

    def work() -> None:
        while (frame := waiting.get()) is not _END:
            if failures or is_over.is_set():
                continue  # whoever hands in frames must not wait for ever
            try:
                write(frame)  # pyright: ignore[reportArgumentType]
            except BaseException as error:
                failures.append(error)

    def hand_in(frame: np.ndarray) -> None:
        if failures:
            raise failures[0]
        waiting.put(frame)

    thread = threading.Thread(target=work, name="ea-writer", daemon=True)
    thread.start()
    try:
        yield hand_in
    except BaseException:
        is_over.set()
        raise
    finally:
        waiting.put(_END)
        thread.join()
    if failures:
        raise failures[0]
