"""The end of a worker: asked for, or because whoever started it is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

#: seconds that an abandoned worker has to save its place; a step that takes longer is given up
_PATIENCE = 120.0


class Stop:
    """A flag that SIGTERM or the end of standard input sets; a job at work then saves its place and is handed back."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """Asks the worker to end."""
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Returns early, with True, when the flag is set."""
        return self._event.wait(seconds)

    def on_signals(self) -> None:
        """SIGTERM sets the flag. SIGINT does nothing: Ctrl-C reaches all processes, and the server drains them."""

        def stop(*_: Any) -> None:
            self.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def on_end_of_input(self) -> None:
        """The end of standard input sets the flag: it is a pipe whose other end dies with the server."""

        def watch() -> None:
            while os.read(sys.stdin.fileno(), 4096):
                pass
            self.set()
            timer = threading.Timer(_PATIENCE, os._exit, args=(1,))
            timer.daemon = True
            timer.start()

        threading.Thread(target=watch, name="ea-stdin", daemon=True).start()
