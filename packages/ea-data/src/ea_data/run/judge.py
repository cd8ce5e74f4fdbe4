"""Which verdict a clip gets: a pure function of its scores, used where they are computed and where they are kept.

Scores are asked for in the order of cost. As soon as a filter has all the scores it reads, it decides; a drop ends the
clip, so that nothing dearer is computed for it. Whatever else may be known of the clip plays no part: the outcome is
the same whether the scores come from the ledger or are computed now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ea_data.profile import Part, Parts
from ea_data.records.record import decision_entry
from ea_runtime.errors import UserError


@dataclass(frozen=True, slots=True)
class Pending:
    """What must be computed before there is a verdict: the names of scores, in order."""

    scores: tuple[str, ...]


class Judge:
    """Scores and filters of a profile. score_all: a drop does not end the clip."""

    def __init__(self, parts: Parts, score_all: bool = False) -> None:
        self.scores = parts.scores
        self.filters = [part for part in parts.filters if not hasattr(part.component, "judge")]
        self.set_filters = [part for part in parts.filters if hasattr(part.component, "judge")]
        self.score_all = score_all

    def __call__(
        self,
        record: dict[str, Any],
        known: Mapping[str, dict[str, Any]],
        compute: Callable[[Part], dict[str, Any]] | None = None,
    ) -> Pending | None:
        """Fills scores, decisions, status and error of a record.

        known: {score name: its ledger entry, with "error" where it failed, and "stage" where another stage did}.
        compute: makes a missing entry. Without it, a missing one makes the result Pending and leaves the record
        unfinished.
        """
        record.update(scores={}, decisions=[], status="ok", error="")
        scores, waiting = self._asked_of(record)
        if self._decide(record, waiting):
            return None
        for number, part in enumerate(scores):
            entry = known.get(part.name)
            if entry is None:
                if compute is None:
                    return Pending(_missing(scores[number:], known))
                entry = compute(part)
            if "error" in entry:
                record["status"], record["error"] = (
                    "error",
                    f"{entry.get('stage', part.name)}: {entry['error']}",
                )
                return None
            record["scores"][part.name] = {**entry, "version": part.shown_version}
            if self._decide(record, waiting):
                return None
        assert not waiting, "Parts has seen to it that every filter's scores are computed"
        return None

    def _asked_of(self, record: dict[str, Any]) -> tuple[list[Part], list[Part]]:
        """The scores and filters that a record is held against: of a picture, those of moving pictures are not."""
        if not record.get("is_picture"):
            return self.scores, list(self.filters)
        scores = [part for part in self.scores if not _is_for_videos(part)]
        left_out = {part.name for part in self.scores if _is_for_videos(part)}
        return scores, [
            part
            for part in self.filters
            if not _is_for_videos(part) and left_out.isdisjoint(part.component.scores)
        ]

    def _decide(self, record: dict[str, Any], waiting: list[Part]) -> bool:
        """Asks all filters that have their scores now, for it costs nothing. True where the clip has ended."""
        ready = [
            part for part in waiting if all(score in record["scores"] for score in part.component.scores)
        ]
        for part in ready:
            waiting.remove(part)
            if not decide(record, part):
                return True
        return record["status"] == "dropped" and not self.score_all


def _is_for_videos(part: Part) -> bool:
    return bool(getattr(part.component, "videos_only", False))


def _missing(scores: list[Part], known: Mapping[str, dict[str, Any]]) -> tuple[str, ...]:
    """Names of missing scores, up to the first that is known to fail: nothing after it will count."""
    names = []
    for part in scores:
        entry = known.get(part.name)
        if entry is None:
            names.append(part.name)
        elif "error" in entry:
            break
    return tuple(names)


def decide(record: dict[str, Any], part: Part) -> bool:
    """Adds one filter's decision to a record. False where the filter failed: the record is then an error."""
    try:
        decision = part.component(record)
        entry = decision_entry(part.name, decision, part.shown_version)
    # a plugin's filter may raise anything; it costs the clip, not the run
    except Exception as error:
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        record["status"], record["error"] = "error", f"{part.name}: {' '.join(told.split())}"
        return False
    record["decisions"].append(entry)
    if not decision.is_kept:
        record["status"] = "dropped"
    return True
