"""The recipe `vae`: its tables, its data, its loss, its groups, and its description."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ea_runtime.errors import UserError
from ea_runtime.hookspecs import hookimpl
from ea_runtime.plugins.host import get_host
from ea_runtime.records import PerceptualRecord
from ea_runtime.training.data.dataset import Bucket
from ea_runtime.training.recipe import Batch, Loss
from ea_vae import AutoencoderKLMagvit
from ea_vae.network.posterior import Posterior
from ea_vae.training.recipe import VaeRecipe
from ea_vae.training.start import as_slices

Make = Callable[..., VaeRecipe]
Step = Callable[..., Loss]
GAN = {"adversarial": 0.5, "adversarial_start": 2}


@pytest.fixture
def saved(make: Make, tmp_path: Path) -> dict[str, str]:
    """Folders of a causal VAE and of the same one with slices."""
    vae = make().vae
    vae.save_pretrained(tmp_path / "magvit")
    as_slices(vae).save_pretrained(tmp_path / "slice")
    return {name: str(tmp_path / name) for name in ("magvit", "slice")}


def total(loss: Loss) -> float:
    return float(loss.total.detach())


def test_the_loss_is_the_sum_of_its_terms(make: Make, one_step: Step) -> None:
    def ask(**weights: float) -> Loss:
        return one_step(make(loss=weights), [0, 1, 2], seed=1)

    none = {"l1": 0.0, "mse": 0.0, "kl": 0.0}
    l1, mse = (ask(**none | {name: 1.0}) for name in ("l1", "mse"))
    kl = ask(**none | {"l1": 1.0, "kl": 1.0})
    assert total(ask(l1=2, mse=3, kl=0.5)) == pytest.approx(
        2 * total(l1) + 3 * total(mse) + 0.5 * (total(kl) - total(l1)), rel=1e-5
    )
    figures = l1.figures
    assert (figures["l1"], figures["kl"]) == pytest.approx((total(l1), total(kl) - total(l1)), rel=1e-4)
    assert figures["psnr"] == pytest.approx(10 * math.log10(4 / total(mse)), rel=1e-5)
    assert l1.samples is not None
    assert l1.samples.shape == (3,)
    assert float(l1.samples.mean()) == pytest.approx(total(l1), rel=1e-5)
    assert not l1.samples.requires_grad


def test_sums_are_easyanimates(make: Make, one_step: Step) -> None:
    """The whole loss written out with torch.sum, reduced as in EasyAnimate."""
    weights = {"l1": 1.0, "mse": 0.1, "kl": 1e-3, "reduction": "sum"}
    recipe = make(data={"kinds": "videos", "num_frames": 9}, loss=weights)
    seen: dict[str, Any] = {}
    reconstruct = recipe._reconstruct

    def watched(*args: Any) -> Any:
        seen["output"], seen["mean"], seen["logvar"] = found = reconstruct(*args)
        return found

    recipe._reconstruct = watched
    found = one_step(recipe, [0, 1])
    frames = recipe._frames(recipe.fetch([0, 1], 0, 0))
    difference = seen["output"] - frames
    reconstruction = (difference.abs() + 0.1 * difference.square()).sum() / (2 * 9)
    kl = Posterior(torch.cat([seen["mean"], seen["logvar"]], 1)).kl().sum() / 2
    assert total(found) == pytest.approx(float((reconstruction + 1e-3 * kl).detach()), rel=1e-5)


def test_the_adversarial_term_begins_at_its_step(make: Make, one_step: Step) -> None:
    recipe = make(loss=GAN)
    plain = one_step(make(), [0, 1], step=1)
    before, after = (one_step(recipe, [0, 1], step=step) for step in (1, 2))
    assert recipe.turns() == ("vae", "discriminator")
    assert recipe.averaged() == ("vae",)
    assert total(before) == total(plain)
    assert before.figures.keys() == after.figures.keys()
    assert before.figures["adversarial"] == before.figures["adaptive"] == 0
    assert after.figures["adaptive"] > 0
    gained = 0.5 * after.figures["adaptive"] * after.figures["adversarial"]
    assert total(after) == pytest.approx(total(before) + gained, rel=1e-5)
    waiting, working = (one_step(recipe, [0, 1], step=step, turn="discriminator") for step in (1, 2))
    assert not waiting.total.requires_grad
    assert working.total.requires_grad
    assert waiting.figures.keys() == working.figures.keys()
    assert working.figures["discriminator"] == pytest.approx(total(working))


def test_sums_and_means_have_one_adaptive_balance(make: Make, one_step: Step) -> None:
    """Only the scale of the loss differs: its gradients point the same way."""
    gradients = []
    for reduction in ("mean", "sum"):
        recipe = make(loss=GAN | {"adversarial_start": 0, "kl": 0.0, "reduction": reduction})
        one_step(recipe, [0, 1]).total.backward()
        weight = recipe.vae.decoder.conv_in.weight.grad
        assert weight is not None
        gradients.append(weight.flatten())
    assert float(torch.cosine_similarity(gradients[0], gradients[1], dim=0)) > 0.99999
    assert float(gradients[1].norm() / gradients[0].norm()) == pytest.approx(3 * 16 * 16, rel=1e-3)


def test_the_discriminators_see_what_the_vae_has_just_made(make: Make, one_step: Step) -> None:
    recipe = make(data={"kinds": "videos", "num_frames": 9}, loss=GAN)
    assert recipe.discriminator is not None
    seen: list[torch.Tensor] = []
    recipe.discriminator.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    batch = recipe.fetch([0, 1], 0, 3)
    generator = torch.Generator().manual_seed(0)
    recipe.loss(batch, generator, 3, "vae")
    recipe.loss(batch, generator, 3, "discriminator").total.backward()
    made, real, fake = seen
    assert torch.equal(made, fake)
    assert torch.equal(real, recipe._frames(batch))
    assert all(p.grad is None for p in recipe.vae.parameters())
    assert all(p.grad is not None for p in recipe.discriminator.parameters())
    assert not recipe._made  # nothing is kept after the step


def test_pictures_give_the_clips_discriminator_nothing(make: Make, one_step: Step) -> None:
    recipe = make(loss=GAN)
    assert recipe.discriminator is not None
    one_step(recipe, [0, 1], step=2, turn="discriminator").total.backward()
    assert all(p.grad is None for p in recipe.discriminator.clips.parameters())
    assert all(p.grad is not None for p in recipe.discriminator.frames.parameters())


def test_noise_belongs_to_the_sample(make: Make) -> None:
    """Two half batches average to the whole one; another seed gives other noise and another window."""
    recipe = make(data={"kinds": "videos", "num_frames": 9})

    def ask(indices: list[int], seed: int = 1) -> Loss:
        return recipe.loss(recipe.fetch(indices, seed, 0), torch.Generator().manual_seed(seed), 0, "vae")

    parts = [total(ask([i])) for i in (0, 1)]
    assert total(ask([0, 1])) == pytest.approx(sum(parts) / 2, rel=1e-5)
    assert total(ask([0, 1])) == total(ask([0, 1]))
    assert total(ask([0, 1])) != total(ask([0, 1], seed=2))
    assert torch.equal(recipe.fetch([0], 5, 0).tensors["frames"], recipe.fetch([0], 5, 9).tensors["frames"])
    windows = {recipe.fetch([0], seed, 0).tensors["frames"].numpy().tobytes() for seed in range(8)}
    assert len(windows) == 2  # 10 frames: a window of 9 starts at 0 or 1


def test_buckets_hold_one_kind_and_fit_the_vae(make: Make) -> None:
    (phase,) = make(data={"kinds": "both", "num_frames": 9}).phases()
    assert list(phase.buckets) == [Bucket("image", 1, 16, 16)] * 6 + [Bucket("video", 9, 16, 16)] * 3
    # 13 frames wanted, clips of 10: 9; sizes become multiples of 8
    (phase,) = make(data={"kinds": "videos", "num_frames": 13, "size": 20}).phases()
    assert list(phase.buckets) == [Bucket("video", 9, 16, 16)] * 3
    batch = make(data={"kinds": "videos", "num_frames": 13}).fetch([0, 2], 0, 0)
    assert batch.tensors["frames"].shape == (2, 9, 16, 16, 3)
    assert batch.tensors["frames"].dtype == torch.uint8
    with pytest.raises(UserError, match=r"no file of `data.path` 'good' is as large as one latent position"):
        make(data={"size": 4})


def test_bad_files_are_counted_and_not_replaced(make: Make, one_step: Step) -> None:
    recipe = make(data={"path": "bad"})
    batch = recipe.fetch([0, 1, 2], 0, 0)
    assert batch.indices == [0, 2]
    assert batch.bad == [(1, "1", "it holds no frames")]
    good = make()
    alone = good.loss(good.fetch([0, 2], 0, 0), torch.Generator().manual_seed(0), 0, "vae")
    assert total(one_step(recipe, [0, 1, 2])) == total(alone)
    assert len(recipe.fetch([1], 0, 0)) == 0


def test_bf16_computes_and_keeps_weights_in_fp32(make: Make, one_step: Step) -> None:
    tables = {"data": {"kinds": "videos", "num_frames": 9}, "loss": GAN | {"adversarial_start": 0}}
    recipes = [make(context={"dtype": dtype}, **tables) for dtype in ("fp32", "bf16")]
    for turn in ("vae", "discriminator"):
        exact, coarse = (one_step(recipe, [0, 1], turn=turn) for recipe in recipes)
        assert coarse.total.dtype == torch.float32
        assert total(coarse) == pytest.approx(total(exact), rel=0.05)
        assert all(math.isfinite(value) for value in coarse.figures.values())
        coarse.total.backward()
    assert {p.grad.dtype for p in recipes[1].vae.parameters() if p.grad is not None} == {torch.float32}


def test_gradient_checkpointing_changes_no_gradient(make: Make, one_step: Step) -> None:
    found = []
    for on in (False, True):
        recipe = make(context={"gradient_checkpointing": on}, loss=GAN | {"adversarial_start": 0})
        assert recipe.vae.encoder.gradient_checkpointing is on
        one_step(recipe, [0, 1]).total.backward()
        found.append([p.grad for p in recipe.vae.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7)


def test_an_infinite_error_is_a_figure_and_no_crash(make: Make, one_step: Step) -> None:
    """The loop skips the step, so it must learn of it."""
    recipe = make(loss=GAN | {"adversarial_start": 0})
    with torch.no_grad():
        recipe.vae.decoder.conv_out.bias.fill_(1e30)
    loss = one_step(recipe, [0])
    assert not torch.isfinite(loss.total)
    assert math.isnan(loss.figures["psnr"])


def test_groups_cover_every_parameter_once(make: Make) -> None:
    recipe = make(loss=GAN, rates={"encoder": 0.5, "decoder": 2.0, "discriminator": 0.1})
    groups = {group["name"]: group for group in recipe.parameter_groups()}
    assert {name: (g["kind"], g["turn"], g["lr_scale"]) for name, g in groups.items()} == {
        "encoder-muon": ("muon", "vae", 0.5),
        "encoder-adamw": ("adamw", "vae", 0.5),
        "decoder-muon": ("muon", "vae", 2.0),
        "decoder-adamw": ("adamw", "vae", 2.0),
        "discriminator-frames": ("adamw", "discriminator", 0.1),
        "discriminator-clips": ("adamw", "discriminator", 0.1),
    }
    ids = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for m in recipe.modules().values() for p in m.parameters())
    muon = [p for name in ("encoder-muon", "decoder-muon") for p in groups[name]["params"]]
    assert all(p.ndim >= 2 for p in muon)
    vae = recipe.vae
    outer = {id(p) for p in (vae.encoder.conv_in.weight, vae.decoder.conv_out.weight, vae.quant_conv.weight)}
    assert not outer & {id(p) for p in muon}
    of_decoder = {id(p) for p in [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]}
    assert of_decoder == {id(p) for n in ("decoder-muon", "decoder-adamw") for p in groups[n]["params"]}


def test_stage_slice_has_magvits_weights(make: Make, saved: dict[str, str]) -> None:
    recipe = make(stage="slice", init={"folder": saved["magvit"]}, data={"kinds": "videos", "num_frames": 9})
    settings = recipe.vae.settings
    assert (settings.slice_compression_vae, settings.mini_batch_encoder, settings.mini_batch_decoder) == (
        True,
        8,
        2,
    )
    start = load_file(next(Path(saved["magvit"]).glob("*.safetensors")))
    assert all(torch.equal(start[name], tensor) for name, tensor in recipe.vae.state_dict().items())
    assert recipe.phases()[0].buckets[0] == Bucket("video", 9, 16, 16)  # the first frame alone, and a slice
    assert all(p.requires_grad for p in recipe.vae.parameters())


def test_stage_slice_decoder_trains_the_decoder_alone(
    make: Make, saved: dict[str, str], one_step: Step
) -> None:
    clips = {"kinds": "videos", "num_frames": 9}
    recipe = make(stage="slice-decoder", init={"folder": saved["slice"]}, data=clips)
    assert {group["name"] for group in recipe.parameter_groups()} == {"decoder-muon", "decoder-adamw"}
    one_step(recipe, [0, 1]).total.backward()
    with_gradient = {name for name, p in recipe.vae.named_parameters() if p.grad is not None}
    assert with_gradient == {
        n for n, _ in recipe.vae.named_parameters() if n.startswith(("decoder.", "post_quant"))
    }
    assert recipe.describe()["frozen parameters"] == sum(
        p.numel() for part in (recipe.vae.encoder, recipe.vae.quant_conv) for p in part.parameters()
    )


class _Distance(nn.Module):
    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one - other).square().mean((1, 2, 3)).sqrt()


class _DistancePlugin:
    def __init__(self) -> None:
        self.asked: list[Any] = []

    @hookimpl
    def ea_perceptual_losses(self) -> list[PerceptualRecord]:
        def build(weights: Any, *, device: str) -> nn.Module:
            self.asked.append((weights, device))
            return _Distance()

        return [PerceptualRecord("rms", "a stand-in", build)]


def test_a_perceptual_distance_is_added(make: Make, one_step: Step, said: list[str]) -> None:
    plugin = _DistancePlugin()
    get_host().add(plugin, "distance", "distance", "test")
    clips = {"kinds": "videos", "num_frames": 9}
    named = {"perceptual": 0.5, "perceptual_name": "rms", "perceptual_weights": "some.safetensors"}
    recipe = make(data=clips, loss=named)
    assert plugin.asked == [("some.safetensors", "cpu")]
    found, plain = one_step(recipe, [0, 1]), one_step(make(data=clips), [0, 1])
    assert total(found) == pytest.approx(total(plain) + 0.5 * found.figures["perceptual"], rel=1e-5)
    assert found.samples is not None
    assert plain.samples is not None
    assert float((found.samples - plain.samples).mean()) == pytest.approx(
        0.5 * found.figures["perceptual"], rel=1e-4
    )
    assert said == []
    assert recipe.describe()["loss perceptual"] == "weight 0.5, rms from some.safetensors"
    # without weights it is off: one line, and nothing is built
    recipe = make(loss=named | {"perceptual_weights": None})
    assert said == ["perceptual term off: no weights for rms (`loss.perceptual_weights` names no file)"]
    assert recipe.describe()["loss perceptual"] == said[0].removeprefix("perceptual term ")
    assert "perceptual" not in one_step(recipe, [0]).figures
    assert len(plugin.asked) == 1


def test_it_describes_itself(make: Make) -> None:
    told = make(loss=GAN | {"kl": 1e-6}).describe()
    assert told["stage"] == "magvit"
    assert told["starts from"] == "fresh weights"
    assert told["loss l1"] == "weight 1, mean"
    assert told["loss kl"] == "weight 1e-06, mean"
    assert told["loss perceptual"] == "off: its weight is 0"
    assert told["loss adversarial"] == "weight 0.5 x adaptive, from step 2"
    assert told["parameters discriminator-clips"] > 0
    assert make().describe()["loss adversarial"] == "off: its weight is 0"


def test_a_dry_run_loads_nothing(make: Make, saved: dict[str, str]) -> None:
    """Everything is on the meta device; the weights of the perceptual distance may be missing."""
    loss = GAN | {"perceptual": 1.0, "perceptual_weights": "absent.safetensors"}
    dry = {"device": "meta", "dry_run": True}
    with torch.device("meta"):
        for stage, folder in (
            ("magvit", None),
            ("slice", saved["magvit"]),
            ("slice-decoder", saved["slice"]),
        ):
            init = {"init": {"folder": folder}} if folder else {}
            recipe = make(context=dry, stage=stage, loss=loss, **init)
            told = recipe.describe()
            assert told["stage"] == stage
            assert told["loss perceptual"] == "weight 1, lpips from absent.safetensors"
            assert told["parameters decoder-muon"] > 0
            assert {p.device.type for m in recipe.modules().values() for p in m.parameters()} == {"meta"}


def test_the_sheet_shows_the_same_samples_every_time(make: Make) -> None:
    recipe = make(data={"kinds": "both", "num_frames": 9})
    torch.manual_seed(7)
    state = torch.get_rng_state()
    sheet, again = recipe.sample_sheet(0), recipe.sample_sheet(10)
    assert sheet is not None
    assert sheet.dtype == np.uint8
    assert sheet.shape == (32, 3 * 16 + 2 * 48 + 16 + 5 * 2, 3)[:1] + sheet.shape[1:]
    assert np.array_equal(sheet, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert recipe.vae.training
    assert all(p.grad is None for p in recipe.vae.parameters())


PERCEPTUAL = {"perceptual": 1, "perceptual_weights": "absent"}
SLICE = {"slice_compression_vae": True, "mini_batch_encoder": 8, "mini_batch_decoder": 2}


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"data": {"num_frame": 3}}, "vae.toml: unknown key `data.num_frame`; did you mean 'num_frames'?"),
        ({"init": {"inflat": True}}, "vae.toml: unknown key `init.inflat`; did you mean 'inflate'?"),
        ({"loss": {"kl": -1}}, "vae.toml: `loss.kl`: Input should be greater than or equal to 0, got -1"),
        ({"loss": {"kl": math.inf}}, "vae.toml: `loss.kl`: Input should be a finite number, got inf"),
        ({"stage": "slices"}, "vae.toml: `stage`: Input should be 'magvit', 'slice' or"),
        (
            {"data": {"num_frames": 18}},
            "`data.num_frames`: number of frames must be one more than a multiple",
        ),
        ({"init": {"folder": "absent"}}, "`init.folder` must hold config.json and *.safetensors"),
        ({"model": {"chh": 4}}, "[model]: AutoencoderKLMagvit has no key `chh`; did you mean 'ch'?"),
        ({"model": {"ch": 4}}, "[model] describes no AutoencoderKLMagvit: `norm_num_groups` must"),
        ({"model": {"ch": "x"}}, "[model] describes no AutoencoderKLMagvit: "),
        ({"stage": "slice"}, "`init.folder` must name a VAE of stage 'magvit' for `stage` 'slice'"),
        ({"stage": "slice-decoder"}, "`init.folder` must name a VAE of stage 'slice'"),
        ({"model": {"ch": 4}, "init": {"folder": "x"}}, "[model] and `init.folder` exclude each other"),
        (
            {"stage": "slice", "init": {"folder": "x", "inflate": True}},
            "`init.inflate` is for causal kernels",
        ),
        ({"stage": "slice-decoder", "init": {"folder": "x", "whiten": True}}, "`init.whiten` changes the"),
        ({"loss": {"l1": 0, "mse": 0}}, "`loss.l1`, `loss.mse` and `loss.perceptual` are all 0"),
        ({"loss": PERCEPTUAL | {"perceptual_name": "lpip"}}, "no perceptual"),
        ({"loss": PERCEPTUAL}, "`loss.perceptual_weights` must"),
        ({"loss": GAN, "discriminator": {}}, "`discriminator.num_layers` 3 needs frames of 24"),
        ({"model": SLICE | {"ch": 4, "norm_num_groups": 1}}, "`stage` 'magvit' trains a causal VAE, got one"),
    ],
)
def test_wrong_tables(tables: dict[str, Any], expected: str, make: Make) -> None:
    with pytest.raises(UserError) as caught:
        make(**tables)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_wrong_starts(make: Make, saved: dict[str, str]) -> None:
    with pytest.raises(
        UserError, match=r"must hold a VAE with slices .*, got a causal one in .*; train stage 'slice'"
    ):
        make(stage="slice-decoder", init={"folder": saved["magvit"]})
    with pytest.raises(UserError, match="`stage` 'magvit' trains a causal VAE, got one with slices"):
        make(init={"folder": saved["slice"]})


def test_what_is_saved_loads(make: Make, tmp_path: Path) -> None:
    recipe = make(loss=GAN)
    recipe.save(tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    vae = AutoencoderKLMagvit.from_pretrained(tmp_path / "out")
    assert isinstance(vae, AutoencoderKLMagvit)
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), recipe.vae.parameters(), strict=True))
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()


def test_whitening_ends_with_unit_latents(make: Make, said: list[str]) -> None:
    recipe = make(data={"kinds": "videos", "num_frames": 9, "path": "bad"}, init={"whiten": True})
    batch: Batch = recipe.fetch([0, 2], 3, 0)
    frames = recipe._frames(batch)
    before = recipe._mode(frames)
    recipe.finish()
    assert said[-1].startswith("latents whitened (mean/deviation per channel before: ")
    assert (recipe._mode(frames) - before).abs().max() < 1e-4
    with torch.no_grad():
        latents = recipe.vae.encode(frames).latent_dist.mode() * 0.18215
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 1e-3
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-3
