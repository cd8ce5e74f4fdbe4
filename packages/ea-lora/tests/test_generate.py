"""`ea generate --lora` on the bundled model: what is told, recorded, repeated and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ea_lora import Card, find_targets, write_lora
from ea_lora.folder import load_networks
from ea_lora.layer import Layer
from ea_runtime.cli.main import run
from ea_runtime.errors import MissingPackageError
from ea_runtime.models.layout import resolve_folder

PROMPT = ("generate", "a red circle moves right", "--num-frames", "9", "--steps", "2", "--seed", "3")


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded LoRA for the bundled model's denoiser, said to be of other weights."""
    try:
        network = load_networks(resolve_folder("tiny"), {"denoiser"})["denoiser"]
    except MissingPackageError as error:
        pytest.skip(str(error))
    assert network is not None
    generator = torch.Generator().manual_seed(0)
    layers = []
    for path, module in find_targets(network, ["*attn1*"]).items():
        outputs, inputs = module.get_parameter("weight").shape
        down, up = (torch.randn(*shape, generator=generator) * 0.3 for shape in ((2, inputs), (outputs, 2)))
        layers.append(Layer(path, "denoiser", path, down, up, torch.tensor(1.0)))
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    write_lora(path, layers, Card(base_model="other", base_hash="0" * 64).to_metadata())
    return path


@pytest.fixture
def ea(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs `ea WORDS` in an empty folder: exit code, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str]:
        code = run([str(word) for word in words])
        return code, capsys.readouterr().err

    return call


def test_recorded_and_repeated_to_the_byte(ea: Any, style: Path, tmp_path: Path) -> None:
    # contact sheets: what is compared is what the pipeline makes, not what a video encoder makes of it
    code, said = ea(*PROMPT, "--lora", f"{style}:0.8", "--lora", f"{style}:-0.1", "-o", "a.png")
    assert code == 0, said
    said = " ".join(said.split())
    assert "24 layers matched, 0 ignored, weight 0.8" in said
    assert "weight -0.1" in said
    assert "it was trained on other weights ('other', '000000000000')" in said
    record = json.loads((tmp_path / "a.json").read_text())
    assert [(one["file"], one["weight"]) for one in record["loras"]] == [
        (str(style), 0.8),
        (str(style), -0.1),
    ]

    code, said = ea("generate", "--from", "a.json", "-o", "again.png")
    assert code == 0, said
    assert "same content as recorded" in said
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "a.png").read_bytes()

    assert ea("generate", "--from", "a.json", "--lora", f"{style}:0", "-o", "off.png")[0] == 0
    assert ea(*PROMPT, "-o", "plain.png")[0] == 0
    plain = (tmp_path / "plain.png").read_bytes()
    assert (tmp_path / "off.png").read_bytes() == plain != (tmp_path / "a.png").read_bytes()
    assert "loras" not in json.loads((tmp_path / "plain.json").read_text())


def test_a_file_that_was_changed_since_is_told(ea: Any, style: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(style.read_bytes())
    words = (*PROMPT[:2], "--num-frames", "1", "--steps", "1", "--seed", "3")
    assert ea(*words, "--lora", "mine.safetensors:1", "-o", "a.png")[0] == 0
    from ea_lora import read_lora

    layers = read_lora(style).layers
    write_lora(tmp_path / "mine.safetensors", [*layers[:-1]])
    code, said = ea("generate", "--from", "a.json", "-o", "b.png")
    assert code == 0
    assert "changed: a LoRA file" in " ".join(said.split())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--lora", "absent.safetensors"), "there is no LoRA file 'absent.safetensors'; give the path"),
        (("--lora", "empty.safetensors:0.5"), "LoRA file 'empty.safetensors' is empty"),
        (("--lora", "empty.safetensors:much"), "`weight` of a LoRA must be a number from -100 to 100"),
    ],
)
def test_mistakes_are_one_line(ea: Any, words: tuple[str, ...], text: str, tmp_path: Path) -> None:
    (tmp_path / "empty.safetensors").touch()
    code, said = ea(*PROMPT, *words, "-o", "a.png")
    assert code == 2
    assert text in said
    assert said.strip().count("\n") == 0
    assert not (tmp_path / "a.png").exists()


def test_without_the_package_it_says_which(ea: Any, style: Path) -> None:
    code, said = ea("--no-plugins", *PROMPT, "--lora", style)
    assert code == 2
    assert "pip install ea-lora" in said
