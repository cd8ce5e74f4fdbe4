"""The training recipe `dit`: its loss, what is frozen, and that a cut run goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ea_dit import Transformer3DModel, recipe
from ea_dit.loss import add_noise, schedule, training_loss
from ea_dit.recipe import DitOptions, DitRecipe
from ea_runtime.errors import UserError
from ea_runtime.training.loop import Trainer
from ea_runtime.training.options import TrainOptions, validate
from ea_runtime.training.recipe import Context

MODEL: dict[str, Any] = {
    "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 3, "cross_attention_dim": 32,
    "caption_channels": 12, "sample_size": 8,
    "motion_module_kwargs": {"num_attention_heads": 4, "temporal_position_encoding_max_len": 16},
}  # fmt: skip
Make = Callable[..., DitRecipe]


class FakeSet:
    """Stands in for EncodedSet: 6 pictures and 6 clips of 3 latent frames, 4x4, seeded."""

    width, scale = 12, 0.18215

    def __init__(self, folder: Path, parts: Path, num_frames: int, kinds: str, context: Context) -> None:
        generator = torch.Generator().manual_seed(0)
        self.frames = [frames for frames in (1, 3) if kinds in ("both", {1: "pictures", 3: "videos"}[frames])]
        self.coded = [torch.randn(4, f, 4, 4, generator=generator) for f in self.frames for _ in range(6)]
        self.tokens = torch.randn(13, 5, 12, generator=generator)
        self.shapes = [("image" if c.shape[1] == 1 else "video", *c.shape) for c in self.coded]

    def latents(self, indices: list[int]) -> Tensor:
        return torch.stack([self.coded[i] for i in indices])

    def text(self, indices: list[int], dropped: list[bool]) -> tuple[Tensor, Tensor]:
        """The empty prompt is row 12, of one token."""
        rows = [12 if drop else i for i, drop in zip(indices, dropped, strict=True)]
        mask = torch.ones(len(rows), 5, dtype=torch.int64)
        for row, drop in enumerate(dropped):
            mask[row, 1 if drop else 4 :] = 0
        return self.tokens[rows] * mask[..., None], mask


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """make(loss={...}, init={...}, ...): a recipe on the fake set."""
    monkeypatch.setattr(recipe, "EncodedSet", FakeSet)

    def build(model: dict[str, Any] | None = None, dtype: str = "fp32", **tables: Any) -> DitRecipe:
        data = {"path": "set", "parts": "parts", **tables.pop("data", {})}
        table = {"data": data, "model": MODEL if model is None else model, **tables}
        options = validate(DitOptions, table, "dit.toml")
        torch.manual_seed(3)
        context = Context(seed=3, device="cpu", out=tmp_path / "run", say=lambda line: None, dtype=dtype)
        return DitRecipe(options, context)

    return build


def train(made: DitRecipe, out: Path, steps: int, resume: bool = False) -> list[dict[str, Any]]:
    options = TrainOptions(
        steps=steps, batch_size=4, lr=3e-3, muon_lr=1e-2, warmup=3, ema=0.9, save_every=3, seed=3
    )
    config = {"train": options.model_dump(mode="json"), **made.options.model_dump(mode="json")}
    Trainer(made, options, out, config).run(resume=resume)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def constant(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_loss_falls_on_a_constant_batch(make: Make) -> None:
    made = make()
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss, _ = made.loss([6, 7, 8, 9], constant(), step)  # the same noise and timesteps each time
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_and_its_model(make: Make, tmp_path: Path) -> None:
    lines = train(make(), tmp_path / "run", 6)
    assert {"mse", "vb", "loss"} <= lines[0].keys()
    # a fresh model predicts no noise at all
    assert lines[0]["mse"] == pytest.approx(1.0, abs=0.2)
    model = Transformer3DModel.from_pretrained(tmp_path / "run" / "final")
    assert isinstance(model, Transformer3DModel)
    config = (tmp_path / "run" / "final" / "config.json").read_text()
    assert str(tmp_path) not in config
    again = make(init={"folder": str(tmp_path / "run" / "final")}, model={})
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_cut_run_goes_on_to_the_same_bits(dtype: str, make: Make, tmp_path: Path) -> None:
    """Pictures and clips in turn."""
    whole = train(make(dtype=dtype), tmp_path / "whole", 7)
    made = make(dtype=dtype)
    loss = made.loss

    def dying(indices: list[int], generator: torch.Generator, step: int) -> Any:
        if step == 5:
            raise MemoryError
        return loss(indices, generator, step)

    made.loss = dying  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(MemoryError):
        train(made, tmp_path / "cut", 7)
    cut = train(make(dtype=dtype), tmp_path / "cut", 7, resume=True)
    clock = {"seconds": 0.0}
    assert [a | clock for a in whole] == [b | clock for b in cut]
    states = [load_file(tmp_path / n / "checkpoint-7" / "state.safetensors") for n in ("whole", "cut")]
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []


def test_min_snr_weights(make: Make) -> None:
    """min(SNR, gamma) / SNR: 1 where there is more noise than gamma allows for, gamma / SNR where there is less."""
    timesteps = torch.tensor([0, 50, 200, 500, 999])
    tables = schedule()
    snr = (tables.signal[timesteps] / tables.sigma[timesteps]).double() ** 2
    weights = make(loss={"min_snr": 5.0})._weights(timesteps)
    assert torch.allclose(weights.double(), torch.minimum(snr, torch.tensor(5.0)) / snr, rtol=1e-5)
    assert weights[0] < 1e-3
    assert (weights[snr < 5] == 1).all()
    assert (weights.diff() >= 0).all()
    assert torch.equal(make(loss={"min_snr": 0.0})._weights(timesteps), torch.ones(5))


def test_the_loss_is_the_weighted_error_and_the_bound(make: Make) -> None:
    made = make(loss={"min_snr": 5.0}, data={"drop_text": 0.0})
    with torch.no_grad():  # a fresh output layer is zero
        made.model.proj_out.weight.normal_(0, 0.1, generator=constant())
    loss, figures = made.loss([6, 7], constant(), 0)
    generator = constant()
    torch.rand(2, generator=generator)  # whose text is dropped
    latents = made.set.latents([6, 7])
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = made._timesteps(2, generator)
    text, mask = made.set.text([6, 7], [False, False])
    with torch.no_grad():
        output = made.model(
            add_noise(latents, noise, timesteps), timestep=timesteps, encoder_hidden_states=text,
            encoder_attention_mask=mask,
        ).sample  # fmt: skip
    terms = training_loss(output, latents, noise, timesteps)
    wanted = (made._weights(timesteps) * terms["mse"] + terms["vb"]).mean()
    assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-4)
    assert figures["mse"] == pytest.approx(float(terms["mse"].mean()), rel=1e-4)
    assert figures["vb"] == pytest.approx(float(terms["vb"].mean()), rel=1e-4)


def test_bf16_is_close(make: Make) -> None:
    exact, coarse = (float(make(dtype=d).loss([6, 7], constant(), 0)[0].detach()) for d in ("fp32", "bf16"))
    assert coarse == pytest.approx(exact, rel=0.02)
    assert all(p.dtype == torch.float32 for p in make(dtype="bf16").model.parameters())


@pytest.mark.parametrize("part", [0.0, 1.0])
def test_text_is_dropped(part: float, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(data={"drop_text": part})
    seen: list[list[bool]] = []
    text = made.set.text
    monkeypatch.setattr(made.set, "text", lambda i, dropped: (seen.append(dropped), text(i, dropped))[1])
    made.loss([0, 1, 2], constant(), 0)
    assert seen == [[part == 1.0] * 3]


def test_timesteps(make: Make) -> None:
    even = make(loss={"uniform_part": 1.0})._timesteps(20_000, constant())
    assert even.dtype == torch.int64
    assert (int(even.min()), int(even.max())) == (0, 999)
    assert float(even.float().mean()) == pytest.approx(499.5, abs=8)
    late = make(loss={"uniform_part": 0.0, "t_mean": 2.0, "t_std": 0.1})._timesteps(2000, constant())
    assert float(late.float().median()) == pytest.approx(1000 / (1 + math.exp(-2)), abs=3)
    mixed = make(loss={"uniform_part": 0.3, "t_mean": 2.0, "t_std": 0.1})._timesteps(20_000, constant())
    assert float((mixed < 700).float().mean()) == pytest.approx(0.3 * 0.7, abs=0.02)
    assert torch.equal(
        mixed, make(loss={"uniform_part": 0.3, "t_mean": 2.0, "t_std": 0.1})._timesteps(20_000, constant())
    )


def test_frozen_motion_modules_do_not_change(make: Make, tmp_path: Path) -> None:
    tables = {"data": {"kinds": "pictures"}, "init": {"freeze_motion": True}}
    made = make(**tables)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    train(made, tmp_path / "run", 4)
    final = load_file(next((tmp_path / "run" / "final").glob("*.safetensors")))
    changed = {name for name, value in final.items() if not torch.equal(value, before[name])}
    assert changed
    assert not [name for name in changed if ".attn_temporal." in name]
    assert any(".attn_temporal." in name for name in final)  # they are saved all the same
    assert any(name.startswith("transformer_blocks.2.") for name in changed)


def test_motion_modules_are_trained_otherwise(make: Make, tmp_path: Path) -> None:
    made = make()
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    train(made, tmp_path / "run", 4)
    changed = {n for n, v in made.model.state_dict().items() if not torch.equal(v, before[n])}
    assert any(".attn_temporal." in name for name in changed)


def test_groups_cover_every_parameter_once(make: Make) -> None:
    made = make()
    groups = {group["kind"]: group["params"] for group in made.parameter_groups()}
    assert all(p.ndim == 2 for p in groups["muon"])
    ids = [id(p) for params in groups.values() for p in params]
    assert sorted(ids) == sorted(id(p) for p in made.model.parameters())
    assert id(made.model.scale_shift_table) not in {id(p) for p in groups["muon"]}


def test_size_conditions(make: Make) -> None:
    """Models of sample_size 128 are told pixels and their ratio; the others nothing."""
    latents = torch.zeros(2, 4, 1, 4, 6)
    assert make()._sizes(latents) is None
    sizes = make(model={**MODEL, "sample_size": 128, "num_attention_heads": 12})._sizes(latents)
    assert sizes is not None
    assert sizes["resolution"].tolist() == [[32.0, 48.0]] * 2
    assert sizes["aspect_ratio"].tolist() == [[pytest.approx(2 / 3)]] * 2


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"model": {**MODEL, "num_layer": 3}}, "[model]: Transformer3DModel has no key `num_layer`; did you"),
        ({"model": {**MODEL, "num_layers": 0}}, "[model] describes no Transformer3DModel: `num_layers` must be"),
        ({"model": {**MODEL, "out_channels": 4}}, "`model.out_channels` must be 2 x in_channels = 8 (noise and"),
        ({"model": {**MODEL, "caption_channels": 9}}, "`model.caption_channels` must be 12, as `data.parts`'"),
        ({"model": {**MODEL, "in_channels": 8, "out_channels": 16}}, "`model.in_channels` must be 4, as"),
        ({"init": {"folder": "absent"}}, "`init.folder` must hold config.json and *.safetensors, got 'absent'"),
        ({"loss": {"t_std": 0}}, "dit.toml: `loss.t_std`: Input should be greater than 0, got 0"),
        ({"loss": {"min_snr": math.nan}}, "dit.toml: `loss.min_snr`: Input should be a finite number, got nan"),
        ({"data": {"drop_text": 1.5}}, "dit.toml: `data.drop_text`: Input should be less than or equal to 1"),
        ({"data": {"kind": "both"}}, "dit.toml: unknown key `data.kind`; did you mean 'kinds'?"),
    ],
)  # fmt: skip
def test_wrong_tables(tables: dict[str, Any], expected: str, make: Make) -> None:
    with pytest.raises(UserError) as caught:
        make(**tables)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
