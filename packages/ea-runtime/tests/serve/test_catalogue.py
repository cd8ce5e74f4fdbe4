from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ea_runtime.errors import UserError
from ea_runtime.serve import catalogue as module
from ea_runtime.serve.catalogue import Catalogue, UnknownName


@pytest.fixture(autouse=True)
def _always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRESH", 0.0)


def lora(path: Path, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x.lora_down.weight": np.zeros((1, 1), np.float32)}, path, metadata or None)
    return path


def test_the_bundled_model_is_always_there() -> None:
    catalogue = Catalogue()
    assert list(catalogue.models()) == ["tiny"]
    entry = catalogue.model("tiny")
    assert (entry.folder, entry.defaults.width, entry.geometry.chunk_frames) == ("tiny", 64, 9)
    assert catalogue.default() == "tiny"
    assert catalogue.loras() == {}


def test_models_come_and_go_without_a_restart(folder_source: Path, tmp_path: Path) -> None:
    catalogue = Catalogue([tmp_path])
    shutil.copytree(folder_source, tmp_path / "mine")
    (tmp_path / "notes").mkdir()
    assert list(catalogue.models()) == ["tiny", "mine"]
    assert catalogue.default() == "mine"
    assert catalogue.model("mine").folder == str(tmp_path / "mine")
    settings = tmp_path / "mine" / "ea.json"
    settings.write_text(json.dumps({"steps": 7}))
    assert catalogue.model("mine").defaults.steps == 7
    settings.write_text(json.dumps({"steps": 11}))
    assert catalogue.model("mine").defaults.steps == 11
    settings.write_text("{")
    with pytest.raises(UserError, match=r"'mine' cannot be used.*JSON"):
        catalogue.model("mine")
    assert catalogue.default() == "tiny"
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(UnknownName, match="there are: tiny"):
        catalogue.model("mine")


def test_a_model_folder_itself_may_be_given(folder_source: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(folder_source, tmp_path / "mine"))
    assert list(Catalogue([mine]).models()) == ["tiny", "mine"]


def test_names_are_never_paths(folder_source: Path, tmp_path: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    allowed.mkdir()
    shutil.copytree(folder_source, other)
    shutil.copytree(folder_source, allowed / ".hidden")
    lora(tmp_path / "secret.safetensors")
    catalogue = Catalogue([allowed], [allowed])
    for name in (str(other), "../other", "./tiny", ".hidden", "", "tiny\0", None, 3, ["tiny"], "TINY"):
        with pytest.raises(UnknownName, match="no model is called") as error:
            catalogue.model(name)
        assert str(tmp_path) not in str(error.value).replace(repr(name), "")
    for name in ("../secret", str(tmp_path / "secret.safetensors"), None):
        with pytest.raises(UnknownName, match="no LoRA is called"):
            catalogue.lora(name)


def test_loras_and_what_their_headers_say(tmp_path: Path) -> None:
    lora(tmp_path / "a" / "style.safetensors")
    lora(
        tmp_path / "a" / "inks.safetensors",
        **{
            "modelspec.trigger_phrase": "inks, black\x1b[31m ink, ",
            "ss_sd_model_name": "tiny",
            "ss_network_dim": "4",
            "modelspec.title": "Inks",
        },
    )
    lora(tmp_path / "a" / "peft" / "adapter_model.safetensors")
    lora(tmp_path / "b" / "style.safetensors", **{"modelspec.title": "the second of this name"})
    (tmp_path / "a" / "broken.safetensors").write_bytes(b"no header")
    (tmp_path / "a" / "readme.txt").touch()
    catalogue = Catalogue(loras=[tmp_path / "a", tmp_path / "b"])
    assert sorted(catalogue.loras()) == ["broken", "inks", "peft", "style"]
    inks = catalogue.lora("inks")
    assert (inks.model, inks.trigger_words, inks.summary) == (
        "tiny",
        ("inks", "black?[31m ink"),
        "Inks, rank 4",
    )
    assert catalogue.lora("style").path == str(tmp_path / "a" / "style.safetensors")
    assert catalogue.lora("peft").path == str(tmp_path / "a" / "peft")
    with pytest.raises(UserError, match=r"'broken' cannot be used.*damaged"):
        catalogue.lora("broken")
    with pytest.raises(UnknownName, match="did you mean 'style'"):
        catalogue.lora("stile")
    (tmp_path / "a" / "style.safetensors").unlink()
    assert catalogue.lora("style").summary == "the second of this name"


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    for options, name in (
        ({"models": [tmp_path / "no"]}, "--models"),
        ({"loras": [tmp_path / "no"]}, "--loras"),
    ):
        with pytest.raises(UserError, match=f"{name}.*must be a folder"):
            Catalogue(**options)


def test_a_folder_that_vanishes_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    catalogue = Catalogue([tmp_path / "models"], [tmp_path / "models"])
    (tmp_path / "models").rmdir()
    assert list(catalogue.models()) == ["tiny"]
    assert catalogue.loras() == {}


def test_no_torch() -> None:
    code = (
        "import sys, ea_runtime.serve.orders as o; o.make_order({'prompt': 'x'}, o.Catalogue()); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=60
    )
    assert done.stdout == "False\n", done.stderr
