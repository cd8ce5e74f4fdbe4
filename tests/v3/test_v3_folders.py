"""A published InP folder as it comes: checked, converted, hashed, generated from, repeated, served, given LoRAs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ea_runtime import VideoPipeline
from ea_runtime.cli.main import app, run
from ea_runtime.models.check import check_folder
from ea_runtime.models.hash import model_hash

SMALL: dict[str, Any] = {"num_frames": 16, "height": 32, "width": 48, "num_inference_steps": 4, "seed": 3}


def checked(folder: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and report of `ea models check`."""
    done = CliRunner().invoke(app, ["models", "check", str(folder), "--json"])
    return done.exit_code, json.loads(done.stdout)


def as_published(folder: Path) -> None:
    """Pickled weights with tensors of other parts among them, and a config of a whole CLIP model."""
    names = {"transformer": "diffusion_pytorch_model.safetensors", "image_encoder": "model.safetensors"}
    for part, name in names.items():
        tensors = load_file(folder / part / name)
        (folder / part / name).unlink()
        stray = {"logit_scale": torch.ones(()), "text_model.final_layer_norm.weight": torch.ones(4)}
        tensors |= stray if part == "image_encoder" else {"ema.decay": torch.ones(1)}
        torch.save(tensors, folder / part / "pytorch_model.bin")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    config |= {"decay": 0.9999, "optimization_step": 1, "use_ema_warmup": False}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    part = folder / "image_encoder" / "config.json"
    vision = {**json.loads(part.read_text()), "bad_words_ids": None}
    whole = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": vision.pop("projection_dim"),
        "text_config": {"hidden_size": 4},
        "vision_config": vision,
        "tower": "__import__('os').system('true')",
    }
    part.write_text(json.dumps(whole))


def test_checked_and_converted(v3_source: Path, v3_folder: Path, tmp_path: Path) -> None:
    code, report = checked(v3_source)
    assert (code, report["is_loadable"], report["notes"]) == (0, True, [])
    encoder = report["parts"][-1]
    assert (encoder["name"], encoder["state"], encoder["missing"]) == ("image_encoder", "ok", [])
    assert report["memory"]["weights"]["image_encoder"]["fp32"] == 4 * encoder["num_values"]
    as_published(v3_folder)
    code, report = checked(v3_folder)
    states = {part["name"]: part["state"] for part in report["parts"]}
    assert code == 1
    assert all("ea models convert" in states[name] for name in ("denoiser", "image_encoder"))
    done = CliRunner().invoke(app, ["models", "convert", str(v3_folder), "-o", str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    code, report = checked(tmp_path / "new")
    parts = {part["name"]: part for part in report["parts"]}
    assert code == 0, report
    assert parts["denoiser"]["unexpected"] == ["ema.decay"]
    assert set(parts["denoiser"]["unknown_keys"]) == {"decay", "optimization_step", "use_ema_warmup"}
    assert parts["image_encoder"]["unexpected"] == ["logit_scale", "text_model.final_layer_norm.weight"]
    assert parts["image_encoder"]["unknown_keys"] == ["tower"]
    pipes = [VideoPipeline.from_pretrained(one, device="cpu") for one in (v3_source, tmp_path / "new")]
    picture = Image.linear_gradient("L").convert("RGB")
    one, other = (pipe("a red circle", image=picture, output="latents", **SMALL).latents for pipe in pipes)
    assert torch.equal(one, other)


def test_what_is_wrong_is_named(v3_folder: Path) -> None:
    before = model_hash(v3_folder)
    path = v3_folder / "image_encoder" / "model.safetensors"
    tensors = load_file(path)
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"] + 1
    save_file(tensors, path)
    assert model_hash(v3_folder) != before, "the encoder counts in the model's hash"
    del tensors["visual_projection.weight"]
    tensors["vision_model.embeddings.class_embedding"] = torch.zeros(3)
    save_file(tensors, path)
    encoder = check_folder(v3_folder).parts[-1]
    assert encoder.missing == ["visual_projection.weight"]
    assert [one["expected"] for one in encoder.wrong_shape] == [[16]]
    assert "does not fit its config.json" in encoder.state
    shutil.rmtree(v3_folder / "image_encoder")
    report = check_folder(v3_folder)
    assert report.is_loadable
    assert ["image_encoder/" in note for note in report.notes] == [True]


@pytest.mark.slow
def test_the_command_from_a_picture_and_again(v3_folder: Path, tmp_path: Path) -> None:
    """`ea generate --image` in a separate process, then text alone, and `--from` to the same bytes."""
    place = {
        name: str(tmp_path / name) for name in ("first.png", "one.mp4", "one.json", "again.mp4", "text.mp4")
    }
    Image.linear_gradient("L").convert("RGB").save(place["first.png"])
    model = ("--model", str(v3_folder), "--device", "cpu", "--dtype", "float32")
    words = ["generate", "a red circle", "--image", place["first.png"], *model, "-o", place["one.mp4"]]
    code = "import sys; from ea_runtime.cli.main import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert run(["generate", "a red circle", *model, "-o", place["text.mp4"]]) == 0
    assert run(["generate", "--from", place["one.json"], "-o", place["again.mp4"]]) == 0
    one, again, text = (Path(place[f"{name}.mp4"]).read_bytes() for name in ("one", "again", "text"))
    assert one == again
    assert one != text
    record = json.loads(Path(place["one.json"]).read_text())
    assert record["model"]["sha256"] == model_hash(v3_folder)
    assert record["timings"]["encoding"] > 0


def test_loras(v3_folder: Path, v3_pipe: VideoPipeline, tmp_path: Path) -> None:
    """Layers that only V3 has: the projection of the picture, and attention over all tokens."""
    from ea_lora import load_lora, verify_lora
    from ea_lora.keys import find_targets

    paths = [
        "clip_projection.linear_1",
        "transformer_blocks.1.attn_temporal.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_q",
        "transformer_blocks.1.attn2.to_k",
    ]
    modules: dict[str, Any] = find_targets(v3_pipe.denoiser)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for path in paths:
        out, into = modules[path].weight.shape
        name = f"lora_unet__{path.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, into, generator=generator)
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, 2, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "all.safetensors")
    only = {name: value for name, value in tensors.items() if "clip_projection" in name}
    save_file(only, tmp_path / "picture.safetensors")
    report = verify_lora(str(v3_folder), tmp_path / "all.safetensors")
    assert (len(report.layers), report.ignored) == (3, ())
    assert min(report.probe.values()) > 0
    assert min(verify_lora(v3_pipe, tmp_path / "picture.safetensors").probe.values()) > 0
    done = CliRunner().invoke(app, ["lora", "info", str(tmp_path / "all.safetensors")])
    assert (done.exit_code, "3 for the denoiser" in done.output) == (0, True), done.output
    picture = Image.linear_gradient("L").convert("RGB")

    def made(**more: Any) -> torch.Tensor:
        return v3_pipe("a red circle", output="latents", **(SMALL | more)).latents

    before = made(image=picture), made()
    with load_lora(v3_pipe, tmp_path / "picture.safetensors"):
        assert not torch.equal(made(image=picture), before[0])
        assert torch.equal(made(), before[1]), "the twin: without a picture its projection is not used"
    with load_lora(v3_pipe, tmp_path / "all.safetensors"):
        assert not torch.equal(made(), before[1])
    assert torch.equal(made(image=picture), before[0])
    assert torch.equal(made(), before[1])


def test_a_job_of_the_server(v3_folder: Path, tmp_path: Path) -> None:
    """A worker's model from a picture: loaded with its encoder, loaded again when the encoder's files change."""
    from ea_runtime.generation.requests import ModelRequest
    from ea_runtime.serve.catalogue import Catalogue
    from ea_runtime.serve.worker.models import Models

    entry = Catalogue(models=[v3_folder.parent]).model("v3")
    models = Models("cpu")
    request = ModelRequest(num_frames=16, height=32, width=48, guidance_scale=6.0)
    model, _ = models.get(entry, request)
    assert model.pipe.image_encoder is not None
    assert models.get(entry, request)[0] is model
    path = v3_folder / "image_encoder" / "preprocessor_config.json"
    path.write_text(path.read_text() + "\n")
    assert models.get(entry, request)[0] is not model
