"""The verdict about a clip: a pure function of its scores, used both when they are computed and when they are read.

Scores are needed in the order of cost. As soon as a filter has all the scores it reads, it decides; a drop ends the
clip, so no costlier score is computed for it. Other known scores play no part: the outcome is the same whether the
scores come from the ledger or are computed now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any

from ea_data.profile import Components, Part
from ea_data.records.record import decision_entry
from ea_runtime.errors import UserError


class Judge:
    """Scores and filters of a profile. score_all: a drop does not end the clip."""

    def __init__(self, parts: Components, score_all: bool = False) -> None:
        self.scores = parts.scores
        self.filters = [part for part in parts.filters if not hasattr(part.component, "judge")]
        self.set_filters = [part for part in parts.filters if hasattr(part.component, "judge")]
        self.score_all = score_all

    def __call__(
        self,
        record: dict[str, Any],
        known: Mapping[str, dict[str, Any]],
        compute: Callable[[Part], dict[str, Any]] | None = None,
    ) -> tuple[str, ...]:
        """Fills scores, decisions, status and error of a record. Returns the scores that it lacks for a verdict.

        known: {score name: its ledger entry, with "error" if it failed, and "stage" if another stage did}.
        compute: makes a missing entry. Without it, a missing one leaves the record unfinished, and the names of all
        missing ones are returned in order, up to the first that is known to fail, after which none counts.
        """
        record.update(scores={}, decisions=[], status="ok", error="")
        scores, waiting = self._asked_of(record)
        if self._decide(record, waiting):
            return ()
        for number, part in enumerate(scores):
            entry = known.get(part.name)
            if entry is None:
                if compute is None:
                    sound = takewhile(lambda part: "error" not in known.get(part.name, ()), scores[number:])
                    return tuple(part.name for part in sound if part.name not in known)
                entry = compute(part)
            if "error" in entry:
                stage = entry.get("stage", part.name)
                record.update(status="error", error=f"{stage}: {entry['error']}")
                return ()
            record["scores"][part.name] = {**entry, "version": part.shown_version}
            if self._decide(record, waiting):
                return ()
        assert not waiting, "Components checks that every filter's scores are computed"
        return ()

    def _asked_of(self, record: dict[str, Any]) -> tuple[list[Part], list[Part]]:
        """The scores and filters that apply to a record: those for videos do not apply to a picture."""
        if not record.get("is_picture"):
            return self.scores, list(self.filters)
        scores = [part for part in self.scores if not _is_for_videos(part)]
        names = {part.name for part in scores}
        filters = [part for part in self.filters if names >= set(part.component.scores)]
        return scores, [part for part in filters if not _is_for_videos(part)]

    def _decide(self, record: dict[str, Any], waiting: list[Part]) -> bool:
        """Applies all filters that have their scores by now. True if the clip has ended."""
        ready = [part for part in waiting if record["scores"].keys() >= set(part.component.scores)]
        for part in ready:
            waiting.remove(part)
            if not decide(record, part):
                return True
        return record["status"] == "dropped" and not self.score_all


def _is_for_videos(part: Part) -> bool:
    return bool(getattr(part.component, "videos_only", False))


def decide(record: dict[str, Any], part: Part) -> bool:
    """Adds one filter's decision to a record. False if the filter failed: the record is then an error."""
    try:
        decision = part.component(record)
        entry = decision_entry(part.name, decision, part.shown_version)
    # a plugin's filter may raise anything, at the cost of the clip, not of the run
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        record.update(status="error", error=f"{part.name}: {' '.join(reason.split())}")
        return False
    record["decisions"].append(entry)
    if not decision.is_kept:
        record["status"] = "dropped"
    return True
