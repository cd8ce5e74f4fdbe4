"""Figures of a run for services that watch runs, through accelerate's trackers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.training.run.run_folder import flat


class Tracking:
    """Hands the lines of log.jsonl to `names` ("wandb", "trackio"), as the run of `folder`.

    config: the whole config as run, which they show. Their own settings (project, mode) are those of their environment
    variables; WANDB_MODE=offline keeps all on this machine. Raises UserError for one that is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: dict[str, Any]) -> None:
        missing = next((name for name in names if find_spec(name) is None), None)
        if missing is not None:
            raise UserError(
                f"`train.trackers` names {missing!r}, which is not installed; install it (uv pip install {missing}) or "
                "leave it out: run.html needs none"
            )
        from accelerate import PartialState

        self._had_state = bool(PartialState._shared_state)
        PartialState()  # accelerate's trackers ask it which process they are in
        self._trackers = [_BUILD[name](folder) for name in names]
        for tracker in self._trackers:
            tracker.start()
            tracker.store_init_configuration(_plain(config))

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            tracker.finish()
        if not self._had_state:
            from accelerate import PartialState

            PartialState._reset_state()  # it would say so to a later run of several processes, too

    def line(self, line: dict[str, Any]) -> None:
        """Hands over the numbers of a line."""
        figures = {
            name: value
            for name, value in line.items()
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value)
        }
        for tracker in self._trackers:
            tracker.log(figures, step=line["step"])


def _wandb(folder: Path) -> Any:
    from accelerate.tracking import WandBTracker

    return WandBTracker("ea", name=folder.resolve().name, dir=str(folder))


def _trackio(folder: Path) -> Any:
    from accelerate.tracking import TrackioTracker

    return TrackioTracker("ea", name=folder.resolve().name)


_BUILD: dict[str, Callable[[Path], Any]] = {"wandb": _wandb, "trackio": _trackio}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value if isinstance(value, (str, bool, int, float)) else str(value)
        for key, value in flat(config).items()
    }
