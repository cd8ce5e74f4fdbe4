"""Each stage of the recipe `vae` trains in the loop and resumes bit-exact after a cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ea_runtime.training.options import TrainOptions
from ea_runtime.training.run.loop import Trainer
from ea_vae import AutoencoderKLMagvit
from ea_vae.training.recipe import VaeRecipe

Make = Callable[..., VaeRecipe]
CLIPS = {"kinds": "videos", "num_frames": 9}
GAN = {"adversarial": 0.5, "adversarial_start": 3}


def train(
    recipe: VaeRecipe, out: Path, steps: int, resume: bool = False, **changes: Any
) -> list[dict[str, Any]]:
    """A run of the loop; returns the lines of its log."""
    settings = {"lr": 2e-3, "muon_lr": 1e-2, "warmup": 3, "ema": 0.9, "save_every": 3, "seed": 3, "keep": 9}
    settings |= {"steps": steps, "batch_size": 3, **changes}
    options = TrainOptions(**settings)
    config = {"train": options.model_dump(mode="json"), **recipe.options.model_dump(mode="json")}
    Trainer(recipe, options, out, config).run(resume=resume)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "state.safetensors")


def test_pictures_the_loss_falls_and_the_result_loads(make: Make, tmp_path: Path) -> None:
    lines = train(make(), tmp_path / "run", 20)
    first, last = (sum(line["loss"] for line in part) / 3 for part in (lines[:3], lines[-3:]))
    assert last < 0.6 * first
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 2
    config = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLMagvit"
    assert str(tmp_path) not in json.dumps(config)
    vae = AutoencoderKLMagvit.from_pretrained(tmp_path / "run" / "final")
    assert isinstance(vae, AutoencoderKLMagvit)
    assert vae.encode(torch.zeros(1, 3, 1, 16, 16)).latent_dist.mode().shape == (1, 4, 1, 2, 2)
    tensors = load_file(next((tmp_path / "run" / "final").glob("*.safetensors"))).values()
    assert all(tensor.is_contiguous() for tensor in tensors)


def test_pictures_and_clips_go_through_one_run(make: Make, tmp_path: Path) -> None:
    lines = train(make(data={"kinds": "both", "num_frames": 9}), tmp_path / "run", 6)
    assert [line["samples"] for line in lines] == [3] * 6
    assert lines[-1]["psnr"] > 0


def test_stages_follow_each_other(
    make: Make, tmp_path: Path, adam: Callable[..., list[SimpleNamespace]]
) -> None:
    """magvit, slice and slice-decoder on clips: each one's loss falls, and the last keeps the encoder."""
    folder: str | None = None
    for stage in ("magvit", "slice", "slice-decoder"):
        recipe = make(stage=stage, data=CLIPS, **({"init": {"folder": folder}} if folder else {}))
        frozen = {
            name: tensor.clone()
            for name, tensor in recipe.vae.state_dict().items()
            if name.startswith(("encoder.", "quant_conv."))
        }
        lines = adam(recipe, 40)
        assert sum(line.vae for line in lines[-5:]) < 0.8 * sum(line.vae for line in lines[:5]), stage
        assert lines[-1].psnr > lines[0].psnr
        is_kept = all(torch.equal(recipe.vae.state_dict()[name], tensor) for name, tensor in frozen.items())
        assert is_kept == (stage == "slice-decoder")
        folder = str(tmp_path / stage)
        recipe.save(Path(folder))


def test_the_loop_keeps_a_frozen_encoder_to_the_bit(make: Make, tmp_path: Path) -> None:
    """With weight decay, averages and discriminators, from checkpoint to final."""
    make().vae.save_pretrained(tmp_path / "magvit")
    make(stage="slice", init={"folder": str(tmp_path / "magvit")}).save(tmp_path / "slice")
    start = load_file(tmp_path / "slice" / "diffusion_pytorch_model.safetensors")
    recipe = make(
        stage="slice-decoder",
        init={"folder": str(tmp_path / "slice")},
        data=CLIPS,
        loss=GAN | {"adversarial_start": 1},
    )
    train(recipe, tmp_path / "run", 4, weight_decay=0.1, optimizer="adam")
    final = load_file(tmp_path / "run" / "final" / "diffusion_pytorch_model.safetensors")
    kept = {name for name in start if torch.equal(start[name], final[name])}
    assert {name for name in start if name.startswith(("encoder.", "quant_conv."))} == kept
    assert AutoencoderKLMagvit.from_pretrained(tmp_path / "run" / "final").settings.slice_compression_vae


def test_the_adversarial_turn_begins_exactly_at_its_step(make: Make, tmp_path: Path) -> None:
    """Steps 0, 1 and 2 leave the discriminators bit-exact and compute nothing; step 3 moves them."""
    recipe = make(data=CLIPS, loss=GAN)
    assert recipe.discriminator is not None
    start = {name: tensor.clone() for name, tensor in recipe.discriminator.state_dict().items()}
    calls: list[int] = []
    recipe.discriminator.register_forward_hook(lambda *_: calls.append(1))
    lines = train(recipe, tmp_path / "run", 5, save_every=1, weight_decay=0.1)

    def moved(step: int) -> bool:
        state = weights(tmp_path / "run" / f"checkpoint-{step}")
        found = {name: key for key in state for name in start if key.endswith(f"discriminator/{name}")}
        assert found.keys() == start.keys()
        return any(not torch.equal(start[name], state[key]) for name, key in found.items())

    assert [moved(step) for step in (1, 2, 3, 4, 5)] == [False, False, False, True, True]
    assert len(calls) == 2 * 3  # once per step by the VAE; by their own turn on real and reconstructed
    assert [line["adaptive"] > 0 for line in lines] == [False, False, False, True, True]
    assert [line["discriminator"] > 0 for line in lines] == [False, False, False, True, True]
    # until then the run equals the one without discriminators
    plain = train(make(data=CLIPS), tmp_path / "plain", 3, weight_decay=0.1)
    assert [line["loss"] for line in lines[:3]] == [line["loss"] for line in plain]


@pytest.mark.parametrize("layout", ["channels_last_3d", "contiguous"])
@pytest.mark.parametrize("cut", [2, 5])
def test_a_cut_run_goes_on_to_the_same_bits(cut: int, layout: str, make: Make, tmp_path: Path) -> None:
    """Cut before the discriminators start and after, with their weights and moments."""
    tables = {"data": {"num_frames": 5, "kinds": "videos"}, "memory_format": layout, "loss": GAN}
    settings = {"save_every": 2, "batch_size": 2}
    whole = train(make(**tables), tmp_path / "whole", 7, **settings)
    recipe = make(**tables)
    loss = recipe.loss

    def dying(batch: Any, generator: torch.Generator, step: int, turn: str) -> Any:
        if step == cut:
            raise MemoryError
        return loss(batch, generator, step, turn)

    recipe.loss = dying
    with pytest.raises(MemoryError):
        train(recipe, tmp_path / "cut", 7, **settings)
    again = train(make(**tables), tmp_path / "cut", 7, resume=True, **settings)
    clock = {"seconds": 0.0, "wait": 0.0, "memory": 0.0}
    assert [a | clock for a in whole] == [b | clock for b in again]
    states = [weights(tmp_path / name / "checkpoint-7") for name in ("whole", "cut")]
    assert states[0].keys() == states[1].keys()
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []


def test_whitening_through_a_run(make: Make, said: list[str], tmp_path: Path) -> None:
    """From inflated picture weights, on clips, as in the second part of the bundled model's training."""
    train(make(), tmp_path / "pictures", 3)
    init = {"folder": str(tmp_path / "pictures" / "final"), "inflate": True, "whiten": True}
    recipe = make(data=CLIPS, init=init)
    start = load_file(next((tmp_path / "pictures" / "final").glob("*.safetensors")))
    kernel = recipe.vae.encoder.conv_in.weight.detach()
    assert not kernel[:, :, :2].any()
    assert torch.allclose(kernel[:, :, 2], start["encoder.conv_in.weight"].sum(2), atol=1e-6)
    train(recipe, tmp_path / "clips", 3)
    assert said[-1].startswith("latents whitened (mean/deviation per channel before: ")
    vae = AutoencoderKLMagvit.from_pretrained(tmp_path / "clips" / "final")
    assert isinstance(vae, AutoencoderKLMagvit)
    frames = recipe._frames(recipe.fetch([0, 1, 2], 3, 0))
    with torch.no_grad():
        latents = vae.encode(frames).latent_dist.mode() * 0.18215
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 1e-3
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-3


def test_accumulation_gives_the_same_losses(make: Make, tmp_path: Path) -> None:
    """Without discriminators: their adaptive weight is computed per micro-batch."""
    one, other = (
        train(make(data=CLIPS), tmp_path / f"run{parts}", 3, accumulate=parts, muon_lr=0.0)
        for parts in (1, 3)
    )
    assert [a["loss"] for a in one] == pytest.approx([b["loss"] for b in other], rel=1e-4)
