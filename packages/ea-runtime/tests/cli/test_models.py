"""`ea models`: words on the screen, exit codes, and no torch before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from ea_runtime.cli.models import app
from ea_runtime.errors import UserError

VAE_FILE = "vae/diffusion_pytorch_model.safetensors"


def run(*words: object) -> tuple[int, str]:
    """Exit code and output; a UserError becomes code 2 as in the program."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        return 2, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_check_of_a_folder_that_loads(model_folder: Path) -> None:
    code, output = run("check", model_folder)
    assert code == 0
    for expected in (
        "FakeVae (fake_networks.py)",
        "T5EncoderModel (ea-runtime)",
        "F32 100%",
        "this folder loads",
    ):
        assert expected in output
    assert output.count("estimate") == 2
    code, output = run("check", model_folder, "--json")
    assert code == 0
    assert json.loads(output)["is_loadable"] is True


def test_check_of_a_folder_that_does_not_load(model_folder: Path) -> None:
    tensors = load_file(model_folder / VAE_FILE)
    (model_folder / VAE_FILE).unlink()
    torch.save(tensors, model_folder / "vae/pytorch_model.bin")
    code, output = run("check", model_folder)
    assert code == 1
    assert "pickles     1: pytorch_model.bin" in output
    assert "ea models convert" in output
    assert "this folder does not load" in output
    code, output = run("convert", model_folder)
    assert code == 0
    assert "pytorch_model.bin ->" in output
    assert "2 tensors" in output
    assert run("check", model_folder)[0] == 0
    code, output = run("convert", model_folder)
    assert (code, output.strip()) == (0, "nothing to convert: no part of this folder is pickled")


def test_check_names_few_and_counts_all(model_folder: Path) -> None:
    config = json.loads((model_folder / "transformer/config.json").read_text())
    (model_folder / "transformer/config.json").write_text(json.dumps({**config, "num_layers": 7}))
    code, output = run("check", model_folder)
    assert code == 1
    assert "missing     10: layers.2.bias" in output
    assert "and 5 more (--json lists all)" in output


@pytest.mark.parametrize("command", ["check", "convert"])
def test_no_such_folder(tmp_path: Path, command: str) -> None:
    code, message = run(command, tmp_path / "absent")
    assert code == 2
    assert "there is no model folder" in message
    (tmp_path / "file.txt").touch()
    assert run(command, tmp_path / "file.txt")[0] == 2


def test_list(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EA_MODELS_DIR", str(model_folder.parent))
    code, output = run("list", "--json")
    assert code == 0
    row = next(row for row in json.loads(output) if row["name"] == "model")
    assert row["from"] == "EA_MODELS_DIR"
    assert row["parts"] == ["vae", "denoiser", "text"]
    assert row["bytes"] > 1000
    assert "model" in run("list")[1]


def test_nothing_heavy_is_imported_for_the_words_alone() -> None:
    code = "import sys, ea_runtime.cli.models; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys, ea_runtime.models.loading, ea_runtime.models.hash; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
