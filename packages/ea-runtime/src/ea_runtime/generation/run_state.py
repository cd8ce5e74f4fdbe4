"""The place of an unfinished run, saved from time to time, so that it can be resumed after a kill with the same result.

    FOLDER/state.json             which run it is, how far it is, the hash of the file below; what is in that file
    FOLDER/NAME.safetensors       latents, the sampler's history, generators, the step cache; after denoising: latents
    FOLDER/frames.raw, .jsonl     decoded frames (saved_frames.py)

Files appear whole or not at all, state.json last. No pickle is read or written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError
from ea_runtime.files.atomic import atomic_file, remove_partials, shortened, write_atomic
from ea_runtime.files.hashes import file_hash
from ea_runtime.files.safe import plain

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ea_runtime.generation.saved_frames import SavedFrames

logger = logging.getLogger("ea")

VERSION = 1
STATE = "state.json"
_WRITING = "writing"
_OTHERS = (_WRITING, "frames.raw", "frames.jsonl")
MAX_STATE_BYTES = 16 << 20
#: seconds of a run before its place is saved for the first time: a shorter run is as soon repeated
FIRST_AFTER = 30.0
#: seconds between two saves, or SHARE times what a save takes, if that is longer: saving stays under 1% of a run
EVERY = 30.0
SHARE = 100
#: bytes a second that saving is taken to write until it has been measured: packed, hashed and synced
RATE = 100e6

Key = Mapping[str, Any]
State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """A state that a folder holds. phase: "denoising" or "denoised". done, total: network passes. key: of its run."""

    phase: str
    done: int
    total: int
    key: dict[str, Any]
    tree: Any
    tensors: Path

    @property
    def summary(self) -> str:
        """How far the run is: "step 12 of 30" or "denoised"."""
        return f"step {self.done} of {self.total}" if self.phase == "denoising" else "denoised"


class RunState:
    """The saved place of one run; give it to `make_video` or to a pipeline's call.

    Args:
        folder: made when something is saved, removed by `remove`. One run at a time may use it.
        key: all that determines the result's bits (`run_key`); a state with another key is not resumed. None:
            `make_video` computes it.
        resume: False starts over, whatever is there.
        must_match: raise UserError for a state with another key, in place of a note.
        first_after, every: seconds before the first save, and between two; 0: after each step, whatever it takes.
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
        in a line. Raises UserError for one of another run with `must_match`.
        """
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
        differing = _differences(found.key, self._full_key())
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
        """What was saved, its tensors on `device`; None if it cannot be read, which is reported."""
        found, self._is_saved = self.found, False
        if found is None:
            return None
        from safetensors.torch import load_file

        from ea_runtime.generation.packing import unpack

        try:
            return unpack(found.tree, load_file(found.tensors), device)
        except Exception as error:  # safetensors has errors of its own
            self._note(f"the saved run in {self.folder} cannot be read ({plain(error)}); the run starts over")
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
            with suppress(OSError):
                write_atomic(self.folder / _WRITING, "")

    def remove(self) -> None:
        """Remove what was saved, and the folder if it holds nothing else."""
        self._is_off, self.is_open = True, False
        remove_state(self.folder)

    def _full_key(self) -> dict[str, Any]:
        if self._key is None:
            raise ValueError("`key` of a RunState is needed where make_video does not compute it")
        known = self._known_key
        if known is None:
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
        from safetensors.torch import save

        from ea_runtime.generation.packing import pack

        tensors: dict[str, torch.Tensor] = {}
        tree = pack(capture(), tensors)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.is_open:
            remove_state(self.folder, keep_folder=True)
            frames = f", with frames up to {self._frame_bytes / 1e6:.0f} MB" if self._frame_bytes else ""
            self._note(f"from now on the run's place is saved in {self.folder}{frames}; removed at the end")
        file = self.folder / f"{phase}-{done}-{secrets.token_hex(4)}.safetensors"
        data = save(tensors)
        with atomic_file(file, durable=True) as partial:
            partial.write_bytes(data)
        body = {
            "ea_run": VERSION,
            "key": self._full_key(),
            "phase": phase,
            "done": done,
            "total": total,
            "file": file.name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "tree": tree,
        }
        with atomic_file(self.folder / STATE, durable=True) as partial:
            partial.write_text(json.dumps({**body, "check": _check_sum(body)}), encoding="utf-8")
        self.is_open = True
        for old in self.folder.glob("*.safetensors"):
            if old != file:
                old.unlink(missing_ok=True)
        remove_partials(self.folder)

    def _require_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                f"they take up to {needed / 1e6:.0f} MB, and the disk has {free / 1e6:.0f} MB left; "
                "if the run is ended now, it resumes before decoding"
            )

    def _turn_off(self, line: str) -> None:
        if not self._is_off:
            self._note(line)
        self._is_off = True


def state_folder(output: Path) -> Path:
    """The place for the state of the run that makes `output`: `.out.mp4.ea-run` next to out.mp4."""
    return output.with_name(f".{shortened(output.name)}.ea-run")


def is_writing(folder: Path) -> bool:
    """True if the run of this state had all its frames: a whole file in the output's place may then be its own."""
    return (folder / _WRITING).is_file() and (folder / STATE).is_file()


def read_state(folder: Path) -> Found | None:
    """The state in `folder`, its hashes checked; None without one. Raises UserError for one that is damaged."""
    path = folder / STATE
    where = f"the saved run in {folder}"
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_STATE_BYTES:
            raise UserError(f"{where} is damaged: {STATE} has more than {MAX_STATE_BYTES:,} bytes")
        body = json.loads(path.read_text(encoding="utf-8"))
        check = body.pop("check")
        if body["ea_run"] != VERSION:
            raise UserError(f"{where} is of another version of this program")
        if check != _check_sum(body):
            raise UserError(f"{where} is damaged: {STATE} is not what was written")
        tensors = folder / Path(body["file"]).name
        if not tensors.is_file() or file_hash(tensors) != body["sha256"]:
            raise UserError(f"{where} is damaged: {tensors.name} is not what was written")
        return Found(body["phase"], body["done"], body["total"], body["key"], body["tree"], tensors)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where} is damaged: {STATE} is none ({plain(error)})") from error


def remove_state(folder: Path, keep_folder: bool = False) -> None:
    """Remove a saved run, and its folder if nothing else is in it."""
    if not folder.is_dir():
        return
    with suppress(OSError):
        # state.json first: without it the others are nothing
        for path in (folder / STATE, *folder.glob("*.safetensors"), *map(folder.joinpath, _OTHERS)):
            path.unlink(missing_ok=True)
        remove_partials(folder)
        if not keep_folder:
            folder.rmdir()


def _check_sum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _num_bytes(value: Any) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(value, dict | list | tuple):
        return sum(_num_bytes(one) for one in (value.values() if isinstance(value, dict) else value))
    return int(getattr(value, "nbytes", 0))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], limit: int = 4) -> str:
    """The values that differ, as "settings.seed 1 -> 2"; empty if none does."""
    before, after = _flat(old), _flat(new)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    told = [f"{name} {_short(before.get(name))} -> {_short(after.get(name))}" for name in names[:limit]]
    return "; ".join(told + [f"{len(names) - limit} more"] * (len(names) > limit))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, one in value.items():
        found |= _flat(one, f"{name}.{key}" if name else str(key))
    return found


def _short(value: Any) -> str:
    return "nothing" if value is None else plain(json.dumps(value, ensure_ascii=False), 40)
