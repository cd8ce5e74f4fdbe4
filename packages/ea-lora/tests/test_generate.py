"""`ea generate --lora` on the bundled model: what is told, recorded, repeated and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ea_lora import Card, find_targets, load_lora, write_lora
from ea_lora.folder import load_networks
from ea_lora.layer import Layer
from ea_runtime.cli.main import run
from ea_runtime.errors import MissingPackageError
from ea_runtime.generation.pipeline import VideoPipeline
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
    return write_style(network, tmp_path_factory.mktemp("lora") / "style.safetensors", "*attn1*")


def write_style(network: torch.nn.Module, path: Path, pattern: str) -> Path:
    """A seeded LoRA of rank 2 for the modules under a pattern."""
    generator = torch.Generator().manual_seed(0)
    layers = []
    for name, module in find_targets(network, [pattern]).items():
        outputs, inputs = module.get_parameter("weight").shape
        down, up = (torch.randn(*shape, generator=generator) * 0.3 for shape in ((2, inputs), (outputs, 2)))
        layers.append(Layer(name, "denoiser", name, down, up, torch.tensor(1.0)))
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


def test_weight_zero_has_the_bits_of_none_for_a_short_prompt_too(style: Path, tmp_path: Path) -> None:
    # the denoiser folds short prompts into the linears of its cross-attention, unless a LoRA changes them
    pipe = VideoPipeline.from_pretrained("tiny", device="cpu", dtype="float32")

    def latents() -> torch.Tensor:
        settings = {"num_frames": 9, "num_inference_steps": 1, "seed": 3}
        return pipe("a circle", output="latents", **settings).latents

    without = latents()
    with load_lora(pipe, write_style(pipe.denoiser, tmp_path / "all.safetensors", "*attn*"), 0) as lora:
        assert torch.equal(latents(), without)
        lora.weight = 1
        assert not torch.equal(latents(), without)
        lora.weight = 0
        assert torch.equal(latents(), without)


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

    # what is written in the files differs: compared without it
    bare = ("--no-metadata", "-o")
    assert ea("generate", "--from", "a.json", "--lora", f"{style}:0", *bare, "off.png")[0] == 0
    assert ea("generate", "--from", "a.json", *bare, "on.png")[0] == 0
    assert ea(*PROMPT, *bare, "plain.png")[0] == 0
    plain = (tmp_path / "plain.png").read_bytes()
    assert (tmp_path / "off.png").read_bytes() == plain != (tmp_path / "on.png").read_bytes()
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


def test_a_prompt_names_loras_of_an_allowed_folder(ea: Any, style: Path, tmp_path: Path) -> None:
    small = ("--num-frames", "1", "--steps", "2", "--seed", "3")
    tagged = "a red circle<lora:style:0.5> moves right"
    code, said = ea("generate", tagged, *small, "--lora-dir", style.parent, "-o", "a.png")
    assert code == 0, said
    assert "24 layers matched, 0 ignored, weight 0.5" in " ".join(said.split())
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["settings"]["prompt"] == "a red circle moves right"
    assert [(one["file"], one["weight"]) for one in record["loras"]] == [(str(style), 0.5)]
    # the same as by --lora, and again from the sidecar, which needs no folder
    assert ea("generate", PROMPT[1], *small, "--lora", f"{style}:0.5", "-o", "b.png")[0] == 0
    code, said = ea("generate", "--from", "a.json", "-o", "again.png")
    assert code == 0, said
    assert "same content as recorded" in said
    made = [(tmp_path / name).read_bytes() for name in ("a.png", "b.png", "again.png")]
    assert made[0] == made[1] == made[2]


def test_each_prompt_of_a_file_names_its_own(ea: Any, style: Path, tmp_path: Path) -> None:
    prompts = ["a red circle <lora:style:1>", "a red circle ", "<lora:style:1><lora:style:-2>a red circle"]
    (tmp_path / "all").mkdir()
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    small = ("--num-frames", "1", "--steps", "2")
    code, said = ea("generate", "--prompts", "prompts.txt", *small, "--lora-dir", style.parent, "-o", "all/")
    assert code == 0, said
    sidecars = sorted((tmp_path / "all").glob("*.json"))
    assert [len(json.loads(path.read_text()).get("loras", ())) for path in sidecars] == [1, 0, 2]
    for path in sidecars:  # each alone: what was on before leaves nothing behind
        code, said = ea("generate", "--from", path, "-o", f"again-{path.stem}.png")
        assert code == 0, said
        assert (tmp_path / f"again-{path.stem}.png").read_bytes() == path.with_suffix(".png").read_bytes()


@pytest.mark.parametrize(
    ("prompt", "words", "text"),
    [
        ("a <lora:style>", (), "names the LoRA 'style'; give the folder that holds it with --lora-dir"),
        (
            "a <lora:stile>",
            ("--lora-dir", "."),
            "there is no LoRA 'stile' in --lora-dir '.'; did you mean 'style'",
        ),
        ("a <lora:../style>", ("--lora-dir", "."), "by its name alone"),
        ("a", ("--lora-dir", ".", "--negative", "b <lora:style>"), "`--negative` holds '<lora:style>'"),
        ("a <lora:style>", ("--lora-dir", "."), "LoRA file 'style.safetensors' is empty"),
    ],
)
def test_mistakes_in_a_prompt_are_one_line(
    ea: Any, prompt: str, words: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    (tmp_path / "style.safetensors").touch()
    code, said = ea("generate", prompt, "--num-frames", "1", "--steps", "1", *words, "-o", "a.png")
    assert code == 2
    assert text in said
    assert said.count("error: ") == 1
    assert not (tmp_path / "a.png").exists()


def test_compiled_models_keep_their_loras(ea: Any, style: Path, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "prompts.txt").write_text("a circle <lora:style>\na circle\n")
    words = ("--prompts", "prompts.txt", "--lora-dir", style.parent, "--num-frames", "1", "--compile")
    code, said = ea("generate", *words, "-o", "all/")
    assert code == 2
    assert "`--compile` keeps the LoRAs of the first prompt" in said


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
    assert said.count("error: ") == 1
    assert said.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "a.png").exists()


def test_without_the_package_it_says_which(ea: Any, style: Path) -> None:
    code, said = ea("--no-plugins", *PROMPT, "--lora", style)
    assert code == 2
    assert "pip install ea-lora" in said


def test_a_run_with_a_lora_is_resumed_to_the_same_file(
    ea: Any, style: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial

    from ea_runtime.cli.generate import progress
    from ea_runtime.files.hashes import content_hash
    from ea_runtime.generation import run_state

    monkeypatch.setattr(run_state, "RunState", partial(run_state.RunState, first_after=0, every=0))
    words = (*PROMPT, "--dtype", "float32", "--lora")
    assert ea(*words, f"{style}:0.8", "-o", "whole.mp4")[0] == 0
    shown = progress.GenerationProgress.on_step

    def on_step(self: Any, phase: str, done: int, total: int) -> None:
        shown(self, phase, done, total)
        if (phase, done) == ("denoising", 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(progress.GenerationProgress, "on_step", on_step)
        assert ea(*words, f"{style}:0.8", "-o", "out.mp4")[0] == 130
    code, said = ea(*words, f"{style}:0.7", "-o", "out.mp4", "--resume")
    assert code == 2
    assert "is another one: loras" in said
    code, said = ea(*words, f"{style}:0.8", "-o", "out.mp4", "--resume")
    assert code == 0, said
    assert "step 1 of 2" in said
    assert content_hash(tmp_path / "out.mp4") == content_hash(tmp_path / "whole.mp4")
