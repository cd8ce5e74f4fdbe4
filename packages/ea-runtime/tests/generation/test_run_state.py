"""Saved runs: what is resumed at any step is bit-exact with an undisturbed run, and what cannot be resumed is not."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from ea_runtime.errors import UserError
from ea_runtime.generation import packing, place
from ea_runtime.generation.pipeline import VideoOutput, VideoPipeline
from ea_runtime.generation.run_files import read_state
from ea_runtime.generation.run_state import RunState
from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import SamplerRecord, StepCacheRecord
from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae, host_with

SMALL = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 6, "seed": 3}
SAMPLERS = ["euler", "euler-a", "dpm++", "pndm", "ddim", "unipc"]
KEY = {"settings": {"seed": 3}, "model": "0" * 64}


class CachingDenoiser(FakeDenoiser):
    """A fake whose prediction stands for the blocks' output."""

    def forward(self, hidden_states, timestep, *args, step_cache=None, **kwargs):
        out = super().forward(hidden_states, timestep, *args, **kwargs)
        if step_cache is not None:
            tokens = lambda x: x.flatten(2).transpose(1, 2)  # noqa: E731
            both = torch.cat([hidden_states, hidden_states], dim=1)
            found = step_cache(tokens(hidden_states), tokens(both), lambda x: tokens(out.sample))
            out.sample = found.transpose(1, 2).reshape(both.shape)
        return out


class Stopped(Exception):
    """What ends a run in these tests."""


def make_pipe() -> VideoPipeline:
    return VideoPipeline(FakeVae(), CachingDenoiser(), FakeTextEncoder(num_tokens=40))


def make_run(folder: Path, key=KEY, **more) -> RunState:
    return RunState(folder, key, **{"first_after": 0, "every": 0, **more})


def ended_at(step: int, folder: Path, prompt, **settings) -> None:
    """A run that saves after each pass and ends after pass `step`."""

    def on_step(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("denoising", step):
            raise Stopped

    run = make_run(folder)
    assert run.begin() is None
    with pytest.raises(Stopped):
        make_pipe()(prompt, on_step=on_step, run=run, **settings)


def resumed(folder: Path, prompt, **settings) -> tuple[VideoOutput, list[int]]:
    """The result of the run in `folder`, and the numbers of passes that it reported."""
    passes: list[int] = []
    run = make_run(folder)
    found = run.begin()
    assert found is not None
    result = make_pipe()(
        prompt,
        run=run,
        on_step=lambda phase, done, total: passes.append(done) if phase == "denoising" else None,
        **settings,
    )
    assert passes[0] == found.done
    return result, passes


def same(a: VideoOutput, b: VideoOutput) -> bool:
    return (
        torch.equal(a.latents, b.latents)
        and np.array_equal(a.frames, b.frames)
        and (a.settings, a.notes, a.decode_seeds) == (b.settings, b.notes, b.decode_seeds)
    )


@pytest.mark.parametrize("guidance", [1.0, 4.0], ids=["unguided", "guided"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_at_every_step(tmp_path, sampler, guidance):
    settings = {**SMALL, "sampler": sampler, "guidance_scale": guidance}
    whole = make_pipe()("a red circle", **settings)
    total = 15 if sampler == "pndm" else 6
    for step in range(1, total):
        folder = tmp_path / str(step)
        ended_at(step, folder, "a red circle", **settings)
        result, passes = resumed(folder, "a red circle", **settings)
        assert passes == list(range(step, total + 1))
        assert same(result, whole)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "more", [{"batch_size": 1}, {"batch_size": 2}, {"step_cache": "teacache:0.3"}], ids=str
)
def test_several_videos(tmp_path, sampler, more):
    prompts = ["a red circle", "", "a blue square"]
    settings = {**SMALL, "sampler": sampler, "guidance_scale": 4.0, **more}
    whole = make_pipe()(prompts, **settings)
    groups = 2 if "batch_size" in more and more["batch_size"] == 2 else 3
    total = groups * (15 if sampler == "pndm" else 6)
    for step in sorted({2, 5, 6, 7, total // 2, total - 1}):
        folder = tmp_path / str(step)
        ended_at(step, folder, prompts, **settings)
        assert same(resumed(folder, prompts, **settings)[0], whole)


class Plugin:
    """A sampler and a step cache as plugins bring them (docs/hooks.md)."""

    class EveryOther:
        def __init__(self, num_passes):
            self.computed = self.skipped = 0

        def __call__(self, signal, x, blocks):
            if self.computed > self.skipped:
                self.skipped += 1
                return x.repeat(self.change.shape[0] // x.shape[0], 1, 1) + self.change
            self.computed += 1
            out = blocks(x)
            self.change = out - x.repeat(out.shape[0] // x.shape[0], 1, 1)
            return out

    @hookimpl
    def ea_step_caches(self):
        return [StepCacheRecord("every-other", "for tests", lambda threshold: self.EveryOther)]

    @hookimpl
    def ea_samplers(self):
        def build(**schedule):
            from diffusers import HeunDiscreteScheduler

            known = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
            return HeunDiscreteScheduler(**{key: schedule[key] for key in known if key in schedule})

        return [SamplerRecord("heun", "for tests", build)]


def test_parts_of_plugins(tmp_path):
    settings = {**SMALL, "sampler": "heun", "step_cache": "every-other", "guidance_scale": 4.0}
    with host_with(Plugin()):
        whole = make_pipe()("x", **settings)
        for step in range(1, 11):
            ended_at(step, tmp_path / str(step), "x", **settings)
            assert same(resumed(tmp_path / str(step), "x", **settings)[0], whole)


def test_a_run_that_is_ended_again_and_again(tmp_path):
    settings = {**SMALL, "sampler": "euler-a", "step_cache": "teacache:0.2", "guidance_scale": 4.0}
    whole = make_pipe()("x", **settings)
    ended_at(1, tmp_path, "x", **settings)
    for step in range(2, 6):

        def on_step(phase: str, done: int, total: int, step: int = step) -> None:
            if done == step and phase == "denoising":
                raise Stopped

        run = make_run(tmp_path)
        assert run.begin().done == step - 1
        with pytest.raises(Stopped):
            make_pipe()("x", on_step=on_step, run=run, **settings)
    assert same(resumed(tmp_path, "x", **settings)[0], whole)


def test_denoised_latents_are_not_computed_again(tmp_path):
    whole = make_pipe()("x", **SMALL)
    run = make_run(tmp_path)
    run.begin()
    make_pipe()("x", output="latents", run=run, **SMALL)
    assert read_state(tmp_path).summary == "denoised"
    result, passes = resumed(tmp_path, "x", **SMALL)
    assert same(result, whole)
    assert passes == [6]


def test_out_of_memory_before_is_remembered(tmp_path):
    """Rows that ran one at a time go on so: otherwise the last bits could differ."""
    settings = {**SMALL, "guidance_scale": 4.0}

    class Small(CachingDenoiser):
        rows: list[int] = []

        def forward(self, hidden_states, *args, **kwargs):
            self.rows.append(hidden_states.shape[0])
            if hidden_states.shape[0] > 1 and len(self.rows) == 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(hidden_states, *args, **kwargs)

    def stop(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("denoising", 4):
            raise Stopped

    run = make_run(tmp_path)
    run.begin()
    with pytest.raises(Stopped):
        VideoPipeline(FakeVae(), Small(), FakeTextEncoder())("x", on_step=stop, run=run, **settings)
    rows: list[int] = []
    pipe = make_pipe()
    pipe.denoiser.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))
    run = make_run(tmp_path)
    run.begin()
    pipe("x", run=run, **settings)
    assert set(rows) == {1}


@pytest.mark.parametrize(
    ("sampler", "lost"),
    [
        ("dpm++", "model_outputs"),
        ("unipc", "last_sample"),
        ("pndm", "ets"),
        ("euler-a", "generators"),
        ("x", "caches"),
    ],
)
def test_a_lost_part_of_the_state_is_caught(tmp_path, monkeypatch, sampler, lost):
    """The twin: each part is needed, so a state without it gives another result."""
    more = {"step_cache": "teacache:0.3"} if sampler == "x" else {"sampler": sampler}
    settings = {**SMALL, "num_inference_steps": 12, "guidance_scale": 4.0, **more}
    whole = make_pipe()("x", **settings)
    ended_at(5, tmp_path, "x", **settings)
    real = place.put_back

    def forgetful(state, scheduler, generators, predict, caching):
        fresh = {name: getattr(scheduler, name) for name in (lost,) if hasattr(scheduler, name)}
        if lost == "generators":
            state = {**state, "generators": [torch.Generator().manual_seed(3).get_state()]}
        elif lost == "caches":
            state = {**state, "caches": []}
        real(state, scheduler, generators, predict, caching)
        packing.set_attributes(scheduler, fresh)

    monkeypatch.setattr("ea_runtime.generation.groups.put_back", forgetful)
    try:
        result = resumed(tmp_path, "x", **settings)[0]
    except (TypeError, AttributeError, IndexError, ValueError):
        return  # a scheduler that misses its history
    assert not torch.equal(result.latents, whole.latents)


def test_a_short_run_writes_nothing(tmp_path):
    run = RunState(tmp_path / "run", KEY)
    run.begin()
    make_pipe()("x", run=run, **SMALL)
    assert not (tmp_path / "run").exists()
    run.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_place_is_saved_as_often_as_it_is_cheap(tmp_path, monkeypatch):
    now, saves = [0.0], []
    monkeypatch.setattr("ea_runtime.generation.run_state.time.monotonic", lambda: now[0])

    run = RunState(tmp_path, KEY)
    write = run._write

    def slow(*offered) -> None:
        saves.append(now[0])
        now[0] += 0.5  # a save takes half a second
        write(*offered)

    monkeypatch.setattr(run, "_write", slow)
    run.begin()
    for step in range(60):
        now[0] += 4
        run.offer("denoising", step, 60, lambda: {"x": torch.zeros(1)})
    assert saves[0] == 32
    assert all(b - a >= 50 for a, b in itertools.pairwise(saves))
    assert 4 <= len(saves) <= 5


def test_a_large_state_waits_for_a_long_run(tmp_path, monkeypatch):
    """A step cache of a large model: its first save, too, takes under 1% of the run so far."""
    now, saves = [0.0], []
    monkeypatch.setattr("ea_runtime.generation.run_state.time.monotonic", lambda: now[0])
    state = {
        "x": torch.zeros(1 << 20),
        "caches": [[0, 2, {"_residual": torch.zeros(1 << 20)}]],
    }  # 8.4 MB: 0.84 s
    run = RunState(tmp_path, KEY)
    monkeypatch.setattr(run, "save", lambda: saves.append(now[0]))
    monkeypatch.setattr("ea_runtime.generation.run_state.RATE", 10e6)
    run.begin()
    for step in range(60):
        now[0] += 4
        run.offer("denoising", step, 60, lambda: state)
    assert saves[0] == 84


def test_saving_when_asked(tmp_path):
    """A worker that must end saves its place from `on_step`, however short the run was."""
    whole = make_pipe()("x", **SMALL)
    run = RunState(tmp_path, KEY)

    def on_step(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("denoising", 3):
            run.save()
            raise Stopped

    run.begin()
    with pytest.raises(Stopped):
        make_pipe()("x", run=run, on_step=on_step, **SMALL)
    result, passes = resumed(tmp_path, "x", **SMALL)
    assert passes[0] == 3
    assert same(result, whole)


def test_a_state_of_another_run_is_not_resumed(tmp_path, caplog):
    ended_at(3, tmp_path, "x", **SMALL)
    other = {**KEY, "settings": {"seed": 4}}
    with caplog.at_level(logging.WARNING, "ea"):
        assert make_run(tmp_path, other).begin() is None
    assert "is another one: settings.seed 3 -> 4; this one starts over" in caplog.text
    with pytest.raises(
        UserError, match=r"settings\.seed 3 -> 4; give its settings again, or start over"
    ) as error:
        make_run(tmp_path, other, must_match=True).begin()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "harm", ["tensors", "cut", "gone", "json", "no json", "changed", "other version", "huge"]
)
def test_damage_is_noticed_and_the_run_starts_over(tmp_path, harm):
    whole = make_pipe()("x", **SMALL)
    ended_at(3, tmp_path, "x", **SMALL)
    (tensors,) = tmp_path.glob("*.safetensors")
    state = tmp_path / "state.json"
    body = json.loads(state.read_text())
    if harm == "tensors":
        data = bytearray(tensors.read_bytes())
        data[-5] ^= 1
        tensors.write_bytes(data)
    elif harm == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif harm == "gone":
        tensors.unlink()
    elif harm == "json":
        state.write_bytes(state.read_bytes()[:-10])
    elif harm == "no json":
        state.write_text("[1, 2]")
    elif harm == "changed":
        state.write_text(json.dumps({**body, "done": 5}))
    elif harm == "other version":
        state.write_text(json.dumps({**body, "ea_run": 2}))
    else:
        state.write_bytes(b" " * (17 << 20))
    lines: list[str] = []
    run = make_run(tmp_path, note=lines.append)
    assert run.begin() is None
    assert len(lines) == 1
    assert lines[0].startswith("the saved run in ")
    assert lines[0].endswith("; the run starts over")
    assert same(make_pipe()("x", run=run, **SMALL), whole)
    run.remove()
    assert not tmp_path.exists()


def test_what_cannot_be_packed_is_said_once_and_the_run_goes_on(tmp_path, monkeypatch):
    real = packing.attributes
    monkeypatch.setattr(place, "attributes", lambda thing: {**real(thing), "hook": print})
    lines: list[str] = []
    run = make_run(tmp_path / "run", note=lines.append)
    run.begin()
    assert same(make_pipe()("x", run=run, **SMALL), make_pipe()("x", **SMALL))
    assert lines == [
        "this run cannot be saved and resumed: state.scheduler.hook is a builtin_function_or_method"
    ]
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "run").write_text("a file")
    lines: list[str] = []
    run = make_run(tmp_path / "run", note=lines.append)
    run.begin()
    assert same(make_pipe()("x", run=run, **SMALL), make_pipe()("x", **SMALL))
    assert len(lines) == 1
    assert "the run's place cannot be saved in" in lines[0]


def test_a_run_needs_a_key_at_its_beginning(tmp_path):
    with pytest.raises(ValueError, match="`key` of a RunState is needed"):
        RunState(tmp_path).begin()


def test_no_pickle_is_read(tmp_path):
    ended_at(3, tmp_path, "x", **SMALL)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    found = read_state(tmp_path)
    with pytest.raises(ValueError, match="is no kind of packed value"):
        packing.unpack({"eval": "print()"}, {}, torch.device("cpu"))
    assert found.tree["dict"]["passes"] == 3
