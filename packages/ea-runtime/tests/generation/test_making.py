"""The model's hash that a thread counts while the video is made."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ea_runtime.errors import UserError
from ea_runtime.generation import making
from ea_runtime.generation.making import ModelHash
from ea_runtime.models.hash import model_hash


def test_the_hash_is_the_models() -> None:
    assert ModelHash("tiny")() == model_hash("tiny")


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), UserError("no such model")])
def test_a_model_that_vanishes_fails_in_the_call_and_not_in_the_thread(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def gone(model: str) -> str:
        raise error

    monkeypatch.setattr(making, "model_hash", gone)
    found = ModelHash(str(tmp_path))
    with pytest.raises(type(error)):
        found()
    assert found.is_ready
    assert not seen
