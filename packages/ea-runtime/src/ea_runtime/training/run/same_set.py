"""Compares a resumed run's set with the one that the run began with."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.machine.processes import from_first, world
from ea_runtime.training.data.dataset import TrainingSet
from ea_runtime.training.data.set_record import NAME, changes, describe_set, read_record, write_record
from ea_runtime.training.run.checkpoints import checkpoints


def check_set(recipe: Any, out: Path, say: Callable[[str], None], *, is_new: bool) -> None:
    """Records the set of a new run in `out`, or raises UserError, one line, if a run began with another.

    Every process must call this; only the first compares. A recipe without `training_set` has nothing to compare.
    """
    found: tuple[TrainingSet, Path] | None = getattr(recipe, "training_set", lambda: None)()
    if found is None:
        return
    _by_the_first(lambda: _compare(*found, out, say, is_new=is_new))


def refuse_changed(data: TrainingSet, root: Path, out: Path) -> None:
    """Raises UserError as `check_set` does, if a run in `out` has steps and a record: before its set is encoded anew.

    Every process must call this.
    """

    def compare() -> str:
        is_begun = any(step > 0 for step, _ in checkpoints(out)) and (out / NAME).exists()
        return _compare(data, root, out, lambda line: None, is_new=False) if is_begun else ""

    _by_the_first(compare)


def _by_the_first(compare: Callable[[], str]) -> None:
    refusal = ""
    if world()[0] == 0:
        try:
            refusal = compare()
        except UserError as error:
            refusal = str(error)
    refusal = from_first(refusal)
    if refusal:
        raise UserError(refusal)


def _compare(data: TrainingSet, root: Path, out: Path, say: Callable[[str], None], *, is_new: bool) -> str:
    """The reason for refusing the set; "" if it is accepted."""
    record = out / NAME
    if is_new or not record.exists():
        if not is_new:
            say(f"the run has no record of its set; {NAME} holds the present one from now on")
        write_record(record, describe_set(data, root))
        return ""
    now = describe_set(data, root, read_record(record))
    if all(
        old and new and old.contents == new.contents for old, new in zip_longest(read_record(record), now)
    ):
        return ""
    told = changes(list(read_record(record)), list(describe_set(data, root, read_record(record))))
    if not told:
        return ""
    return (
        f"the set of the run in {str(out)!r} has changed since it began: {told}; put it back (`data.path` may be "
        "another folder), or choose another `out` for a run on the new set"
    )
