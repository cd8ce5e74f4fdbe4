"""Lines about a set that a run reports at its start, so that nothing is dropped silently."""

from __future__ import annotations

from ea_runtime.text.lost_words import LOOKED_AT, tell_lost_words
from ea_runtime.training.data.dataset import TrainingSet


def file_remarks(data: TrainingSet) -> list[str]:
    """Remarks of a set on its files, once its `buckets` are known; none from sets without `remarks`."""
    return list(getattr(data, "remarks", list)())


def caption_remarks(data: TrainingSet) -> list[str]:
    """Lines about empty captions, and words that cleaning removes (of LOOKED_AT captions, spread over the set)."""
    lines = []
    count = len(data)
    empty = sum(not data.item(index).text.strip() for index in range(count))
    if empty:
        lines.append(f"{empty} of {count} captions are empty: those samples train the empty prompt")
    looked = range(0, count, max(1, count // LOOKED_AT))
    what = "captions" if len(looked) == count else f"captions looked at (of {count:,})"
    lost = tell_lost_words((data.item(index).text for index in looked), what)
    return [*lines, lost] if lost else lines
