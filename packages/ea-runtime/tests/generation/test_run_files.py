"""The files of a saved run: what is written comes back, what is damaged is refused, and nothing foreign is touched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from ea_runtime.errors import UserError
from ea_runtime.generation import run_files
from ea_runtime.generation.packing import UnpackableError
from ea_runtime.generation.run_files import (
    differences,
    is_writing,
    load_state,
    mark_writing,
    read_state,
    remove_state,
    state_folder,
    write_state,
)

KEY = {"settings": {"seed": 3, "prompt": "größer"}, "model": "0" * 64}
CPU = torch.device("cpu")


def state() -> dict[str, Any]:
    return {"latents": torch.arange(4.0), "passes": 3, "history": [torch.ones(2, dtype=torch.bfloat16), None]}


def written(folder: Path, phase: str = "denoising", done: int = 3) -> Path:
    write_state(folder, KEY, phase, done, 6, state())
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        read_state(folder)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"the saved run in {folder} ")
    return str(error.value)


# --- there and back ----------------------------------------------------------------------------------------


def test_a_state_comes_back_bit_exact(tmp_path: Path) -> None:
    found = read_state(written(tmp_path / "run"))
    assert found is not None
    assert (found.phase, found.done, found.total, found.key) == ("denoising", 3, 6, KEY)
    assert found.summary == "step 3 of 6"
    again = load_state(found, CPU)
    assert torch.equal(again["latents"], state()["latents"])
    assert torch.equal(again["history"][0], state()["history"][0])
    assert again["history"][0].dtype == torch.bfloat16
    assert (again["passes"], again["history"][1]) == (3, None)
    with pytest.raises(AttributeError):
        found.done = 7  # pyright: ignore[reportAttributeAccessIssue]
    denoised = read_state(written(tmp_path / "run", "denoised"))
    assert denoised is not None
    assert denoised.summary == "denoised"


TEXTS = st.text('aÜ圆\n"\\/.', max_size=4)
VALUES = st.none() | st.booleans() | st.integers(-(1 << 40), 1 << 40) | st.floats(allow_nan=False) | TEXTS
VALUES = VALUES | st.lists(VALUES, max_size=2) | st.dictionaries(TEXTS, VALUES, max_size=2)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    values=st.dictionaries(TEXTS, VALUES, max_size=3),
    key=st.dictionaries(TEXTS, VALUES, max_size=3),
)
def test_any_state_and_key_come_back(tmp_path_factory: pytest.TempPathFactory, values: Any, key: Any) -> None:
    folder = tmp_path_factory.mktemp("run")
    write_state(folder, key, "denoising", 1, 2, values)
    found = read_state(folder)
    assert found is not None
    assert (found.key, load_state(found, CPU)) == (key, values)
    assert differences(found.key, key) == ""


def test_a_save_replaces_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    written(tmp_path)
    (first,) = tmp_path.glob("*.safetensors")
    assert first.name.startswith("denoising-3-")
    (tmp_path / "note.txt").write_text("mine")
    partial = tmp_path / ".state.json.01234567.part"  # of a save that was killed
    partial.write_text("x")
    written(tmp_path, done=4)
    (second,) = tmp_path.glob("*.safetensors")
    assert second != first
    assert not partial.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [second.name, "note.txt", "state.json"]
    body = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))
    assert (body["ea_run"], body["file"], body["done"]) == (1, second.name, 4)
    assert body["sha256"] == hashlib.sha256(second.read_bytes()).hexdigest()


def test_a_file_that_is_gone_already_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: [folder / "gone.safetensors"])
    written(tmp_path)
    remove_state(tmp_path, keep_folder=True)
    assert not (tmp_path / "state.json").exists()


def test_what_cannot_be_packed_leaves_the_state_before(tmp_path: Path) -> None:
    written(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UnpackableError):
        write_state(tmp_path, KEY, "denoising", 4, 6, {"hook": print})
    assert sorted(tmp_path.iterdir()) == before
    found = read_state(tmp_path)
    assert found is not None
    assert found.done == 3


def test_both_files_survive_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = run_files.atomic_file

    def atomic_file(target: Path, *, durable: bool = False) -> Any:
        asked.append((target.suffix, durable))
        return real(target, durable=durable)

    monkeypatch.setattr(run_files, "atomic_file", atomic_file)
    written(tmp_path)
    assert asked == [(".safetensors", True), (".json", True)]  # the one that names the other comes second


# --- what is refused ---------------------------------------------------------------------------------------


def changed(folder: Path, **values: Any) -> None:
    """Changes state.json as somebody would who also knows its check sum."""
    body = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    del body["check"]
    body = {name: value for name, value in {**body, **values}.items() if value is not ...}
    check = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (folder / "state.json").write_text(json.dumps({**body, "check": check}), encoding="utf-8")


def test_no_state_is_no_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert read_state(folder) is None
    (tmp_path / "state.json").mkdir()
    assert read_state(tmp_path) is None


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: changed(f, ea_run=2), "is of another version of this program"),
        (lambda f: changed(f, ea_run=...), "is damaged: state.json is none"),
        (lambda f: changed(f, phase=...), "is damaged: state.json is none"),
        (lambda f: changed(f, file=7), "is damaged: state.json is none"),
        (lambda f: changed(f, sha256="0" * 64), "is not what was written"),
        (lambda f: changed(f, file="other.safetensors"), "is damaged: other.safetensors is not what was written"),
        (lambda f: (f / "state.json").write_text("[1]"), "is damaged: state.json is none"),
        (lambda f: (f / "state.json").write_text("7"), "is damaged: state.json is none"),
        (lambda f: (f / "state.json").write_text("{}"), "is damaged: state.json is none"),
        (lambda f: (f / "state.json").write_text("[" * 100_000), "is damaged: state.json is none"),
        (lambda f: (f / "state.json").write_bytes(b"\xff"), "is damaged: state.json is none"),
    ],
)  # fmt: skip
def test_damage_is_one_line(tmp_path: Path, harm: Callable[[Path], Any], message: str) -> None:
    harm(written(tmp_path))
    assert message in refused(tmp_path)


def test_each_value_of_a_state_is_under_its_check_sum(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "state.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    for name, value in (
        ("done", 4),
        ("phase", "denoised"),
        ("key", {}),
        ("tree", {}),
        ("file", "x"),
        ("total", 7),
    ):
        path.write_text(json.dumps({**body, name: value}))
        assert "is damaged: state.json is not what was written" in refused(tmp_path)
    path.write_text(json.dumps({**body, "ea_run": 2}))
    assert "is of another version" in refused(tmp_path)


def test_a_name_that_leads_out_is_one_in_the_folder(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    (inner,) = folder.glob("*.safetensors")
    inner.rename(tmp_path / "secret.safetensors")
    changed(folder, file="../secret.safetensors")
    assert "secret.safetensors is not what was written" in refused(folder)


def test_a_state_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_files.MAX_STATE_BYTES == 16 << 20
    size = (written(tmp_path) / "state.json").stat().st_size
    monkeypatch.setattr(run_files, "MAX_STATE_BYTES", size)
    assert read_state(tmp_path)
    monkeypatch.setattr(run_files, "MAX_STATE_BYTES", size - 1)
    assert f"is damaged: state.json has more than {size - 1:,} bytes" in refused(tmp_path)


def test_a_state_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)

    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(run_files, "file_hash", fail)
    assert refused(tmp_path).endswith("cannot be read: Input/output error")


def test_tensors_that_are_none_are_one_line(tmp_path: Path) -> None:
    found = read_state(written(tmp_path))
    assert found is not None
    tensors = load_file(found.tensors)
    for harm in (b"x", save(dict(list(tensors.items())[:1]))):
        found.tensors.write_bytes(harm)
        with pytest.raises(UserError, match="cannot be read") as error:
            load_state(found, CPU)
        assert "\n" not in str(error.value)
        assert str(tmp_path) in str(error.value)


# --- the folder --------------------------------------------------------------------------------------------


def test_a_run_has_a_hidden_folder_next_to_its_output(tmp_path: Path) -> None:
    assert state_folder(tmp_path / "out.mp4") == tmp_path / ".out.mp4.ea-run"
    assert len(state_folder(tmp_path / ("x" * 250)).name.encode()) <= 255


def test_a_file_in_the_outputs_place_is_the_runs_once_it_was_marked(tmp_path: Path) -> None:
    written(tmp_path)
    assert is_writing(tmp_path) is False
    mark_writing(tmp_path)
    assert is_writing(tmp_path) is True
    (tmp_path / "state.json").unlink()
    assert is_writing(tmp_path) is False
    mark_writing(tmp_path / "writing" / "below")  # a place that cannot be written ends nothing


@pytest.mark.parametrize("keep_folder", [False, True])
def test_removing_a_run_removes_all_of_it_and_nothing_else(tmp_path: Path, keep_folder: bool) -> None:
    folder = written(tmp_path / "run")
    mark_writing(folder)
    for name in ("frames.raw", "frames.jsonl", ".state.json.01234567.part"):
        (folder / name).write_text("x")
    remove_state(folder, keep_folder)
    assert folder.exists() is keep_folder
    assert not keep_folder or list(folder.iterdir()) == []
    written(folder)
    (folder / "note.txt").write_text("mine")
    remove_state(folder)
    assert [path.name for path in folder.iterdir()] == ["note.txt"]
    remove_state(tmp_path / "none")


def test_the_folder_is_removed_by_default_and_the_state_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path / "run")
    real, gone = Path.unlink, []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        gone.append(path.name)
        if len(gone) == 2:
            raise PermissionError(13, "Permission denied")
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    remove_state(folder)  # what stays ends nothing
    assert gone[0] == "state.json"
    assert read_state(folder) is None
    monkeypatch.undo()
    remove_state(folder)
    assert not folder.exists()


# --- what differs ------------------------------------------------------------------------------------------


def test_what_differs_is_named_with_both_values() -> None:
    old = {"settings": {"seed": 1, "prompt": "a"}, "tiling": None, "same": [1]}
    new = {"settings": {"seed": 2, "prompt": "ü"}, "engine": "torch", "same": [1]}
    assert differences(old, old) == ""
    assert (
        differences(old, new) == 'settings.seed 1 -> 2; settings.prompt "a" -> "ü"; engine nothing -> "torch"'
    )
    assert differences({"a": 1}, {"a": {"b": 1}}) == "a 1 -> nothing; a.b nothing -> 1"
    assert differences({"a": {}}, {}) == ""
    assert differences({"a": {1: 2}}, {"a": {1: 3}}) == "a.1 2 -> 3"


def test_four_differences_are_named_and_the_others_counted() -> None:
    old = dict.fromkeys("abcdef", 1)
    assert differences({}, dict.fromkeys("abcd", 1)) == "; ".join(f"{one} nothing -> 1" for one in "abcd")
    assert differences(old, {}) == "; ".join(f"{one} 1 -> nothing" for one in "abcd") + "; 2 more"
    assert differences(old, {}, limit=5).endswith("e 1 -> nothing; 1 more")
    shown = 'prompt "' + "x" * 36 + "... -> nothing"  # 40 characters of each
    assert differences({"prompt": "x" * 1000}, {}) == shown
    line = differences({"prompt": "x" * 1000}, {"prompt": "\n" * 1000})
    assert len(line) < 120
    assert "\n" not in line
