"""The folder of a run: config.toml as run, set.jsonl, log.jsonl (one line per step), checkpoint-N/, samples/,
final/."""

from __future__ import annotations

import json
import math
import os
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from ea_runtime.errors import UserError
from ea_runtime.files.atomic import write_atomic
from ea_runtime.training.data import set_record
from ea_runtime.training.run.checkpoints import checkpoints, newest_complete

CONFIG = "config.toml"

#: Keys that may change when a run resumes: where and how often it saves and shows, and how it uses the machine.
_MAY = (
    "save_every keep log_every sample_every page_every tensorboard trackers "
    "threads workers processes parallel device"
)
#: All of them, with the folder and the length of the run.
MAY_CHANGE = {"run.out", "train.steps", *(f"train.{name}" for name in _MAY.split())}
#: Keys for the places of its set, which may change if set.jsonl shows that the set is the same.
PLACES = {"data.path", "data.root", "data.cache_folder"}


class RunFolder:
    """out: the folder. config: the whole config as run; a run can only resume with the same one (see MAY_CHANGE).

    writes: True for the process that writes.
    """

    def __init__(self, out: Path, config: dict[str, Any], *, writes: bool) -> None:
        self.out = out
        self.config = _bare(config)
        self.writes = writes
        self.log_path = out / "log.jsonl"

    def start(self, resume: bool) -> tuple[int, Path] | None:
        """The checkpoint (step, folder) that the run resumes from; None: it is new.

        Raises UserError if the folder holds another run, or a damaged one.
        """
        newest = newest_complete(self.out)
        if newest is not None and not resume:
            if newest[0] > 0:
                raise UserError(
                    f"`out` {str(self.out)!r} holds a run at step {newest[0]}; continue with --resume or choose another"
                )
            newest = None  # nothing was done yet
        damaged = [path for step, path in checkpoints(self.out) if step > 0]
        if newest is None and damaged:
            raise UserError(
                f"`out` {str(self.out)!r} holds checkpoints of a run, but each is damaged, {damaged[-1].name} too; "
                "choose another `out`"
            )
        if newest is not None:
            self._same_config()
            steps = self.config.get("train", {}).get("steps", newest[0])
            if steps < newest[0]:
                raise UserError(
                    f"`train.steps` must be {newest[0]} or more, as the run in {str(self.out)!r} is at that step, "
                    f"got {steps}"
                )
        return newest

    def refuse_early(self, resume: bool) -> None:
        """Raises UserError as `start` would, as far as possible without reading checkpoints.

        To be called before a recipe is made, which may encode a whole set. Unlike `start`, a run that is to resume must
        have a checkpoint.
        """
        if resume and not checkpoints(self.out):
            what = "holds no checkpoint" if self.out.is_dir() else "does not exist"
            raise UserError(
                f"`--resume` continues a run, but `out` {str(self.out)!r} {what}; leave --resume out to start a run "
                "there, or correct `run.out`"
            )
        if any(step > 0 for step, _ in checkpoints(self.out)):
            if resume:
                self._same_config()
            else:
                self.start(resume)

    def begin(self) -> None:
        """Writes the config of a new run and removes an earlier log."""
        self.out.mkdir(parents=True, exist_ok=True)
        if self.writes:
            self.log_path.unlink(missing_ok=True)
            for old in self.out.glob("log-rollback-*.jsonl"):
                old.unlink()
            (self.out / CONFIG).write_text(tomli_w.dumps(self.config), encoding="utf-8")

    def steps_before(self) -> int | None:
        """`train.steps` of the run so far; None if unknown."""
        try:
            return int(self._config_before()["train.steps"])
        except (UserError, KeyError, TypeError, ValueError):
            return None

    def continue_config(self) -> None:
        """Writes the config of a resumed run, if something in it has changed."""
        if self.writes and self._config_before() != flat(self.config):
            write_atomic(self.out / CONFIG, tomli_w.dumps(self.config))

    def open_log(self) -> RunLog:
        """log.jsonl; only the process that writes writes to it."""
        return RunLog(self.log_path if self.writes else Path(os.devnull))

    def cut_log(self, step: int, keep_as: str | None = None) -> None:
        """Drops the lines past `step`: those steps will be repeated. keep_as: a file for them."""
        if not self.writes or not self.log_path.exists():
            return
        kept, dropped = [], []
        for line in self.log_path.read_text(encoding="utf-8").splitlines():
            try:
                (kept if json.loads(line)["step"] <= step else dropped).append(line)
            except (ValueError, KeyError, TypeError):
                break  # a torn last line of a killed run
        if keep_as:
            (self.out / keep_as).write_text("".join(f"{line}\n" for line in dropped), encoding="utf-8")
        write_atomic(self.log_path, "".join(f"{line}\n" for line in kept))

    def _same_config(self) -> None:
        """Raises UserError naming the keys that differ from the run's own config."""
        before, now = self._config_before(), flat(self.config)
        may_change = MAY_CHANGE | (PLACES if (self.out / set_record.NAME).exists() else set())
        keys = sorted(
            k for k in before.keys() | now.keys() if before.get(k) != now.get(k) and k not in may_change
        )
        if keys:
            changes = ", ".join(f"{k} ({before.get(k)!r} -> {now.get(k)!r})" for k in keys)
            raise UserError(
                f"the run in {str(self.out)!r} was made with another config: {changes}; "
                "set these back or choose another `out`"
            )

    def _config_before(self) -> dict[str, Any]:
        path = self.out / CONFIG
        try:
            return flat(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{str(path)!r} must be the config of the run that --resume continues: {error}"
            ) from error


class RunLog:
    """A log, appended line by line, so that it can be followed. A full disk leaves a torn line.

    Nothing is buffered: closing it writes nothing, so it cannot fail.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def line(self, line: dict[str, Any]) -> None:
        """Raises OSError if the disk is full."""
        data = (json_line(line) + "\n").encode()
        while data:
            data = data[self._file.write(data) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def recorded_dtype(out: Path) -> str | None:
    """`train.dtype` of the run in this folder; None if missing or unreadable."""
    try:
        dtype = tomllib.loads((out / CONFIG).read_text(encoding="utf-8"))["train"]["dtype"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return dtype if dtype in ("fp32", "bf16", "fp16") else None


def json_line(line: dict[str, Any]) -> str:
    """One line of JSON; NaN and infinity, which JSON lacks, become null."""
    lost = {key: None for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)}
    return json.dumps(line | lost)


def _bare(value: Any) -> Any:
    """A table or value as TOML holds it: without None, tuples as lists, other objects as their text."""
    if isinstance(value, dict):
        return {str(key): _bare(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_bare(item) for item in value if item is not None]
    return value if isinstance(value, (str, bool, int, float)) else str(value)


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A table of tables as one, its keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
