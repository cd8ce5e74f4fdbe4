"""The training recipe `vae`: its start, its loss, what it does at the end, and that a cut run goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ea_runtime.errors import UserError
from ea_runtime.training.loop import Trainer
from ea_runtime.training.options import TrainOptions, validate
from ea_runtime.training.recipe import Context
from ea_vae import AutoencoderKLMagvit
from ea_vae.recipe import LATENT_STD, VaeOptions, VaeRecipe, inflate, initialise, whiten

MODEL = {
    "ch": 4,
    "ch_mult": [1, 1, 2, 2],
    "layers_per_block": 1,
    "norm_num_groups": 1,
    "scaling_factor": 0.18215,
}
Make = Callable[..., VaeRecipe]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six pictures and three clips of 10 frames, 16x16, a coloured square that moves."""
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for index in range(9):
        num_frames = 1 if index < 6 else 10
        frames = np.zeros((num_frames, 16, 16, 3), dtype=np.uint8) + rng.integers(0, 120, 3, dtype=np.uint8)
        colour = rng.integers(130, 256, 3, dtype=np.uint8)
        for t, frame in enumerate(frames):
            frame[index : index + 6, t % 8 : t % 8 + 6] = colour
        images = [Image.fromarray(frame) for frame in frames]
        name = f"{index}.png" if num_frames == 1 else f"{index}.gif"
        more = {} if num_frames == 1 else {"save_all": True, "append_images": images[1:]}
        images[0].save(folder / name, **more)
        kind = "image" if num_frames == 1 else "video"
        rows.append({"file_path": name, "text": "a square", "type": kind, "width": 16, "height": 16})
    (folder / "dataset.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def make(data: Path, tmp_path: Path, said: list[str]) -> Make:
    """make(data={...}, init={...}, ...): a recipe on the set, pictures unless told otherwise."""

    def build(model: dict[str, Any] | None = None, **tables: Any) -> VaeRecipe:
        chosen = {"path": str(data), "num_frames": 1, "kinds": "pictures", **tables.pop("data", {})}
        options = validate(VaeOptions, {"data": chosen, "model": model or MODEL, **tables}, "vae.toml")
        torch.manual_seed(3)
        context = Context(seed=3, device="cpu", out=tmp_path / "run", say=said.append)
        return VaeRecipe(options, context)

    return build


def train(
    recipe: VaeRecipe, out: Path, steps: int, resume: bool = False, **changes: Any
) -> list[dict[str, Any]]:
    settings = {
        "steps": steps, "batch_size": 3, "lr": 2e-3, "muon_lr": 1e-2, "warmup": 3, "ema": 0.9, "save_every": 3,
        "seed": 3, **changes,
    }  # fmt: skip
    options = TrainOptions(**settings)
    config = {"train": options.model_dump(mode="json"), **recipe.options.model_dump(mode="json")}
    Trainer(recipe, options, out, config).run(resume=resume)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_the_result_loads(make: Make, tmp_path: Path) -> None:
    lines = train(make(), tmp_path / "run", 20)
    first, last = (sum(line["loss"] for line in part) / 3 for part in (lines[:3], lines[-3:]))
    assert last < 0.6 * first
    assert lines[-1]["psnr"] > lines[0]["psnr"] + 2
    assert {"l1", "kl", "latent_std"} <= lines[0].keys()
    config = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLMagvit"
    assert str(tmp_path) not in json.dumps(config)
    vae = AutoencoderKLMagvit.from_pretrained(tmp_path / "run" / "final")
    assert isinstance(vae, AutoencoderKLMagvit)
    assert vae.encode(torch.zeros(1, 3, 1, 16, 16)).latent_dist.mode().shape == (1, 4, 1, 2, 2)
    assert all(
        p.is_contiguous()
        for p in load_file(next((tmp_path / "run" / "final").glob("*.safetensors"))).values()
    )


@pytest.mark.parametrize("layout", ["channels_last_3d", "contiguous"])
def test_a_cut_run_goes_on_to_the_same_bits(layout: str, make: Make, tmp_path: Path) -> None:
    tables = {"data": {"num_frames": 5, "kinds": "videos"}, "memory_format": layout}
    whole = train(make(**tables), tmp_path / "whole", 6)
    recipe = make(**tables)
    loss = recipe.loss

    def dying(indices: list[int], generator: torch.Generator, step: int) -> Any:
        if step == 4:
            raise MemoryError
        return loss(indices, generator, step)

    recipe.loss = dying  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(MemoryError):
        train(recipe, tmp_path / "cut", 6)
    cut = train(make(**tables), tmp_path / "cut", 6, resume=True)
    clock = {"seconds": 0.0}
    assert [a | clock for a in whole] == [b | clock for b in cut]
    states = [load_file(tmp_path / n / "checkpoint-6" / "state.safetensors") for n in ("whole", "cut")]
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []


def test_bf16_computes_and_keeps_weights_in_fp32(make: Make, data: Path, tmp_path: Path) -> None:
    recipe = make()
    exact, _ = recipe.loss([0, 1], torch.Generator().manual_seed(0), 0)
    context = Context(seed=3, device="cpu", out=tmp_path, say=print, dtype="bf16")
    torch.manual_seed(3)
    coarse, figures = VaeRecipe(recipe.options, context).loss([0, 1], torch.Generator().manual_seed(0), 0)
    assert coarse.dtype == torch.float32
    assert float(coarse.detach()) == pytest.approx(float(exact.detach()), rel=0.05)
    assert all(math.isfinite(value) for value in figures.values())


def test_the_loss_is_the_sum_of_its_terms(make: Make) -> None:
    def loss(**weights: float) -> tuple[float, dict[str, float]]:
        value, figures = make(loss=weights).loss([0, 1, 2], torch.Generator().manual_seed(1), 0)
        return float(value.detach()), figures

    none = {"l1": 0.0, "mse": 0.0, "kl": 0.0}
    (l1, figures), (mse, _), (kl, _) = (loss(**none | {name: 1.0}) for name in none)
    assert loss(l1=2, mse=3, kl=0.5)[0] == pytest.approx(2 * l1 + 3 * mse + 0.5 * kl, rel=1e-5)
    assert (figures["l1"], figures["kl"]) == pytest.approx((l1, kl))
    assert figures["psnr"] == pytest.approx(10 * math.log10(4 / mse), rel=1e-5)


def test_the_noise_and_the_window_come_from_the_generator(make: Make) -> None:
    recipe = make(data={"kinds": "videos", "num_frames": 9})
    losses = [recipe.loss([0, 1], torch.Generator().manual_seed(seed), 0)[0] for seed in (1, 1, 2)]
    one, two, other = (float(loss.detach()) for loss in losses)
    assert one == two
    assert one != other


def test_an_infinite_error_is_a_figure_and_no_crash(make: Make) -> None:
    """The loop skips such a step; it must get to know of it."""
    recipe = make()
    with torch.no_grad():
        recipe.vae.decoder.conv_out.bias.fill_(1e30)
    loss, figures = recipe.loss([0], torch.Generator().manual_seed(0), 0)
    assert not torch.isfinite(loss)
    assert math.isnan(figures["psnr"])


def test_groups_cover_every_parameter_once(make: Make) -> None:
    recipe = make()
    groups = {group["kind"]: group["params"] for group in recipe.parameter_groups()}
    assert all(p.ndim >= 2 for p in groups["muon"])
    ids = [id(p) for params in groups.values() for p in params]
    assert sorted(ids) == sorted(id(p) for p in recipe.vae.parameters())
    outer = [
        recipe.vae.encoder.conv_in.weight,
        recipe.vae.decoder.conv_out.weight,
        recipe.vae.quant_conv.weight,
    ]
    assert not {id(p) for p in outer} & {id(p) for p in groups["muon"]}


def test_fresh_weights_keep_the_signal_alive() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLMagvit(**MODEL)  # pyright: ignore[reportArgumentType]
    initialise(vae)
    frames = torch.randn(2, 3, 1, 32, 32).clamp(-1, 1)
    with torch.no_grad():
        moments = vae.encode(frames).latent_dist.parameters
        assert 0.1 < moments[:, :4].std() < 10
        assert 0.05 < vae.decode(moments[:, :4]).sample.std() < 10


def test_inflating_changes_nothing_on_one_frame(
    magvit: AutoencoderKLMagvit, noise: Callable[..., torch.Tensor]
) -> None:
    frame, latent = noise(2, 3, 1, 16, 24), noise(2, 4, 1, 2, 3)
    clip = noise(1, 3, 9, 16, 16)
    with torch.no_grad():
        before = magvit.encode(frame).latent_dist.parameters, magvit.decode(latent).sample
        inflate(magvit)
        after = magvit.encode(frame).latent_dist.parameters, magvit.decode(latent).sample
        for one, other in zip(before, after, strict=True):
            assert (one - other).abs().max() < 1e-5 * max(1.0, float(one.abs().max()))
        # a still clip is then coded as its frame, over and over
        still = frame[:1].expand(-1, -1, 9, -1, -1)
        latents = magvit.encode(still).latent_dist.mode()
        assert latents.shape[2] == 3
        assert magvit.encode(clip).latent_dist.mode().shape == (1, 4, 3, 2, 2)


def test_whitening_keeps_the_round_trip(noise: Callable[..., torch.Tensor]) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLMagvit(**MODEL).double()  # pyright: ignore[reportArgumentType]
    initialise(vae)
    frames = noise(6, 3, 9, 16, 16).double()
    with torch.no_grad():
        vae.quant_conv.bias.copy_(torch.linspace(-3, 3, 8))  # means far from zero, deviations far from one
        vae.quant_conv.weight.mul_(torch.linspace(0.2, 5.0, 8).view(-1, 1, 1, 1, 1))
        before = vae.encode(frames).latent_dist
        decoded = vae.decode(before.mode()).sample
        mean, std = whiten(vae, before.mode())
        after = vae.encode(frames).latent_dist
        again = vae.decode(after.mode()).sample
    assert torch.allclose(mean, before.mode().mean((0, 2, 3, 4)))
    assert torch.allclose(std, before.mode().std((0, 2, 3, 4)))
    assert (again - decoded).abs().max() < 1e-10
    latents = after.mode() * 0.18215
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-10
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 1e-10
    # the posterior's noise is scaled with its mean
    assert torch.allclose(
        after.std / before.std, (LATENT_STD / std).view(1, -1, 1, 1, 1).expand_as(before.std)
    )


def test_whitening_in_float32_through_a_run(make: Make, said: list[str], tmp_path: Path) -> None:
    """From inflated picture weights on clips, as the bundled model's second part."""
    train(make(), tmp_path / "pictures", 3)
    init = {"folder": str(tmp_path / "pictures" / "final"), "inflate": True, "whiten": True}
    clips = {"kinds": "videos", "num_frames": 9}
    recipe = make(data=clips, init=init)
    start = load_file(next((tmp_path / "pictures" / "final").glob("*.safetensors")))
    kernel = recipe.vae.encoder.conv_in.weight.detach()
    assert not kernel[:, :, :2].any()
    assert torch.allclose(kernel[:, :, 2], start["encoder.conv_in.weight"].sum(2), atol=1e-6)
    reference: dict[str, torch.Tensor] = {}
    finish = recipe.finish

    @torch.no_grad()
    def watched() -> None:
        frames = recipe._batch([0, 1, 2], torch.Generator().manual_seed(3))
        reference["frames"] = frames
        reference["decoded"] = recipe.vae.decode(recipe.vae.encode(frames).latent_dist.mode()).sample
        finish()

    recipe.finish = watched  # pyright: ignore[reportAttributeAccessIssue]
    train(recipe, tmp_path / "clips", 3)
    assert said[-1].startswith("latents whitened (mean/deviation a channel before: ")
    vae = AutoencoderKLMagvit.from_pretrained(tmp_path / "clips" / "final")
    assert isinstance(vae, AutoencoderKLMagvit)
    with torch.no_grad():
        latents = vae.encode(reference["frames"]).latent_dist.mode()
        decoded = vae.decode(latents).sample
    assert (decoded - reference["decoded"]).abs().max() < 1e-4
    assert (latents.std((0, 2, 3, 4)) * 0.18215 - 1).abs().max() < 1e-3
    assert (latents.mean((0, 2, 3, 4)) * 0.18215).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"data": {"num_frame": 3}}, "vae.toml: unknown key `data.num_frame`; did you mean 'num_frames'?"),
        ({"init": {"inflat": True}}, "vae.toml: unknown key `init.inflat`; did you mean 'inflate'?"),
        ({"loss": {"kl": -1}}, "vae.toml: `loss.kl`: Input should be greater than or equal to 0, got -1"),
        ({"loss": {"kl": math.inf}}, "vae.toml: `loss.kl`: Input should be a finite number, got inf"),
        ({"data": {"num_frames": 18}}, "`data.num_frames`: number of frames must be one more than a multiple"),
        ({"data": {"path": "absent"}}, "`data.path` must be a set with a dataset.json, got"),
        ({"init": {"folder": "absent"}}, "`init.folder` must hold config.json and *.safetensors, got 'absent'"),
        ({"model": {"chh": 4}}, "[model]: AutoencoderKLMagvit has no key `chh`; did you mean 'ch'?"),
        ({"model": {"ch": 4}}, "[model] describes no AutoencoderKLMagvit: `norm_num_groups` must"),
        ({"model": {"ch": "x"}}, "[model] describes no AutoencoderKLMagvit: "),
    ],
)  # fmt: skip
def test_wrong_tables(tables: dict[str, Any], expected: str, make: Make) -> None:
    with pytest.raises(UserError) as caught:
        make(**tables)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_clips_that_are_too_short_are_named(make: Make) -> None:
    recipe = make(data={"kinds": "both", "num_frames": 9})
    with pytest.raises(UserError, match=r"`data.num_frames` is 9, but 0.png has 1; lower it or leave such"):
        recipe.loss([0], torch.Generator(), 0)


def test_limit_takes_the_first(make: Make) -> None:
    recipe = make(data={"limit": 2})
    assert recipe.used == [0, 1]
    assert recipe.buckets() == [(16, 16)] * 2
