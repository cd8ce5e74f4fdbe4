"""The recipe in an output: what it holds of a record, that it comes back, and what other programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ea_runtime.errors import UserError
from ea_runtime.files.hashes import content_hash
from ea_runtime.generation import recipe
from ea_runtime.generation.recipe import marks_of, read_embedded
from ea_runtime.generation.sidecar import read_recorded, sidecars_of, write_sidecar
from ea_runtime.video.marks import Marks
from ea_runtime.video.output import write_video

SETTINGS = {
    "prompt": "a  circle,\nbig",
    "negative_prompt": "blurry",
    "num_frames": 9,
    "height": 32,
    "width": 48,
    "num_inference_steps": 2,
    "guidance_scale": 4.0,
    "sampler": "dpm++",
    "seed": 43,
    "smooth": True,
    "image": "/home/me/cat.png",
    "video": "",
}
LORA = {
    "file": "/home/me/style.safetensors",
    "sha256": "b" * 64,
    "weight": 0.5,
    "summary": "8 layers matched",
}
RECORD: dict[str, Any] = {
    "settings": SETTINGS,
    "fps": 12.5,
    "model": {"name": "/home/me/tiny", "sha256": "a" * 64},
    "device": {"device": "cpu", "dtype": "float32", "threads": 4, "name": "a processor"},
    "versions": {"torch": "2"},
    "loras": [LORA],
    "inputs": {"image": "c" * 64},
    "engine": {"name": "onnx", "bundle": "/home/me/bundle"},
    "timings": {"total": 3.5},
}


def test_a_recipe_holds_what_makes_the_output_again_and_no_place_on_this_disk() -> None:
    marks = marks_of(RECORD)
    assert json.loads(marks.recipe) == {
        "ea_recipe": 1,
        "settings": {**SETTINGS, "image": "cat.png"},
        "fps": 12.5,
        "model": {"name": "tiny", "sha256": "a" * 64},
        "device": {"device": "cpu", "dtype": "float32"},
        "loras": [{"file": "style.safetensors", "sha256": "b" * 64, "weight": 0.5}],
        "inputs": {"image": "c" * 64},
        "engine": {"name": "onnx"},
    }
    assert "/home" not in "".join((marks.recipe, marks.parameters, marks.comment))
    assert marks.comment == "Made by AI with ea: a circle, big"


def test_what_was_not_used_is_not_in_it() -> None:
    plain = {name: RECORD[name] for name in ("settings", "fps", "model", "device")}
    found = json.loads(marks_of({**plain, "loras": []}).recipe)
    assert found.keys() == {"ea_recipe", "settings", "fps", "model", "device"}
    assert json.loads(marks_of(plain).recipe) == found


def test_other_programs_read_its_settings() -> None:
    assert marks_of(RECORD).parameters.split("\n") == [
        "a  circle,",
        "big <lora:style:0.5>",
        "Negative prompt: blurry",
        "Steps: 2, Sampler: DPM++ 2M, CFG scale: 4, Seed: 43, Size: 48x32, Model hash: aaaaaaaaaa, Model: tiny, "
        'Frames: 9, FPS: 12.5, Lora hashes: "style: bbbbbbbbbb", Version: ea',
    ]
    changed = {
        **RECORD,
        "loras": (),
        "settings": {**SETTINGS, "negative_prompt": "", "sampler": "größer: own, too"},
    }
    parameters = marks_of(changed).parameters
    assert 'Sampler: "größer: own, too", CFG' in parameters
    assert "Negative" not in parameters
    assert "Lora" not in parameters
    two = marks_of({**RECORD, "loras": [LORA, {**LORA, "file": "x.safetensors", "weight": 1.0}]}).parameters
    assert "<lora:style:0.5> <lora:x:1>" in two
    assert '"style: bbbbbbbbbb, x: bbbbbbbbbb"' in two


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("euler", "Euler"),
        ("euler-a", "Euler a"),
        ("dpm++", "DPM++ 2M"),
        ("ddim", "DDIM"),
        ("pndm", "PLMS"),
        ("unipc", "UniPC"),
    ],
)
def test_samplers_have_the_names_of_other_programs(ours: str, theirs: str) -> None:
    parameters = marks_of({**RECORD, "settings": {**SETTINGS, "sampler": ours}}).parameters
    assert f"Sampler: {theirs}, " in parameters


def written(path: str, marks: Marks | None) -> Path:
    return write_video(path, [np.zeros((16, 16, 3), np.uint8)], 8, marks=marks)


@pytest.mark.parametrize(("name", "kind"), [("out.png", "png"), ("frames/", "folder")])
def test_a_recipe_in_an_output_is_a_record(tmp_path: Path, name: str, kind: str) -> None:
    path = written(f"{tmp_path}/{name}", marks_of(RECORD))
    record = read_embedded(path, kind)
    assert record == {
        **{key: value for key, value in json.loads(marks_of(RECORD).recipe).items() if key != "ea_recipe"},
        "ea_sidecar": 1,
        "versions": {},
        "output": {"file": path.name, "kind": kind, "sha256": content_hash(path)},
    }
    assert read_recorded(path) == record


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_embedded(path, "png")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not say how it was made; give the .json next to it"),
        ("[1]", "has a recipe of another version; update ea-runtime"),
        ('{"ea_recipe": 2}', "has a recipe of another version"),
        ("{}", "has a recipe of another version"),
        ("{]", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"ea_recipe": 1}', "`settings` is missing"),
    ],
)
def test_outputs_that_say_nothing_usable(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(written(f"{tmp_path}/out.png", Marks(text)))


def test_outputs_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(tmp_path / "none.png").endswith(
        "cannot be read: No such file or directory; give an output of `ea generate`"
    )
    (tmp_path / "x.png").write_text("x")
    assert "cannot be read: cannot identify image file" in refused(tmp_path / "x.png")
    for error in (ValueError("x" * 200), RecursionError("x" * 200)):

        def fail(place: Path, kind: str, error: Exception = error) -> str:
            raise error

        monkeypatch.setattr(recipe, "read_recipe", fail)
        assert f"cannot be read: {'x' * 100}; give" in refused(tmp_path / "x.png")


def test_a_signed_output_has_no_hash_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(f"{tmp_path}/out.png", marks_of(RECORD))
    monkeypatch.setattr(recipe, "is_signed", lambda place: True)
    assert read_embedded(path, "png")["output"]["sha256"] == ""
    folder = written(f"{tmp_path}/frames/", marks_of(RECORD))  # folders are never signed
    assert read_embedded(folder, "folder")["output"]["sha256"] == content_hash(folder)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(("name", "kind"), [("out.png", "png"), ("frames/", "folder")])
def test_the_sidecar_of_these_very_contents_comes_first(
    tmp_path: Path, name: str, kind: str, number: int
) -> None:
    """It holds more than the recipe; one about other contents, or another file, is not believed."""
    path = written(f"{tmp_path}/{name}", marks_of(RECORD))
    places = sidecars_of(path, kind)
    if number >= len(places):
        assert (kind, [one.name for one in places]) == ("folder", ["frames.json"])
        return
    own = {**RECORD, "output": {"file": path.name, "kind": kind, "sha256": content_hash(path)}}
    for changes, is_believed in (
        ({}, True),
        ({"sha256": "0" * 64}, False),
        ({"file": "other.png"}, False),
    ):
        write_sidecar(places[number], {**own, "output": {**own["output"], **changes}})
        assert ("timings" in read_recorded(path)) is is_believed
    places[number].write_text("no sidecar")
    assert "timings" not in read_recorded(path)
