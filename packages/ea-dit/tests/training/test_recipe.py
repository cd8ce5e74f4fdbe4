"""The training recipe `dit`: its loss, the parameters of each stage, its phases, and resuming after a cut."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ea_dit import Transformer3DModel
from ea_dit.training import recipe
from ea_dit.training.known_frames import KnownChannels
from ea_dit.training.loss import add_noise, training_loss
from ea_dit.training.options import DitOptions
from ea_dit.training.recipe import DitRecipe
from ea_runtime.errors import UserError
from ea_runtime.settings import validate
from ea_runtime.training.data.dataset import Bucket, Item
from ea_runtime.training.data.draws import normal, uniform
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Batch, Context
from ea_runtime.training.run.loop import Trainer

MODEL: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_layers": 3,
    "cross_attention_dim": 32,
    "caption_channels": 12,
    "sample_size": 8,
    "motion_module_kwargs": {"num_attention_heads": 4, "temporal_position_encoding_max_len": 16},
}
Make = Callable[..., DitRecipe]


class FakeSource:
    """A replacement for EncodedSource: 6 pictures and 6 clips of 27 frames (9 latent frames), 32x32, seeded."""

    channels, width, scale, chunk, spatial_ratio = 4, 12, 0.18215, 9, 8

    def training_set(self) -> None:
        """It has none."""

    def __init__(
        self,
        options: Any,
        context: Context,
        views: Sequence[Any] = (),
        single_frames: bool = False,
        with_frames: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        kinds = {"both": (1, 27), "pictures": (1,), "videos": (27,)}[options.kinds]
        self.lengths = [frames for frames in kinds for _ in range(6)]
        self.views, self.single_frames = views, single_frames
        self.coded = [torch.randn(2, 4, self.num_latents(f), 4, 4, generator=generator) for f in self.lengths]
        self.tokens = torch.randn(13, 5, 12, generator=generator)
        self.fetched: list[tuple[Bucket, int]] = []
        self.coder: Any = None
        self.set = SimpleNamespace(item=lambda index: Item(Path(str(index)), "", True, 32, 32))

    def num_latents(self, num_frames: int) -> int:
        return 1 if num_frames == 1 else num_frames // 3

    def buckets(self, size: int | None = None, num_frames: int | None = None) -> list[Bucket]:
        side = size or 32
        return [
            Bucket("image", 1, side, side) if f == 1 else Bucket("video", num_frames or 27, side, side)
            for f in self.lengths
        ]

    def fetch(
        self, indices: list[int], seed: int, bucket: Bucket, num_frames: int, frames_of: Collection[int] = ()
    ) -> Batch:
        self.fetched.append((bucket, num_frames))
        kept = self.num_latents(num_frames)
        moments = torch.stack([self.coded[i][:, :, :kept] for i in indices])
        return Batch(indices, {"moments": moments, "tokens": torch.tensor(indices)})

    def moments(self, batch: Batch, device: str) -> Tensor:
        return batch.tensors["moments"].flatten(1, 2).to(device)

    def encode(self, batch: Batch, generator: torch.Generator, device: str) -> Tensor:
        mean, spread = batch.tensors["moments"].unbind(1)
        return (mean + 0.01 * spread * normal(generator, batch.indices, mean.shape[1:])).to(device)

    def text(
        self, batch: Batch, dropped: list[bool], device: str, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """The empty prompt is row 12, of one token."""
        rows = [12 if drop else i for i, drop in zip(batch.indices, dropped, strict=True)]
        mask = torch.ones(len(rows), 5, dtype=torch.int64)
        for row, drop in enumerate(dropped):
            mask[row, 1 if drop else 4 :] = 0
        return (self.tokens[rows] * mask[..., None]).to(dtype), mask


class Flat:
    """Encodes chunks of one grey level each: what a chunk of 9 frames is, in 3 latent frames of 4x4."""

    def moments(self, frames: Tensor) -> Tensor:
        level = frames.float().mean((1, 2, 3, 4)) / 255
        return level.view(-1, 1, 1, 1, 1).expand(-1, 8, 3, 4, 4)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    """make(stage, loss={...}, init={...}, ...): a recipe on the fake set."""
    monkeypatch.setattr(recipe, "EncodedSource", FakeSource)

    def build(
        stage: str = "finetune",
        *,
        model: dict[str, Any] | None = None,
        dtype: str = "fp32",
        checkpointing: bool = False,
        task: str = "auto",
        **tables: Any,
    ) -> DitRecipe:
        data = {"path": "set", "parts": "parts", **tables.pop("data", {})}
        table = {"stage": stage, "data": data, "model": MODEL if model is None else model, **tables}
        options = validate(DitOptions, table, "dit.toml")
        torch.manual_seed(3)
        context = Context(
            seed=3,
            device="cpu",
            out=tmp_path / "run",
            say=lambda line: None,
            dtype=dtype,
            gradient_checkpointing=checkpointing,
            task=task,
        )
        return DitRecipe(options, context)

    return build


def train(made: DitRecipe, out: Path, steps: int, resume: bool = False, **more: Any) -> list[dict[str, Any]]:
    table = {
        "batch_size": 4,
        "lr": 3e-3,
        "muon_lr": 1e-2,
        "warmup": 3,
        "ema": 0.9,
        "save_every": 3,
        "seed": 3,
    }
    options = TrainOptions(**{"steps": steps, **table, **more})
    Trainer(made, options, out, {"train": {}}).run(resume=resume)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def constant(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one(made: DitRecipe, indices: Sequence[int] = (6, 7), step: int = 0) -> Any:
    return made.loss(made.fetch(list(indices), 5, step), constant(), step, "model")


def fill(made: DitRecipe) -> DitRecipe:
    """Fills the zero-initialised layers with weights, so that every branch contributes."""
    with torch.no_grad():
        for parameter in made.model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05, generator=constant())
    return made


def test_the_loss_falls_on_a_constant_batch(make: Make) -> None:
    made = make()
    optimizer = torch.optim.AdamW(made.model.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        optimizer.zero_grad()
        loss = one(made, [6, 7, 8, 9], step)  # the same noise and timesteps each time
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.total.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_and_its_model(make: Make, tmp_path: Path) -> None:
    lines = train(make(), tmp_path / "run", 6)
    assert {"mse", "vb", "loss"} <= lines[0].keys()
    assert lines[0]["mse"] == pytest.approx(1.0, abs=0.2)  # a fresh model predicts zero noise
    model = Transformer3DModel.from_pretrained(tmp_path / "run" / "final")
    assert isinstance(model, Transformer3DModel)
    assert str(tmp_path) not in (tmp_path / "run" / "final" / "config.json").read_text()
    again = make(init={"folder": str(tmp_path / "run" / "final")}, model={})
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.model.parameters(), strict=True))


def test_validation_repeats_its_draws_for_each_bin_of_timesteps(make: Make, tmp_path: Path) -> None:
    """At a rate of almost nothing it measures the same twice; the loss of the steps, on other draws, does not."""
    table = {"every": 2, "samples": 6, "draws": 4, "bins": 2}
    lines = train(make(), tmp_path / "run", 4, lr=1e-12, muon_lr=0.0, validation=table)
    names = ["val_loss", "val_loss_t000", "val_loss_t500"]
    assert [name in lines[0] for name in names] == [False] * 3
    one, other = ([line[name] for name in names] for line in (lines[1], lines[3]))
    assert one == pytest.approx(other, rel=1e-5)
    assert min(one[1:]) <= one[0] <= max(one[1:])
    assert lines[1]["loss"] != pytest.approx(lines[3]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("stage", "dtype", "tables"),
    [
        ("align", "bf16", {}),
        ("motion", "fp32", {}),
        (
            "finetune",
            "bf16",
            {"data": {"random_frame_crop": True}, "phases": [{"start": 0}, {"start": 4, "size": 64}]},
        ),
    ],
)
def test_a_cut_run_goes_on_to_the_same_bits(
    stage: str, dtype: str, tables: dict[str, Any], make: Make, tmp_path: Path
) -> None:
    whole = train(make(stage, dtype=dtype, **tables), tmp_path / "whole", 7)
    made = make(stage, dtype=dtype, **tables)
    loss = made.loss

    def dying(batch: Batch, generator: torch.Generator, step: int, turn: str) -> Any:
        if step == 5:
            raise MemoryError
        return loss(batch, generator, step, turn)

    made.loss = dying
    with pytest.raises(MemoryError):
        train(made, tmp_path / "cut", 7)
    cut = train(make(stage, dtype=dtype, **tables), tmp_path / "cut", 7, resume=True)
    clock = dict.fromkeys(("seconds", "wait", "memory"), 0.0)
    assert [a | clock for a in whole] == [b | clock for b in cut]
    states = [load_file(tmp_path / n / "checkpoint-7" / "state.safetensors") for n in ("whole", "cut")]
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []


@pytest.mark.parametrize("table", [{"min_snr": 5.0}, {"snr": True}, {}])
def test_the_loss_is_the_weighted_error_and_the_bound(table: dict[str, Any], make: Make) -> None:
    made = fill(make(loss=table, data={"drop_text": 0.0}))
    indices = [6, 7, 8, 9]
    loss = one(made, indices)
    generator, batch = constant(), made.fetch(indices, 5, 0)
    uniform(generator, indices)  # whose text is dropped
    latents = made.source.encode(batch, generator, "cpu")
    noise = normal(generator, indices, latents.shape[1:])
    timesteps = made._timesteps(indices, generator)
    text, mask = made.source.text(batch, [False] * 4, "cpu", torch.float32)
    with torch.no_grad():
        output = made.model(
            add_noise(latents, noise, timesteps),
            timestep=timesteps,
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
        ).sample
    terms = training_loss(output, latents, noise, timesteps, snr=table.get("snr", False))
    weight = recipe.min_snr_weights(timesteps, table.get("min_snr", 0.0))
    wanted = weight * terms["mse"] + terms["vb"]
    assert torch.equal(loss.timesteps, timesteps)
    assert torch.allclose(loss.samples, wanted, rtol=1e-4)
    assert not loss.samples.requires_grad
    assert float(loss.total.detach()) == pytest.approx(float(wanted.mean()), rel=1e-4)
    assert loss.figures["mse"] == pytest.approx(float(terms["mse"].mean()), rel=1e-4)
    assert loss.figures["vb"] == pytest.approx(float(terms["vb"].mean()), rel=1e-4)


def test_a_sample_sees_the_same_whatever_is_beside_it(make: Make) -> None:
    made = fill(make())
    whole = one(made, [6, 7, 8, 9])
    parts = [one(made, [6, 7]), one(made, [8, 9])]
    assert torch.equal(whole.timesteps, torch.cat([part.timesteps for part in parts]))
    assert torch.allclose(whole.samples, torch.cat([part.samples for part in parts]), rtol=1e-5)


def test_bf16_is_close(make: Make) -> None:
    exact, coarse = (float(one(make(dtype=d)).total.detach()) for d in ("fp32", "bf16"))
    assert coarse == pytest.approx(exact, rel=0.02)
    assert all(p.dtype == torch.float32 for p in make(dtype="bf16").model.parameters())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_gradient_checkpointing_changes_no_bit(dtype: str, make: Make) -> None:
    gradients = []
    for checkpointing in (False, True):
        made = fill(make(dtype=dtype, checkpointing=checkpointing))
        one(made).total.backward()
        gradients.append([p.grad for p in made.model.parameters()])
    assert all(p is not None and torch.equal(p, q) for p, q in zip(*gradients, strict=True))


@pytest.mark.parametrize("part", [0.0, 1.0])
def test_text_is_dropped(part: float, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(data={"drop_text": part})
    seen: list[list[bool]] = []
    text = made.source.text
    monkeypatch.setattr(
        made.source, "text", lambda b, dropped, *r: (seen.append(dropped), text(b, dropped, *r))[1]
    )
    one(made, [0, 1, 2])
    assert seen == [[part == 1.0] * 3]


def test_timesteps(make: Make) -> None:
    many = range(5000)
    even = make(loss={"uniform_part": 1.0})._timesteps(many, constant())
    assert even.dtype == torch.int64
    assert int(even.min()) < 5
    assert int(even.max()) > 994
    assert float(even.float().mean()) == pytest.approx(499.5, abs=16)
    late = make(loss={"uniform_part": 0.0, "t_mean": 2.0, "t_std": 0.1})._timesteps(range(1000), constant())
    assert float(late.float().median()) == pytest.approx(1000 / (1 + math.exp(-2)), abs=3)
    made = make(loss={"uniform_part": 0.3, "t_mean": 2.0, "t_std": 0.1})
    mixed = made._timesteps(many, constant())
    assert float((mixed < 700).float().mean()) == pytest.approx(0.3 * 0.7, abs=0.03)
    assert torch.equal(mixed, made._timesteps(many, constant()))


# What each stage trains


def changed_by(made: DitRecipe, out: Path) -> set[str]:
    """Names of the tensors that four steps change, in the model and in the saved averages; all others are bit-exact."""
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    train(made, out, 4)
    final = load_file(next((out / "final").glob("*.safetensors")))
    assert final.keys() == before.keys()  # a stage also saves what it does not train
    return {name for name, value in final.items() if not torch.equal(value, before[name])}


def expected_by(made: DitRecipe, wanted: Callable[[str], bool]) -> set[str]:
    return {name for name, _ in made.model.named_parameters() if wanted(name)}


def test_align_leaves_the_motion_modules_alone(make: Make, tmp_path: Path) -> None:
    made = make("align", data={"kinds": "both"})
    assert {bucket.kind for bucket in made.phases()[0].buckets} == {"image"}
    assert changed_by(fill(made), tmp_path / "run") == expected_by(made, lambda n: ".attn_temporal." not in n)


def test_align_computes_without_the_motion_modules(make: Make) -> None:
    made = fill(make("align"))
    with torch.no_grad():
        for block in made.model.blocks:
            block.attn_temporal.temporal_transformer.proj_out.bias.fill_(torch.nan)
    assert one(made, [0, 1]).total.isfinite()


def test_motion_trains_nothing_else(make: Make, tmp_path: Path) -> None:
    made = make("motion")
    assert {bucket.kind for bucket in made.phases()[0].buckets} == {"image", "video"}
    assert changed_by(fill(made), tmp_path / "run") == expected_by(made, lambda n: ".attn_temporal." in n)


def test_finetune_trains_everything(make: Make, tmp_path: Path) -> None:
    made = make("finetune")
    assert changed_by(fill(made), tmp_path / "run") == expected_by(made, lambda n: True)


def test_patterns(make: Make, tmp_path: Path) -> None:
    """As in EasyAnimate: some at the full rate, some at half of it, the rest frozen."""
    table = {
        "patterns": ["transformer_blocks.2", "proj_out$|long_connect"],
        "low": ["blocks.1.attn", r"blocks.2.ff"],
    }
    with pytest.raises(ValueError, match=r"'proj_out\$\|long_connectx' matches no parameter"):
        make(trainable={"patterns": ["proj_out$|long_connectx"]})
    made = make(trainable=table)
    high = expected_by(made, lambda n: "transformer_blocks.2" in n or "long_connect" in n)
    low = expected_by(made, lambda n: "blocks.1.attn" in n)
    groups = made.parameter_groups()
    names = {id(p): n for n, p in made.model.named_parameters()}
    by_rate: dict[float, set[str]] = {1.0: set(), 0.5: set()}
    for group in groups:
        by_rate[group["lr_scale"]] |= {names[id(p)] for p in group["params"]}
    assert by_rate == {1.0: high, 0.5: low}  # names in both lists have the full rate
    assert {g["name"]: g["kind"] for g in groups} == {
        "matrices": "muon",
        "others": "adamw",
        "matrices, low rate": "muon",
        "others, low rate": "adamw",
    }
    assert changed_by(fill(made), tmp_path / "run") == high | low


def test_groups_cover_every_parameter_once(make: Make) -> None:
    made = make()
    groups = {group["kind"]: group["params"] for group in made.parameter_groups()}
    assert all(p.ndim == 2 for p in groups["muon"])
    ids = [id(p) for params in groups.values() for p in params]
    assert sorted(ids) == sorted(id(p) for p in made.model.parameters())
    assert id(made.model.scale_shift_table) not in {id(p) for p in groups["muon"]}


# Inputs of a step


def test_phases(make: Make) -> None:
    made = make(phases=[{"start": 0}, {"start": 10, "size": 64, "num_frames": 9, "batch_size": 2}])
    phases = made.phases()
    assert [(p.start, p.batch_size, len(p.buckets)) for p in phases] == [(0, 0, 12), (10, 2, 12)]
    assert made.source.views == [(None, None), (64, 9)]
    for step in (0, 9, 10, 500):
        made.fetch([6, 7], 5, step)
    assert [(b.height, n) for b, n in made.source.fetched] == [(32, 27), (32, 27), (64, 9), (64, 9)]


def test_random_frame_crop(make: Make) -> None:
    made = make(data={"random_frame_crop": True})
    assert made.source.single_frames
    seen = [made.fetch([6, 7], seed, 0).tensors["moments"].shape[3] for seed in range(2000)]
    counts = {frames: seen.count(frames) / len(seen) for frames in sorted(set(seen))}
    assert list(counts) == [1, 3, 6, 9]  # latent frames of 1, 9, 18 and 27 frames
    assert counts[9] == pytest.approx(0.9, abs=0.02)
    assert all(counts[f] == pytest.approx(0.1 / 3, abs=0.015) for f in (1, 3, 6))
    # depends on the step's seed alone: all parts of a batch have one length
    assert seen == [made.fetch([8], seed, 0).tensors["moments"].shape[3] for seed in range(2000)]
    assert {made.fetch([0], seed, 0).tensors["moments"].shape[3] for seed in range(50)} == {1}
    assert {n for _, n in (make().source.fetched or [(0, 27)])} == {27}
    assert one(made).total.isfinite()


def test_size_conditions(make: Make) -> None:
    """Models of sample_size 128 get the size in pixels and the aspect ratio; others get nothing."""
    latents = torch.zeros(2, 4, 1, 4, 6)
    assert make()._sizes(latents) is None
    sizes = make(model={**MODEL, "sample_size": 128, "num_attention_heads": 12})._sizes(latents)
    assert sizes is not None
    assert sizes["resolution"].tolist() == [[32.0, 48.0]] * 2
    assert sizes["aspect_ratio"].tolist() == [[pytest.approx(2 / 3)]] * 2


# Initial weights


def test_from_a_picture_model(make: Make, tmp_path: Path) -> None:
    from diffusers import PixArtTransformer2DModel

    keys = {k: v for k, v in MODEL.items() if not k.startswith("motion")}
    picture = PixArtTransformer2DModel(**keys, out_channels=8)
    picture.save_pretrained(tmp_path / "picture")
    lines: list[str] = []
    changes = {"enable_uvit": False, "motion_module_kwargs": MODEL["motion_module_kwargs"]}
    made = make("align", init={"from_2d": str(tmp_path / "picture")}, model=changes)
    lines = made.start_lines
    assert lines[1] == f"{len(picture.state_dict())} tensors of the picture model taken over"
    for name, value in picture.state_dict().items():
        assert torch.equal(value, made.model.state_dict()[name]), name
    assert not made.model.cfg.enable_uvit


def test_with_motion_modules_of_a_file(make: Make, tmp_path: Path) -> None:
    from ea_dit.motion_files import extract_motion

    trained = fill(make())
    trained.save(tmp_path / "trained")
    extract_motion(tmp_path / "trained", tmp_path / "motion.safetensors")
    made = make(init={"motion": str(tmp_path / "motion.safetensors")})
    theirs = trained.model.state_dict()
    moved = [name for name in theirs if ".attn_temporal." in name]
    assert moved
    assert all(torch.equal(made.model.state_dict()[name], theirs[name]) for name in moved)
    assert "tensors of 3 blocks matched" in made.start_lines[-1]


def test_settings_beside_a_folder_must_be_its_own(make: Make, tmp_path: Path) -> None:
    make(model={**MODEL, "enable_uvit": False}).save(tmp_path / "plain")
    init = {"folder": str(tmp_path / "plain")}
    assert not make(init=init, model={"enable_uvit": False}).model.cfg.enable_uvit
    with pytest.raises(
        UserError, match=r"`model.enable_uvit` is True, but the model in `init.folder` .* has False"
    ):
        make(init=init, model={"enable_uvit": True})


# Descriptions


def test_describe(make: Make) -> None:
    told = make("motion", trainable={"low": ["transformer_blocks.0.attn_temporal"]}).describe()
    assert told["stage"] == "motion"
    assert list(told["parameter groups"]) == ["matrices", "others", "matrices, low rate", "others, low rate"]
    assert "rate x 0.5" in told["parameter groups"]["others, low rate"]
    assert told["largest sample"] == "video, 27 frames of 32x32"
    assert told["memory"] == {"computing copy": 0}
    made = make(dtype="bf16")
    numbers = sum(tensor.numel() for tensor in (*made.model.parameters(), *made.model.buffers()))
    assert made.describe()["memory"] == {"computing copy": 2 * numbers}
    assert json.dumps(told)


def test_a_sheet(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make().sample_sheet(3) is None  # no prompts
    made = make(samples={"sample_prompts": ["a", "b"]})
    videos = np.zeros((2, 18, 32, 32, 3), np.uint8)
    monkeypatch.setattr("ea_dit.training.samples.sample_videos", lambda *given: videos)
    drawn = made.sample_sheet(3)
    assert drawn is not None
    assert drawn.sheet.dtype == np.uint8
    assert drawn.sheet.ndim == 3
    assert (drawn.videos is videos, list(drawn.prompts)) == (True, ["a", "b"])

    def diverged(*given: Any) -> Any:
        raise UserError("latents are no longer finite")

    monkeypatch.setattr("ea_dit.training.samples.sample_videos", diverged)
    assert made.sample_sheet(3) is None  # training continues


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"model": {**MODEL, "num_layer": 3}}, "[model]: Transformer3DModel has no key `num_layer`; did you"),
        (
            {"model": {**MODEL, "num_layers": 0}},
            "[model] describes no Transformer3DModel: `num_layers` must be",
        ),
        (
            {"model": {**MODEL, "out_channels": 4}},
            "`model.out_channels` must be 2 x in_channels = 8 (noise and",
        ),
        (
            {"model": {**MODEL, "caption_channels": 9}},
            "`model.caption_channels` must be 12, as `data.parts`'",
        ),
        ({"model": {**MODEL, "in_channels": 8, "out_channels": 16}}, "`model.in_channels` must be 4, as"),
        (
            {"init": {"folder": "absent"}},
            "`init.folder` must hold config.json and *.safetensors, got 'absent'",
        ),
        ({"init": {"from_2d": "absent"}}, "the picture model's folder must hold config.json"),
        ({"init": {"motion": "absent"}}, "the motion modules must be a safetensors file, got 'absent'"),
        (
            {"init": {"folder": "a", "from_2d": "b"}},
            "dit.toml: `init`: give either `folder` (a 3-D",
        ),
        ({"loss": {"t_std": 0}}, "dit.toml: `loss.t_std`: Input should be greater than 0, got 0"),
        ({"loss": {"min_snr": math.nan}}, "dit.toml: `loss.min_snr`: Input should be a finite"),
        ({"loss": {"min_snr": 5, "snr": True}}, "dit.toml: `loss`: `snr` and `min_snr`"),
        ({"data": {"drop_text": 1.5}}, "dit.toml: `data.drop_text`: Input should be less than or equal to 1"),
        ({"data": {"kind": "both"}}, "dit.toml: unknown key `data.kind`; did you mean 'kinds'?"),
        ({"stage": "pictures"}, "dit.toml: `stage`: Input should be 'align', 'motion' or"),
        ({"stage": "align", "data": {"kinds": "videos"}}, "dit.toml: `table`: stage 'align'"),
        ({"phases": [{"start": 3}]}, "dit.toml: `table`: `phases` must start at 0"),
        ({"trainable": {"patterns": ["proj_oud"]}}, "`trainable.patterns`: 'proj_oud' matches no parameter"),
        ({"trainable": {"low": ["("]}}, "`trainable.low` must hold regular expressions, got '('"),
        ({"stage": "align", "trainable": {"patterns": ["attn_temporal"]}}, "`trainable.patterns`: 'attn"),
    ],
)
def test_wrong_tables(tables: dict[str, Any], expected: str, make: Make) -> None:
    with pytest.raises(ValueError) as caught:
        make(**tables)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("channels", "task", "message"),
    [
        (12, "generate", "`train.task` must be 'inpaint' or 'auto' for a model of 12 input channels"),
        (4, "inpaint", "`model.in_channels` must be 3 times the latents' for train.task 'inpaint', got 4"),
        (4, "auto", "[inpaint] is for models that take known frames"),
    ],
)
def test_task_and_model_must_fit(make: Make, channels: int, task: str, message: str) -> None:
    model = {**MODEL, "in_channels": channels, "out_channels": 8}
    tables = {"inpaint": {}} if task == "auto" else {}
    with pytest.raises(UserError) as error:
        make(model=model, task=task, **tables)
    assert message in str(error.value)


def test_known_frames_reach_the_model(make: Make) -> None:
    """A mask that knows everything but the last frames, and one that knows nothing, give different losses."""
    wide = {**MODEL, "in_channels": 12, "enable_clip_in_inpaint": False}
    losses = []
    for masks in ({"start": 1.0}, {"all": 1.0}, {"all": 1.0}):
        made = fill(make(model=wide, inpaint={"masks": masks, "known_frames": [18]}))
        made.source.coder = Flat()
        made.known = KnownChannels(made.source.coder, made.source.scale, made.source.chunk)
        losses.append(float(one(made).total.detach()))
    assert losses[1] == losses[2]
    assert losses[0] != losses[1]
