"""Unusable files: counted exactly, logged, reported once each; too many end the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError, writing
from ea_runtime.files.atomic import write_atomic


class ErrorBudget:
    """Stops a run once more than `share` of its set's samples are bad files; until then it continues without them.

    share: 0..1. set_size: samples of the set (1 or more): the share is one of the whole set, so that one bad file
    in the first batch of a large set stops nothing. path: the log (one line of JSON per file: "path", "reason"), by
    convention quarantine.jsonl in the run's folder; None: nothing is written.
    say: shows one line to the user, called once for each new bad file.
    Raises UserError if `share` is not between 0 and 1.
    """

    def __init__(
        self,
        share: float = 0.01,
        path: Path | None = None,
        set_size: int = 1,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not 0 <= share <= 1:
            raise UserError(
                f"`bad_share` must be between 0 and 1, got {share}; 0.01 allows 1 bad file in 100"
            )
        assert set_size > 0
        self.share = share
        self.path = path
        self.set_size = set_size
        self.say = say
        #: path of each bad file -> reason, in the order they were found
        self.bad: dict[str, str] = {}
        #: samples used, repeated ones counted again
        self.used = 0

    @property
    def allowed(self) -> int:
        """Bad files that the run may have."""
        return math.floor(self.share * self.set_size + 1e-9)

    def start(self) -> None:
        """Starts over: forgets everything, and removes the log of an earlier run."""
        self.bad, self.used = {}, 0
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def count(self, used: int, bad: Iterable[tuple[int, str, str]]) -> None:
        """Counts a batch: the number of samples used, and (sample, path, reason) of the unusable ones.

        Raises UserError, one line with the counts and the log's path, if bad files exceed the share.
        """
        self.used += used
        new = {path: reason for _, path, reason in reversed(list(bad)) if path not in self.bad}
        for path, reason in reversed(new.items()):
            self.bad[path] = reason
            self.say(f"left out, {_one_line(reason)}: {_one_line(path)}")
        if new and self.path is not None:
            with writing(self.path, "make room there and continue with --resume"):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("".join(_line(path, reason) for path, reason in reversed(new.items())))
        if len(self.bad) > self.allowed:
            where = f"; {str(self.path)!r} lists them" if self.path is not None else ""
            raise UserError(
                f"{len(self.bad)} files cannot be used (after {self.used} samples that could), "
                f"`train.bad_share` {self.share:g} of {self.set_size} samples allows {self.allowed}{where}: "
                "mend or remove them, or raise the share"
            )

    def state_dict(self) -> dict[str, Any]:
        """Its counts, for JSON."""
        return {"used": self.used, "bad": list(map(list, self.bad.items()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict`; the log is cut to its files, since later ones will be met again."""
        self.used = int(state["used"])
        self.bad = {str(path): str(reason) for path, reason in state["bad"]}
        if self.path is None:
            return
        if not self.bad:
            self.path.unlink(missing_ok=True)
            return
        write_atomic(self.path, "".join(_line(*pair) for pair in self.bad.items()))


def _line(path: str, reason: str) -> str:
    return json.dumps({"path": path, "reason": reason}) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())
