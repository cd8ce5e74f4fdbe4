"""Displays of a run next to its log: run.html, TensorBoard, services. One process has them."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ea_runtime.training.options import TrainOptions
from ea_runtime.training.run.page import RunPage
from ea_runtime.training.run.trackers import Tracking


class Watchers:
    """The watchers of the run in `folder`, which is at `step`.

    config: the whole config as run. is_on: False for processes that show nothing. Raises UserError for a service that
    is not installed.
    """

    def __init__(
        self, options: TrainOptions, folder: Path, config: dict[str, Any], step: int, *, is_on: bool
    ) -> None:
        self._stack = ExitStack()
        self._page: RunPage | None = None
        self._board: Any = None
        self._lines: list[Any] = []
        if not is_on:
            return
        if options.trackers:
            self._lines.append(self._stack.enter_context(Tracking(options.trackers, folder, config)))
        if options.tensorboard:
            from ea_runtime.training.run.board import Board

            self._board = self._stack.enter_context(Board(folder, step))
            self._lines.append(self._board)
        if options.page_every:
            self._page = RunPage(folder, config, options.steps, options.page_every)
            self._lines.append(self._page)

    def line(self, line: dict[str, Any]) -> None:
        """Takes a line of log.jsonl. Raises OSError if the disk is full."""
        for one in self._lines:
            one.line(line)

    def sheet(self, step: int, picture: np.ndarray) -> None:
        """Takes a sheet of samples, uint8 (H, W, 3); the page finds its file by itself."""
        if self._board is not None:
            self._board.sheet(step, picture)

    def end(self, state: str, note: str = "") -> None:
        """Ends the run's page. state: "finished" or "stopped". On a full disk the page stays as it was."""
        if self._page is not None:
            with suppress(OSError):
                self._page.write(state, note)

    def close(self) -> None:
        """Writes what is buffered."""
        self._stack.close()
