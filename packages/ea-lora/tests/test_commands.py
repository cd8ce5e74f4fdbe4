from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ea_lora.plugin
from ea_runtime.cli.main import run
from ea_runtime.errors import UserError
from ea_runtime.generation.adapters import parse_spec

Write = Callable[..., Path]


@pytest.fixture
def ea(
    small: Any, capsys: pytest.CaptureFixture[str], model_folder: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs `ea lora WORDS` with this package's plugin and the small model's: exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        plugins = ("--plugin", str(ea_lora.plugin.__file__), "--plugin", str(small.plugin))
        code = run(["--no-plugins", *plugins, "lora", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_info(ea: Any, write_lora_file: Write) -> None:
    code, out, _ = ea("info", write_lora_file())
    assert code == 0
    assert "9 for the denoiser, 2 for the text" in out
    code, out, _ = ea("info", write_lora_file(), "--json")
    assert json.loads(out)["ranks"] == [4]


def test_verify(ea: Any, write_lora_file: Write, small: Any, model_folder: Path) -> None:
    path = write_lora_file(small.model_tensors())
    code, out, _ = ea("verify", path, "--model", model_folder)
    assert code == 0
    assert "5 layers matched, 0 ignored" in out
    assert "blocks.1" in out
    assert "output on a video of noise moves by" in out
    code, out, _ = ea("verify", path, "--model", model_folder, "--json", "--exclude", "blocks.*")
    assert len(json.loads(out)["left_out"]) == 2


def test_verify_lists_keys(ea: Any, write_lora_file: Write, small: Any, model_folder: Path) -> None:
    extra = {
        "lora_unet__gone.lora_down.weight": torch.ones(1, 8),
        "lora_unet__gone.lora_up.weight": torch.ones(8, 1),
    }
    path = write_lora_file({**small.model_tensors(), **extra})
    code, out, _ = ea("verify", path, "-m", model_folder, "--keys", "--exclude", "mix")
    assert code == 0
    listed = {line.split()[0] for line in out.splitlines() if "%" in line and not line.startswith("output")}
    assert listed == {"proj_in", "blocks.0.to_q", "blocks.1.to_q", "proj_out"}
    assert "ignored: lora_unet__gone" in out
    assert "left out: lora_unet__mix" in out


def test_verify_fails_where_nothing_changes(
    ea: Any, write_lora_file: Write, small: Any, model_folder: Path
) -> None:
    tensors = {key: value * ("lora_up" not in key) for key, value in small.model_tensors().items()}
    code, out, _ = ea("verify", write_lora_file(tensors), "-m", model_folder)
    assert code == 1
    assert "changes nothing" in out


def test_the_plot_is_a_picture(
    ea: Any, write_lora_file: Write, small: Any, model_folder: Path, tmp_path: Path
) -> None:
    from PIL import Image

    path = write_lora_file(small.model_tensors())
    code, _, _ = ea("verify", path, "--model", model_folder, "--plot", tmp_path / "plot.png")
    assert code == 0
    with Image.open(tmp_path / "plot.png") as image:
        colours = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
    assert colours is not None
    assert (60, 110, 190) in [colour for _, colour in colours]  # a bar
    code, _, error = ea("verify", path, "--model", model_folder, "--plot", tmp_path / "plot.txt")
    assert (code, error.count("\n")) == (2, 1)
    assert "`--plot` must end in .png" in error
    code, out, error = ea("verify", path, "--model", model_folder, "--plot", tmp_path / "no" / "plot.png")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "`--plot` must be in an existing folder" in error


def test_convert(ea: Any, write_lora_file: Write, small: Any, model_folder: Path, tmp_path: Path) -> None:
    path = write_lora_file(small.model_tensors())
    code, out, _ = ea("convert", path, tmp_path / "peft", "--to", "peft", "-m", model_folder)
    assert (code, out.split(";")[0]) == (0, "5 layers from kohya to peft")
    code, out, _ = ea("convert", tmp_path / "peft", tmp_path / "back.safetensors", "--to", "kohya")
    assert code == 0
    assert "peft layout" in ea("info", tmp_path / "peft")[1]
    code, _, error = ea("convert", path, tmp_path / "peft", "--to", "peft", "-m", model_folder)
    assert (code, error.count("\n")) == (2, 1)
    assert "exists already" in error


def test_memory_needs_a_known_denoiser(ea: Any, tmp_path: Path) -> None:
    folder = tmp_path / "unheard"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer" / "config.json").write_text('{"_class_name": "Unheard"}')
    code, _, error = ea("memory", "--model", folder)
    assert (code, error.count("\n")) == (2, 1)
    assert "names class 'Unheard', which no installed package brings" in error


def test_memory_of_a_registered_denoiser(ea: Any, model_folder: Path) -> None:
    code, out, _ = ea("memory", "--model", model_folder, "--size", "64", "--num-frames", "9", "--rank", "4")
    assert code == 0
    assert "64, 9 frames" in out
    assert "fits 24 GB" in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--rank", "0"), "`rank` must be a whole number from 1 to 4096, got 0"),
        (("--offload", "3"), "`offload` must be a whole number from 0 to 2, got 3"),
        (("--size", "513"), "must be multiples of 16, got 513x513"),
        (("--num-frames", "5"), "`num_frames` must be 1 or a multiple of 9, got 5"),
        (("--dtype", "fp64"), "`dtype` must be one of fp32, bf16, fp16, got 'fp64'"),
    ],
)
def test_memory_refuses_what_no_run_can_have(
    ea: Any, model_folder: Path, words: tuple[str, ...], text: str
) -> None:
    code, out, error = ea("memory", "--model", model_folder, *words)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert text in error


def test_merge(ea: Any, write_lora_file: Write, small: Any, model_folder: Path, tmp_path: Path) -> None:
    path = write_lora_file(small.model_tensors())
    code, out, _ = ea("merge", f"{path}:0.8", path, "-m", model_folder, "-o", tmp_path / "out")
    assert code == 0
    assert "5 tensors changed; wrote" in out
    record = json.loads((tmp_path / "out" / "merged_loras.json").read_text())
    assert [lora["weight"] for lora in record["loras"]] == [0.8, 1.0]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("info", "absent.safetensors"), "there is no LoRA file 'absent.safetensors'"),
        (("verify", "absent.safetensors", "-m", "nowhere/at/all"), "there is no LoRA file"),
        (("merge", "absent.safetensors:0.5", "-o", "out"), "there is no"),
        (("merge", "absent.safetensors:strong", "-o", "out"), "`weight` of a LoRA must be a number"),
    ],
)
def test_mistakes_are_one_line(
    ea: Any,
    words: tuple[str, ...],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_folder: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = () if words[0] == "info" or "-m" in words else ("-m", str(model_folder))
    code, out, error = ea(*words, *model)
    assert (code, out) == (2, "")
    assert text in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_spec("a.safetensors") == ("a.safetensors", 1.0)
    assert parse_spec("a.safetensors:0.8") == ("a.safetensors", 0.8)
    assert parse_spec("a.safetensors:-1") == ("a.safetensors", -1.0)
    assert parse_spec(r"C:\loras\a.safetensors") == (r"C:\loras\a.safetensors", 1.0)
    monkeypatch.chdir(tmp_path)
    Path("a:1").touch()
    assert parse_spec("a:1") == ("a:1", 1.0)
    with pytest.raises(UserError, match="must be a number from -100 to 100, got nan"):
        parse_spec("a.safetensors:nan")


def test_the_plugin_and_its_help_load_no_torch() -> None:
    code = "import sys, ea_lora, ea_lora.plugin, ea_lora.commands; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
