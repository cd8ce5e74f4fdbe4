"""Remarks of a run on its set before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ea_runtime.training.data import remarks
from ea_runtime.training.data.dataset import Item, TrainingSet


class Captions:
    """The part of a set that the remarks need."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.asked = 0

    def __len__(self) -> int:
        return len(self.texts)

    def item(self, index: int) -> Item:
        self.asked += 1
        return Item(Path(f"{index}.png"), self.texts[index], False, 0, 0)


def lines(*texts: str) -> list[str]:
    return remarks.caption_remarks(cast(TrainingSet, Captions(texts)))


def test_captions() -> None:
    assert lines("a red circle", "a cat") == []
    empty, lost = lines("", " \n", "gr4ph1c cat", "a dog")
    assert empty.startswith("2 of 4 captions are empty")
    assert "1 of 4 captions: gr4ph1c;" in lost


def test_a_large_set_is_looked_at_in_part(monkeypatch: Any) -> None:
    monkeypatch.setattr(remarks, "LOOKED_AT", 10)
    (line,) = lines(*["gr4ph1c cat"] * 100)
    assert "10 of 10 captions looked at (of 100): gr4ph1c" in line


def test_sets_may_say_nothing_about_their_files() -> None:
    assert remarks.file_remarks(cast(TrainingSet, Captions([]))) == []
