"""Steps of a sampler and the predictor of noise, with small stand-ins for networks and samplers; float32 on the CPU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.generation import denoise as denoising
from ea_runtime.generation.denoise import NoisePredictor, Text, plan_steps, size_conditions
from ea_runtime.records import SamplerRecord


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


# --- texts -------------------------------------------------------------------------------------------------


def test_rows_of_texts_have_the_negative_ones_first() -> None:
    embeds, negative = drawn(4, 3, 2), drawn(4, 3, 2, seed=1)
    mask, negative_mask = torch.tensor([[1, 1, 0]] * 4), torch.tensor([[1.0, 0, 0]] * 4)
    text = Text(embeds, mask, negative, negative_mask)
    found, found_mask = text.rows(1, 3)
    assert torch.equal(found, torch.cat([negative[1:3], embeds[1:3]]))
    assert found_mask.tolist() == [[1, 0, 0]] * 2 + [[1, 1, 0]] * 2
    assert found_mask.dtype == torch.int64
    for alone in (Text(embeds, mask), Text(embeds, mask, negative), Text(embeds, mask, None, negative_mask)):
        assert torch.equal(alone.rows(1, 3)[0], embeds[1:3])
        assert torch.equal(alone.rows(1, 3)[1], mask[1:3])
    with pytest.raises(dataclasses.FrozenInstanceError):
        text.embeds = negative  # type: ignore[misc]


# --- steps -------------------------------------------------------------------------------------------------


def sampler(
    can: Callable[[int], bool], error: type[Exception] = ValueError, **config: int
) -> tuple[SamplerRecord, list[int]]:
    asked: list[int] = []

    def build(**_: Any) -> Any:
        def set_timesteps(count: int) -> None:
            asked.append(count)
            if not can(count):
                raise error
            made.timesteps = torch.arange(count, 0, -1) + config.get("offset", 0)

        made = SimpleNamespace(set_timesteps=set_timesteps, config=SimpleNamespace(**config))
        return made

    return SamplerRecord("some", "a stand-in", build), asked


@pytest.mark.parametrize("error", [ValueError, IndexError, ZeroDivisionError])
def test_steps_that_a_sampler_cannot_do_have_the_nearest_that_it_can(error: type[Exception]) -> None:
    record, asked = sampler(lambda count: count % 10 == 0, error)
    assert len(plan_steps(record, {}, 30).timesteps) == 30
    assert asked == [30]
    with pytest.raises(
        UserError, match=r"`num_inference_steps` 24 is not possible with sampler 'some'; use 20$"
    ):
        plan_steps(record, {}, 24)


def test_nearest_steps_are_looked_for_within_20() -> None:
    for least, hint in ((50, r"; use 50$"), (51, r"'some'$")):
        record, asked = sampler(lambda count, least=least: count >= least)
        with pytest.raises(UserError, match=hint):
            plan_steps(record, {}, 30)
        assert asked[:1] + sorted(asked[1:]) == [30, *range(10, 51)]
    record, asked = sampler(lambda count: count <= 10)
    with pytest.raises(UserError, match=r"; use 10$"):
        plan_steps(record, {}, 30)
    record, asked = sampler(lambda count: count < 10)
    with pytest.raises(UserError, match=r"'some'$"):
        plan_steps(record, {}, 30)
    record, asked = sampler(lambda _: False)
    with pytest.raises(UserError, match=r"'some'$"):
        plan_steps(record, {}, 1)
    assert min(asked) == 1
    record, _ = sampler(lambda count: count == 1)
    with pytest.raises(UserError, match=r"; use 1$"):
        plan_steps(record, {}, 3)


def test_steps_start_at_a_trained_timestep() -> None:
    record, _ = sampler(lambda _: True, num_train_timesteps=8)
    assert len(plan_steps(record, {}, 7).timesteps) == 7
    with pytest.raises(UserError, match=r"; use 7$"):
        plan_steps(record, {}, 8)
    record, _ = sampler(lambda _: True, offset=990)  # of 1,000, where a scheduler does not say
    assert len(plan_steps(record, {}, 9).timesteps) == 9
    with pytest.raises(UserError, match=r"; use 9$"):
        plan_steps(record, {}, 10)


# --- the predictor -----------------------------------------------------------------------------------------


class Network:
    """A denoiser whose noise shows its rows: latents + text + timestep. calls: what it was given."""

    def __init__(self, fail: Callable[[int], Exception | None] = lambda _: None) -> None:
        self.fail, self.calls = fail, []  # type: ignore[var-annotated]

    def __call__(self, x: Tensor, **given: Any) -> SimpleNamespace:
        self.calls.append({"x": x, **given})
        if (error := self.fail(len(x))) is not None:
            raise error
        text = given["encoder_hidden_states"].sum((1, 2)).reshape(-1, 1, 1, 1, 1)
        return SimpleNamespace(sample=torch.cat([x + text, torch.full_like(x, math.nan)], dim=1))


class Prepared:
    """A denoiser with `prepare`, which starts from one copy of the latents. counts: of latents, for each pass."""

    def __init__(self) -> None:
        self.prepared: list[dict[str, Any]] = []
        self.counts: list[int] = []

    def prepare(self, text: Tensor, mask: Tensor, timesteps: Any, conditions: Any, **picture: Any) -> Tensor:
        self.prepared.append({"mask": mask, "timesteps": timesteps, "conditions": conditions, **picture})
        return text

    def __call__(self, x: Tensor, prepared: Tensor, timestep: float) -> SimpleNamespace:
        assert isinstance(timestep, float)
        self.counts.append(len(x))
        text = prepared.sum((1, 2)).reshape(-1, 1, 1, 1, 1)
        return SimpleNamespace(sample=x.repeat(len(prepared) // len(x), 1, 1, 1, 1) + text)


X, EMBEDS, MASK = drawn(2, 3, 1, 2, 2), drawn(4, 5, 6, seed=1), torch.ones(4, 5)
T = torch.tensor(7)


def noise_of(x: Tensor, guidance: float) -> Tensor:
    """By the definition: without + guidance x (with - without), text rows last."""
    sums = EMBEDS.sum((1, 2)).reshape(-1, 1, 1, 1, 1)
    without, with_text = x + sums[:2], x + sums[2:]
    return without + guidance * (with_text - without)


@pytest.mark.parametrize("network", [Network, Prepared])
def test_guidance_adds_the_difference_that_the_text_makes(network: type[Any]) -> None:
    predict = NoisePredictor(network(), (EMBEDS, MASK), {}, 2.5, 3, [7.0])
    torch.testing.assert_close(predict(X, T), noise_of(X, 2.5))


def test_without_guidance_noise_is_taken_as_it_is() -> None:
    predict = NoisePredictor(Network(), (EMBEDS[2:], MASK[2:]), {}, 2.5, 3)
    torch.testing.assert_close(predict(X, T), noise_of(X, 1.0))


def test_a_pass_has_the_conditions_of_its_rows() -> None:
    network = Network()
    conditions = {"size": torch.arange(4.0)[:, None], "nothing": None}
    NoisePredictor(network, (EMBEDS, MASK), conditions, 2.5, 3)(X, T)
    (call,) = network.calls
    assert torch.equal(call["x"], torch.cat([X, X]))
    assert call["timestep"].tolist() == [7] * 4
    assert call["added_cond_kwargs"]["size"].flatten().tolist() == [0, 1, 2, 3]
    assert call["added_cond_kwargs"]["nothing"] is None
    assert torch.equal(call["encoder_attention_mask"], MASK)
    assert not {"step_cache", "inpaint_latents", "clip_attention_mask"} & call.keys()


def test_the_network_has_its_format_and_the_sampler_float32() -> None:
    network = Network()
    predict = NoisePredictor(network, (EMBEDS.bfloat16(), MASK), {}, 2.5, 3)
    assert predict(X, T).dtype == torch.float32
    assert network.calls[0]["x"].dtype == torch.bfloat16
    # guidance is computed in float32, too
    out = (
        Network()(torch.cat([X, X]).bfloat16(), encoder_hidden_states=EMBEDS.bfloat16()).sample[:, :3].float()
    )
    assert torch.equal(predict(X, T), out[:2] + 2.5 * (out[2:] - out[:2]))


def test_a_timestep_is_where_the_latents_are() -> None:
    network = Network()
    predict = NoisePredictor(network, (EMBEDS.to("meta"), MASK.to("meta")), {}, 2.5, 3)
    assert predict(X.to("meta"), T).device.type == "meta"
    assert network.calls[0]["timestep"].device.type == "meta"


def out_of_memory(rows: int) -> Exception | None:
    return torch.OutOfMemoryError("no room") if rows > 1 else None


def test_rows_run_one_by_one_once_memory_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []
    monkeypatch.setattr(denoising, "free_memory", lambda: freed.append(1))
    network = Network(out_of_memory)
    conditions = {"size": torch.arange(4.0)[:, None]}
    predict = NoisePredictor(network, (EMBEDS, MASK), conditions, 2.5, 3)
    predict.prepared[0, 4, False] = predict.caches[0, 4] = "of the whole"
    for passes in (5, 9):
        torch.testing.assert_close(predict(X, T), noise_of(X, 2.5))
        assert len(network.calls) == passes  # the whole is tried once
    assert (freed, predict.prepared, predict.caches) == ([1], {}, {})
    assert [call["added_cond_kwargs"]["size"].tolist() for call in network.calls[1:5]] == [
        [[float(i)]] for i in range(4)
    ]
    assert [call["timestep"].tolist() for call in network.calls[5:]] == [[7]] * 4


@pytest.mark.parametrize("rows", [1, 4])
def test_other_errors_are_raised_and_a_single_row_s_too(rows: int) -> None:
    for error in (ValueError("wrong"), torch.OutOfMemoryError("no room")):
        network = Network(lambda _, error=error: error)
        predict = NoisePredictor(network, (EMBEDS[:rows], MASK[:rows]), {}, 2.5, 3)
        with pytest.raises(type(error)):
            predict(X[: max(rows // 2, 1)], T)
        assert len(network.calls) == (1 if rows == 1 or isinstance(error, ValueError) else 2)


def test_a_pair_of_rows_is_split_too() -> None:
    network = Network(out_of_memory)
    predict = NoisePredictor(network, (EMBEDS[1:3], MASK[1:3]), {}, 2.5, 3)
    assert predict(X[:1], T).shape == X[:1].shape
    assert [len(call["x"]) for call in network.calls] == [2, 1, 1]


def test_what_steps_share_is_prepared_once() -> None:
    network = Prepared()
    predict = NoisePredictor(network, (EMBEDS, MASK), {"size": MASK, "no": None}, 2.5, 3, [7.0, 3.0])
    for _ in range(2):
        predict(X, T)
    (prepared,) = network.prepared
    assert torch.equal(prepared["mask"], MASK)
    assert prepared["timesteps"] == [7.0, 3.0]
    assert torch.equal(prepared["conditions"]["size"], MASK)
    assert network.counts == [2, 2]


def known(inputs: Tensor | None = None, clip: Tensor | None = None) -> Any:
    """Known frames whose picture counts from step 1 of 2 on."""
    return SimpleNamespace(inputs=inputs, clip=clip, is_clip_on=lambda step, count: step / count >= 0.5)


def test_a_picture_counts_for_rows_with_text_and_a_picture() -> None:
    clip = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    network = Network()
    predict = NoisePredictor(network, (EMBEDS, MASK), {}, 2.5, 3, [7.0, 3.0], known=known(clip=clip))
    predict(X, T)
    predict(X, T, 0)
    predict(X, T, 1)
    assert [("clip_attention_mask" in call) for call in network.calls] == [False, False, True]
    call = network.calls[2]
    assert call["clip_encoder_hidden_states"].tolist() == [[1, 2], [0, 0], [1, 2], [0, 0]]
    assert call["clip_attention_mask"].tolist() == [[0] * 8, [0] * 8, [1] * 8, [0] * 8]
    assert {call[name].dtype for name in ("clip_encoder_hidden_states", "clip_attention_mask")} == {
        torch.float32
    }
    # row by row
    split = Network(out_of_memory)
    predict = NoisePredictor(split, (EMBEDS, MASK), {}, 2.5, 3, [7.0, 3.0], known=known(clip=clip))
    predict(X, T, 1)
    assert [call["clip_attention_mask"].tolist() for call in split.calls[1:]] == [
        [[0] * 8],
        [[0] * 8],
        [[1] * 8],
        [[0] * 8],
    ]


@pytest.mark.parametrize("of", [None, known()])
def test_without_a_picture_there_are_no_tokens_of_one(of: Any) -> None:
    network = Network()
    NoisePredictor(network, (EMBEDS, MASK), {}, 2.5, 3, [7.0], known=of)(X, T, 1)
    assert "clip_attention_mask" not in network.calls[0]
    assert "inpaint_latents" not in network.calls[0]


def test_a_picture_is_prepared_apart_from_none() -> None:
    network = Prepared()
    of = known(clip=torch.ones(2, 3))
    predict = NoisePredictor(network, (EMBEDS, MASK), {}, 2.5, 3, [7.0, 3.0], known=of)
    for step in (0, 1, 1):
        predict(X, T, step)
    assert [("clip_attention_mask" in call) for call in network.prepared] == [False, True]


def test_known_frames_are_further_channels_of_each_row() -> None:
    inputs = drawn(2, 4, 1, 2, 2, seed=5).double()
    network = Network()
    NoisePredictor(network, (EMBEDS, MASK), {}, 2.5, 3, [7.0], known=known(inputs))(X, T)
    given = network.calls[0]["inpaint_latents"]
    assert torch.equal(given, torch.cat([inputs, inputs]).float())
    assert given.dtype == torch.float32


def test_a_step_cache_belongs_to_its_rows() -> None:
    made: list[int] = []
    caching = SimpleNamespace(new=lambda passes: (made.append(passes), object())[1])
    network = Network(out_of_memory)
    predict = NoisePredictor(network, (EMBEDS, MASK), {}, 2.5, 3, [7.0, 3.0], step_cache=caching)  # type: ignore[arg-type]
    predict(X, T)
    predict(X, T)
    assert made == [2] * 5
    caches = [call["step_cache"] for call in network.calls]
    assert len(set(map(id, caches[:5]))) == 5
    assert caches[1:5] == caches[5:]


@pytest.mark.parametrize("has_graphs", [False, True])
def test_each_pass_with_cuda_graphs_is_marked(has_graphs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    given = {"has_cuda_graphs": True} if has_graphs else {}
    NoisePredictor(Network(), (EMBEDS, MASK), {}, 2.5, 3, **given)(X, T)  # type: ignore[arg-type]
    assert marks == [1] * has_graphs


def test_caches_of_diffusers_begin_anew_with_a_context_for_each_row() -> None:
    class Cached(Network):
        is_cache_enabled = True

        def __init__(self) -> None:
            super().__init__(out_of_memory)
            self.seen: list[str] = []

        def _reset_stateful_cache(self) -> None:
            self.seen.append("reset")

        @contextmanager
        def cache_context(self, name: str) -> Any:
            self.seen.append(name)
            yield

    network = Cached()
    NoisePredictor(network, (EMBEDS, MASK), {}, 2.5, 3)(X, T)
    assert network.seen == ["reset", "0-4", "0-1", "1-2", "2-3", "3-4"]
    network.is_cache_enabled = False
    NoisePredictor(network, (EMBEDS, MASK), {}, 2.5, 3)(X, T)
    assert len(network.seen) == 6


def test_formats_are_watched() -> None:
    watched: list[tuple[Any, ...]] = []

    @contextmanager
    def watch(network: Any, *key: Any) -> Any:
        watched.append(key)
        yield

    network = Prepared()
    predict = NoisePredictor(network, (EMBEDS, MASK), {}, 2.5, 3, [7.0], formats=SimpleNamespace(watch=watch))  # type: ignore[arg-type]
    predict(X, T)
    assert watched == [("prepare", (4, 5, 6), (0, 4, False)), ((2, 3, 1, 2, 2), (4, 5, 6), (0, 4))]


def test_sizes_are_conditions_of_one_model() -> None:
    none = {"resolution": None, "aspect_ratio": None}
    like = torch.zeros(1, dtype=torch.float64)
    assert size_conditions(SimpleNamespace(), 2, 90, 160, like) == none
    assert size_conditions(SimpleNamespace(sample_size=64), 2, 90, 160, like) == none
    found = size_conditions(SimpleNamespace(sample_size=128), 2, 90, 160, like)
    assert found["resolution"].tolist() == [[90, 160]] * 2
    assert found["aspect_ratio"].flatten().tolist() == pytest.approx([90 / 160] * 2)
    assert {one.dtype for one in found.values()} == {torch.float64}
