"""The bundled model as ONNX: every part, run end to end, with LoRA, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from ea_lora import find_targets, load_lora, loaded_loras, unload_lora, write_lora
from ea_lora.io import Layer
from ea_runtime import VideoPipeline
from ea_runtime.cli.main import run
from ea_runtime.errors import UserError
from ea_runtime.export import parity
from ea_runtime.export.bundle import open_bundle

PROMPT = "a red circle moves right"
QUICK = {"num_inference_steps": 4, "seed": 7, "output": "latents"}


def onnx_pipe(tiny_export: Any) -> VideoPipeline:
    return VideoPipeline.from_pretrained("tiny", engine="onnx", bundle=tiny_export.folder, device="cpu")


@pytest.fixture(scope="module")
def pipes(tiny_export: Any) -> tuple[VideoPipeline, VideoPipeline]:
    """The pipelines on PyTorch and on ONNX Runtime."""
    return VideoPipeline.from_pretrained("tiny", device="cpu"), onnx_pipe(tiny_export)


def test_every_part_and_block_is_below_the_limit(tiny_export: Any) -> None:
    compared = tiny_export.report["parity"]
    assert [one["graph"] for one in compared] == [
        "vae-decoder-causal-3",
        "vae-encoder-causal-9",
        "dit",
        "text",
    ]
    for one in compared:
        assert one["state"] == "compared"
        assert len(one["blocks"]) >= 2
        assert all(error["relative"] < 1e-4 for error in (*one["outputs"], *one["blocks"])), one


def test_canaries_sing(tiny_export: Any) -> None:
    found = {one["graph"]: one["outputs"][0]["relative"] for one in tiny_export.report["canaries"]}
    assert found.keys() == {"canary-gemm-bias", "canary-group-norm-32"}
    assert max(found.values()) < 1e-4


def test_weights_keep_the_names_that_a_lora_knows(tiny_export: Any, pipes: Any) -> None:
    held = {
        tensor.name
        for tensor in onnx.load(tiny_export.folder / "dit.onnx", load_external_data=False).graph.initializer
    }
    targets = find_targets(pipes[0].denoiser)
    assert len(targets) > 50
    assert {f"{name}.weight" for name in targets} <= held


def test_a_generation_gives_torchs_frames(pipes: Any) -> None:
    ours, theirs = (pipe(PROMPT, seed=43).frames.astype(np.int16) for pipe in reversed(pipes))
    assert np.abs(ours - theirs).mean() < 1.0
    assert ours.std() > 10, "the frames show something"


def test_the_providers_are_the_sessions_own(pipes: Any) -> None:
    assert pipes[1].engine.describe() == "ONNX Runtime (CPUExecutionProvider)"


def write_style(path: Path, pipe: VideoPipeline, seed: int, share: int) -> Path:
    """A LoRA on every `share`-th layer of the denoiser."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for name, module in list(find_targets(pipe.denoiser).items())[::share]:
        if not isinstance(module, torch.nn.Linear):
            continue
        down = torch.randn(4, module.in_features, generator=generator) / module.in_features**0.5
        up = torch.randn(module.out_features, 4, generator=generator) / 8
        layers.append(Layer(name="", part="denoiser", path=name, down=down, up=up))
    write_lora(path, layers)
    return path


def test_loras_equal_torchs_and_come_off_to_the_bit(tmp_path: Path, pipes: Any) -> None:
    eager, exported = pipes
    a, b = (
        write_style(tmp_path / f"{seed}.safetensors", eager, seed, share) for seed, share in ((1, 2), (2, 3))
    )
    bare = exported(PROMPT, **QUICK).latents
    with load_lora(eager, a, 0.7):
        expected = eager(PROMPT, **QUICK).latents
    first = load_lora(exported, a, 0.7)
    one = exported(PROMPT, **QUICK).latents
    assert float((one - expected).norm() / expected.norm()) < 1e-4
    assert float((one - bare).abs().max() / bare.abs().max()) > 0.01
    first.unload()
    with load_lora(exported, b, 1.0) as second:
        other = exported(PROMPT, **QUICK).latents
        assert loaded_loras(exported) == [second]
    assert not torch.equal(other, one)
    again = load_lora(exported, a, 0.7)
    assert torch.equal(exported(PROMPT, **QUICK).latents, one)
    again.weight = 0.0
    assert torch.equal(exported(PROMPT, **QUICK).latents, bare)
    unload_lora(exported)
    assert not loaded_loras(exported)
    assert torch.equal(exported(PROMPT, **QUICK).latents, bare)


def test_generate_runs_a_bundle_and_repeats_it(
    tiny_export: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "generate",
        PROMPT,
        "--engine",
        "onnx",
        "--bundle",
        str(tiny_export.folder),
        "--steps",
        "2",
        "-o",
        "a.mp4",
    ]
    assert run(words) == 0
    assert "ONNX Runtime (CPUExecutionProvider)" in capsys.readouterr().err
    sidecar = json.loads(Path("a.json").read_text())
    assert sidecar["engine"] == {"name": "onnx", "bundle": str(tiny_export.folder)}
    assert run(["generate", "--from", "a.json", "-o", "b.mp4"]) == 0
    assert "same content as recorded" in capsys.readouterr().err


def test_another_size_is_refused_before_any_work(tiny_export: Any, pipes: Any) -> None:
    with pytest.raises(UserError, match="this bundle makes 18 frames of 64x64, got a picture of 64x64"):
        pipes[1](PROMPT, num_frames=1)
    with pytest.raises(UserError, match="--size 128x64 --num-frames 18"):
        pipes[1](PROMPT, width=128)


def test_a_bundle_of_another_model_is_refused(tiny_export: Any, tmp_path: Path) -> None:
    from ea_runtime.models.layout import resolve_folder

    other = Path(shutil.copytree(resolve_folder("tiny"), tmp_path / "other"))
    config = other / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"dropout": 0.0', '"dropout": 0.1'))
    with pytest.raises(UserError, match=r"made from another model than .* its denoiser differs"):
        VideoPipeline.from_pretrained(other, engine="onnx", bundle=tiny_export.folder)


@pytest.mark.parametrize("name", ["dit.onnx", "dit.weights", "ea-bundle.json", "report.json"])
def test_a_changed_file_is_refused(tiny_export: Any, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(tiny_export.folder, tmp_path / "copy"))
    assert open_bundle(copy).target == "onnx", "an untouched copy loads"
    with (copy / name).open("r+b") as file:
        file.seek(-2, 2)
        byte = file.read(1)
        file.seek(-2, 2)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match=f"'{name}' is not what was built"):
        open_bundle(copy)


def test_the_report_is_one_page(tiny_export: Any) -> None:
    page = (tiny_export.folder / "report.html").read_text(encoding="utf-8")
    assert "model.transformer_blocks.5" in page
    assert "canary-group-norm-32" in page
    assert "vae-encoder-causal-9" in page
    for word in ("://", "src=", "<script", "@import", "<link"):
        assert word not in page


def test_a_dropped_bias_and_a_wrong_group_would_be_found_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = parity.canaries

    def spoiled() -> Any:
        # the exported networks keep their weights; the second call, for the comparison, gets damaged ones
        found = whole()
        if spoiled.calls:
            found["gemm-bias"][0][0].bias.data.zero_()
            found["group-norm-32"][0][0].num_groups = 16
        spoiled.calls += 1
        return found

    spoiled.calls = 0
    monkeypatch.setattr(parity, "canaries", spoiled)
    results = parity.run_canaries(tmp_path, torch.float32, 23)
    assert [one.graph for one in results] == ["canary-gemm-bias", "canary-group-norm-32"]
    assert all(max(error.relative for error in one.outputs) > 0.01 for one in results)
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("smooth", [True, False])
def test_decoding_starts_at_any_frame(pipes: Any, smooth: bool) -> None:
    """As a run that is resumed does it; graphs of a bundle share the chunks of the network."""
    latents = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = {}
    for pipe in pipes:
        whole[pipe] = list(pipe.iter_frames(latents, seed=1, smooth=smooth))
        for start in (1, 9, 13, 17):
            later = list(pipe.iter_frames(latents, seed=1, smooth=smooth, start=start))
            assert np.array_equal(later, whole[pipe][start:])
