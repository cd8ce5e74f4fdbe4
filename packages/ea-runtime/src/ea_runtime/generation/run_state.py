"""The place of an unfinished run, saved from time to time, so that it can be resumed after a kill with the same result.

When it is saved, what is said about it, and what is resumed; the files themselves are run_files.py's.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError
from ea_runtime.generation.run_files import (
    Found,
    differences,
    load_state,
    mark_writing,
    read_state,
    remove_state,
    write_state,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ea_runtime.generation.saved_frames import SavedFrames

logger = logging.getLogger("ea")

#: seconds of a run before its place is saved for the first time: a shorter run is as soon repeated
FIRST_AFTER = 30.0
#: seconds between two saves, or SHARE times what a save takes, if that is longer: saving stays under 1% of a run
EVERY = 30.0
SHARE = 100
#: bytes a second that saving is taken to write until it has been measured: packed, hashed and synced
RATE = 100e6

Key = Mapping[str, Any]
State = dict[str, Any]


class RunState:
    """The saved place of one run; give it to `make_video` or to a pipeline's call.

    Args:
        folder: made when something is saved, removed by `remove`. One run at a time may use it.
        key: all that determines the result's bits (`run_key`); a state with another key is not resumed. None:
            `make_video` computes it.
        resume: False starts over, whatever is there.
        must_match: raise UserError for a state with another key, in place of a note.
        first_after, every: seconds before the first save, and between two; 0: after each step, at any cost.
        note: where lines for the user go; None: the logger "ea".
    """

    def __init__(
        self,
        folder: Path,
        key: Key | None = None,
        *,
        resume: bool = True,
        must_match: bool = False,
        first_after: float = FIRST_AFTER,
        every: float = EVERY,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = folder
        self.resume = resume
        self.must_match = must_match
        self.first_after = first_after
        self.every = every
        self.is_open = False
        self.found: Found | None = None
        self._note = note or (lambda line: logger.warning("%s", line))
        self._key: Callable[[], Key] | None = None if key is None else lambda: key
        self._is_key_ready: Callable[[], bool] = lambda: True
        self._started = time.monotonic()
        self._last, self._cost = 0.0, 0.0
        self._offered: tuple[str, int, int, Callable[[], State]] | None = None
        self._is_saved = False
        self._is_off = False
        self._frames: SavedFrames | None = None
        self._frame_bytes = 0
        self._known_key: dict[str, Any] | None = None

    def bind(self, key: Callable[[], Key], is_ready: Callable[[], bool] = lambda: True) -> None:
        """The key, to be computed when it is needed first, unless one was given. is_ready: that takes no time."""
        if self._key is None:
            self._key, self._is_key_ready = key, is_ready

    def begin(self, frame_bytes: int = 0) -> Found | None:
        """Start the clock and return the state to resume, if there is one.

        frame_bytes: what all decoded frames take. A state that is damaged or of another run is reported
        in a line. Raises UserError for one of another run with `must_match`, ValueError without a key.
        """
        if self._key is None:
            raise ValueError("`key` of a RunState is needed where make_video does not compute it")
        self._started, self._frame_bytes = time.monotonic(), frame_bytes
        self.is_open = False
        self.found = None
        if not self.resume:
            return None
        try:
            found = read_state(self.folder)
        except UserError as error:
            self._note(f"{error}; the run starts over")
            return None
        if found is None:
            return None
        differing = differences(found.key, self._full_key())
        if differing:
            line = f"the saved run in {self.folder} is another one: {differing}"
            if self.must_match:
                raise UserError(f"{line}; give its settings again, or start over without --resume")
            self._note(f"{line}; this one starts over")
            return None
        self._note(f"continues the saved run in {self.folder}: {found.summary}")
        self.found, self.is_open = found, True
        self._last = self._started
        return found

    def load(self, device: torch.device) -> State | None:
        """The saved state, its tensors on `device`; None if it cannot be read, which is reported."""
        found = self.found
        if found is None:
            return None
        try:
            return load_state(found, device)
        except UserError as error:
            self._note(f"{error}; the run starts over")
            self.found, self.is_open = None, False
            return None

    def offer(self, phase: str, done: int, total: int, capture: Callable[[], State]) -> None:
        """Save what `capture` gives if it is time to. It stays on offer to `save` until the next one."""
        self._offered, self._is_saved = (phase, done, total, capture), False
        if not self._is_due() or not self._is_key_ready():
            return
        if not self._cost and self.every:
            self._cost = _num_bytes(capture()) / RATE
            if time.monotonic() - self._started < SHARE * self._cost:
                return  # a step cache of a large model: too much for a run that may end soon
        self.save()

    def save(self) -> None:
        """Save the place now, unless it is already. For `on_step`: between steps everything is consistent."""
        if self._offered is None or self._is_saved or self._is_off:
            return
        from ea_runtime.generation.packing import UnpackableError

        start = time.monotonic()
        try:
            self._write(*self._offered)
            self._is_saved = True
        except UnpackableError as error:
            self._turn_off(f"this run cannot be saved and resumed: {error}")
        except OSError as error:
            self._turn_off(f"the run's place cannot be saved in {self.folder}: {error.strerror or error}")
        self._last = time.monotonic()
        self._cost = self._last - start

    def saved_frames(self, height: int, width: int) -> SavedFrames | None:
        """The decoded frames of the resumed run; None if it has none."""
        if self.found is None or self.found.phase != "denoised":
            return None
        from ea_runtime.generation.saved_frames import SavedFrames

        try:
            self._frames = SavedFrames(self.folder, height, width)
        except OSError as error:
            self._turn_off(f"the frames in {self.folder} cannot be read: {error.strerror or error}")
            return None
        if self._frames.damaged is not None:
            self._note(
                f"frame {self._frames.damaged} saved in {self.folder} is damaged; decoding resumes there"
            )
        return self._frames

    def keep_frame(self, number: int, count: int, frame: np.ndarray, is_tiled: bool) -> None:
        """Save the decoded frame `number` (H, W, 3) of `count`, if this run is saved at all by now."""
        if self._is_off or not (self.is_open or (self._is_due() and self._is_key_ready())):
            return
        self.save()
        if not self.is_open:
            return
        from ea_runtime.generation.saved_frames import SavedFrames

        try:
            if self._frames is None or not self._frames.stop:
                self._require_space(frame.nbytes * (count - number))
            if self._frames is None:
                self._frames = SavedFrames(self.folder, *frame.shape[:2])
            self._frames.append(number, frame, is_tiled)
        except OSError as error:
            self._turn_off(f"decoded frames cannot be saved in {self.folder}: {error.strerror or error}")

    def mark_writing(self) -> None:
        """From here on a file in the output's place may be this run's own, whole."""
        if self.is_open and not self._is_off:
            mark_writing(self.folder)

    def remove(self) -> None:
        """Remove what was saved, and the folder if it holds nothing else."""
        self._is_off, self.is_open = True, False
        remove_state(self.folder)

    def _full_key(self) -> dict[str, Any]:
        known = self._known_key
        if known is None:
            assert self._key is not None, "begin comes first"
            known = self._known_key = json.loads(json.dumps(self._key()))  # as it reads back
        return known

    def _is_due(self) -> bool:
        now = time.monotonic()
        if self._is_off:
            return False
        if not self.is_open:
            return now - self._started >= max(self.first_after, SHARE * self._cost)
        return not self.every or now - self._last >= max(self.every, SHARE * self._cost)

    def _write(self, phase: str, done: int, total: int, capture: Callable[[], State]) -> None:
        if not self.is_open:
            remove_state(self.folder, keep_folder=True)
        write_state(self.folder, self._full_key(), phase, done, total, capture())
        if not self.is_open:
            frames = f", with frames up to {_megabytes(self._frame_bytes)}" if self._frame_bytes else ""
            self._note(f"from now on the run's place is saved in {self.folder}{frames}; removed at the end")
        self.is_open = True

    def _require_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                f"they take up to {_megabytes(needed)}, and the disk has {free / 1e6:.0f} MB left; "
                "if the run is ended now, it resumes before decoding"
            )

    def _turn_off(self, line: str) -> None:
        if not self._is_off:
            self._note(line)
        self._is_off = True


def _megabytes(count: int) -> str:
    return f"{-(-count // 10**6)} MB"


def _num_bytes(value: Any) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(value, dict | list | tuple):
        return sum(_num_bytes(one) for one in (value.values() if isinstance(value, dict) else value))
    return int(getattr(value, "nbytes", 0))
