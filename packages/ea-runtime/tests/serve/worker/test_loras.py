from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ea_runtime.generation.adapters import AdapterChoice
from ea_runtime.serve.worker import loras as module
from ea_runtime.serve.worker.loras import Loras


class Handle:
    """As a plugin's adapter gives it."""

    def __init__(self, on: list[Handle], path: str, weight: float) -> None:
        self.on, self.path, self.weight, self.summary = on, path, weight, f"LoRA {Path(path).stem}"
        on.append(self)

    def unload(self) -> None:
        self.on.remove(self)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    """The handles that are on the pipe, in order."""
    found: list[Handle] = []

    def put_on(pipe: Any, choices: Any) -> list[Handle]:
        (choice,) = choices
        if "broken" in choice.path:
            raise ValueError("broken")
        return [Handle(found, choice.path, choice.weight)]

    monkeypatch.setattr(module, "put_on", put_on)
    return found


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name in ("a", "b", "c", "broken"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    return {name: str(tmp_path / f"{name}.safetensors") for name in ("a", "b", "c", "broken")}


def active(on: list[Handle]) -> list[tuple[str, float]]:
    return [(Path(one.path).stem, one.weight) for one in on if one.weight]


def put(loras: Loras, files: dict[str, str], **weights: float) -> list[dict[str, Any]]:
    return loras.put([AdapterChoice(files[name], weight) for name, weight in weights.items()])


def test_each_is_loaded_once_and_switched_off_meanwhile(on: list[Handle], files: dict[str, str]) -> None:
    loras = Loras(None)
    for weights in ({"a": 1.0}, {}, {"a": 0.5}, {"a": 0.5, "b": 2.0}, {"b": 1.0}, {"a": -1.0, "b": 1.0}):
        said = put(loras, files, **weights)
        assert active(on) == list(weights.items())
        assert [(Path(one["file"]).stem, one["weight"]) for one in said] == list(weights.items())
    assert loras.loads == 2


def test_the_order_is_the_jobs_own(on: list[Handle], files: dict[str, str]) -> None:
    loras = Loras(None)
    put(loras, files, a=1.0, b=1.0)
    put(loras, files, b=1.0, a=1.0)
    assert active(on) == [("b", 1.0), ("a", 1.0)]
    put(loras, files, a=1.0, c=1.0)
    assert active(on) == [("a", 1.0), ("c", 1.0)]


def test_a_changed_file_is_loaded_again(on: list[Handle], files: dict[str, str]) -> None:
    loras = Loras(None)
    put(loras, files, a=1.0)
    Path(files["a"]).write_bytes(b"other contents")
    put(loras, files, a=1.0)
    assert loras.loads == 2
    assert len(on) == 1


def test_a_refused_one_leaves_all_off(on: list[Handle], files: dict[str, str]) -> None:
    loras = Loras(None)
    put(loras, files, a=1.0)
    with pytest.raises(ValueError, match="broken"):
        put(loras, files, a=1.0, broken=1.0)
    assert active(on) == []
    put(loras, files, a=1.0)
    assert active(on) == [("a", 1.0)]


def test_only_so_many_stay(on: list[Handle], files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOADED", 2)
    loras = Loras(None)
    put(loras, files, a=1.0, b=1.0)
    put(loras, files, c=1.0)
    assert [Path(one.path).stem for one in on] == ["c"]
