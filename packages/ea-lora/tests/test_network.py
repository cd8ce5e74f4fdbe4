from __future__ import annotations

import contextlib
import copy
import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ea_lora import load_lora, loaded_loras, read_lora, unload_lora
from ea_lora.matching import match_lora, networks_of
from ea_lora.merge import merge_weight
from ea_runtime.errors import UserError
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae

Write = Callable[..., Path]


def merged(small: Any, *loras: tuple[Path, float], dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """A small pipeline with LoRAs written into its weights."""
    pipe = small.make_pipe(dtype)
    for path, strength in loras:
        for match in match_lora(read_lora(path), networks_of(pipe)).matches:
            match.weight.data = merge_weight(match.weight.data, [(match.layer, strength)])
    return pipe


def equal(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def assert_close(small: Any, ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    for one, other in zip(small.run(ours), small.run(theirs), strict=True):
        assert small.relative_error(one, other) < tolerance


def test_loading_equals_merging_and_changes_the_output(write_lora_file: Write, small: Any) -> None:
    path, pipe = write_lora_file(), small.make_pipe()
    before = small.run(pipe)
    load_lora(pipe, path, 0.8)
    assert_close(small, pipe, merged(small, (path, 0.8)))
    for old, new in zip(before, small.run(pipe), strict=True):
        assert small.relative_error(new, old) > 0.01


def test_two_loras_add_up(write_lora_file: Write, small: Any) -> None:
    first, second = (
        write_lora_file(seed=1),
        write_lora_file(seed=2, name="other.safetensors", rank=6, alpha=3.0),
    )
    pipe = small.make_pipe()
    load_lora(pipe, first, 0.8)
    other = load_lora(pipe, second, -0.3)
    assert_close(small, pipe, merged(small, (first, 0.8), (second, -0.3)))
    other.weight = 0.6
    assert_close(small, pipe, merged(small, (first, 0.8), (second, 0.6)))
    assert [lora.path for lora in loaded_loras(pipe)] == [str(first), str(second)]


def test_the_same_file_twice_counts_twice(write_lora_file: Write, small: Any) -> None:
    path, pipe = write_lora_file(), small.make_pipe()
    load_lora(pipe, path, 0.2)
    load_lora(pipe, path, 0.3)
    assert_close(small, pipe, merged(small, (path, 0.5)))


def test_taking_one_off_leaves_the_other_to_the_bit(write_lora_file: Write, small: Any) -> None:
    first, second = write_lora_file(seed=1), write_lora_file(seed=2, name="other.safetensors")
    alone, both = small.make_pipe(), small.make_pipe()
    load_lora(alone, second, 0.7)
    kept = load_lora(both, first, 0.4)
    load_lora(both, second, 0.7)
    unload_lora(both, kept)
    assert equal(small.run(both), small.run(alone))
    assert not kept.is_loaded
    kept.unload()  # again: nothing happens
    assert len(loaded_loras(both)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unloading_restores_every_bit(write_lora_file: Write, small: Any, dtype: torch.dtype) -> None:
    pipe = small.make_pipe(dtype)
    before, hashed = small.run(pipe), small.pipe_hash(pipe)
    for cycle in range(100):
        load_lora(pipe, write_lora_file(seed=cycle % 3), 1.0)
        if cycle == 0:
            assert not equal(small.run(pipe), before)
        unload_lora(pipe)
    assert small.pipe_hash(pipe) == hashed
    assert equal(small.run(pipe), before)


def test_weights_and_state_dict_stay_while_it_is_on(write_lora_file: Write, small: Any) -> None:
    pipe = small.make_pipe()
    before = {name: tensor.clone() for name, tensor in pipe.denoiser.state_dict().items()}
    load_lora(pipe, write_lora_file())
    after = pipe.denoiser.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert type(pipe.denoiser.proj_out) is nn.Linear


def test_weight_zero_is_off_to_the_bit(write_lora_file: Write, small: Any) -> None:
    pipe = small.make_pipe()
    before = small.run(pipe)
    lora = load_lora(pipe, write_lora_file(), 0)
    assert equal(small.run(pipe), before)
    lora.weight = 1.0
    assert not equal(small.run(pipe), before)


def test_it_follows_the_model_to_another_dtype(write_lora_file: Write, small: Any) -> None:
    path, pipe = write_lora_file(), small.make_pipe()
    load_lora(pipe, path, 0.5)
    pipe.denoiser.bfloat16()
    pipe.text.model.bfloat16()
    assert_close(small, pipe, merged(small, (path, 0.5)), tolerance=0.03)


def test_a_copy_of_a_model_carries_its_own(write_lora_file: Write, small: Any) -> None:
    pipe, base = small.make_pipe(), small.make_pipe()
    load_lora(pipe, write_lora_file(), 0.5)
    twin = copy.deepcopy(pipe)
    loaded = small.run(pipe)
    assert equal(small.run(twin), loaded)
    unload_lora(twin)
    assert small.pipe_hash(twin) == small.pipe_hash(base)
    assert equal(small.run(pipe), loaded)


def test_pipelines_that_share_a_denoiser_share_its_lora(write_lora_file: Write, small: Any) -> None:
    one = small.make_pipe()
    other = SimpleNamespace(denoiser=one.denoiser, text=small.make_pipe().text)
    base, hashed = small.run(other), small.pipe_hash(one)
    lora = load_lora(one, write_lora_file(), 0.5)
    assert torch.equal(small.run(other)[0], small.run(one)[0])
    assert torch.equal(small.run(other)[1], base[1])  # its text encoder is its own
    assert [found.path for found in loaded_loras(other)] == [lora.path]
    unload_lora(other)  # the part of it that is here
    assert torch.equal(small.run(one)[0], base[0])
    assert not torch.equal(small.run(one)[1], base[1])
    lora.weight = 1.0  # what is left still follows its handle
    assert len(loaded_loras(one)) == 1
    lora.unload()
    assert small.pipe_hash(one) == hashed
    assert loaded_loras(one) == []


def test_as_a_context(write_lora_file: Write, small: Any) -> None:
    pipe = small.make_pipe()
    hashed = small.pipe_hash(pipe)
    with contextlib.suppress(KeyError), load_lora(pipe, write_lora_file()) as lora:
        assert lora.is_loaded
        raise KeyError
    assert not lora.is_loaded
    assert small.pipe_hash(pipe) == hashed


def test_a_dropped_model_is_freed_at_once(write_lora_file: Write, small: Any) -> None:
    pipe = small.make_pipe()
    load_lora(pipe, write_lora_file())
    watch = weakref.ref(pipe.denoiser)
    gc.disable()
    try:
        del pipe
        assert watch() is None
    finally:
        gc.enable()


def test_an_interrupt_leaves_nothing_behind(
    write_lora_file: Write, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = small.make_pipe()
    hashed = small.pipe_hash(pipe)
    register, calls = nn.Module.register_forward_hook, []

    def interrupted(*args: Any, **how: Any) -> Any:
        calls.append(args)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return register(*args, **how)

    monkeypatch.setattr(nn.Module, "register_forward_hook", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_lora(pipe, write_lora_file())
    assert small.pipe_hash(pipe) == hashed


def test_loaded_in_inference_mode_it_still_trains_around(write_lora_file: Write, small: Any) -> None:
    pipe = small.make_pipe()
    with torch.inference_mode():
        load_lora(pipe, write_lora_file())
    pipe.denoiser(torch.randn(1, 4, 5, 6)).sum().backward()
    assert pipe.denoiser.conv_in.weight.grad is not None


def test_a_bare_module_counts_as_a_denoiser(write_lora_file: Write, small: Any) -> None:
    module = small.make_pipe().denoiser
    lora = load_lora(module, write_lora_file(), parts=("denoiser",))
    assert (len(lora.matched), len(lora.left_out)) == (9, 2)


def test_one_pattern_or_part_may_be_text(write_lora_file: Write, small: Any) -> None:
    path = write_lora_file()
    several = load_lora(small.make_pipe(), path, np.float32(0.5), parts=["denoiser"], exclude=["blocks.1.*"])
    one = load_lora(small.make_pipe(), path, 0.5, parts="denoiser", exclude="blocks.1.*")
    assert one.left_out == several.left_out
    assert one.matched == several.matched
    assert several.weight == 0.5


def test_patterns_leave_layers_out(write_lora_file: Write, small: Any) -> None:
    lora = load_lora(small.make_pipe(), write_lora_file(), exclude=["blocks.1.*", "mix"])
    assert "lora_unet__blocks_1_to_q" in lora.left_out
    assert (len(lora.matched), len(lora.left_out)) == (7, 4)


def test_ignored_layers_are_counted_and_named(
    write_lora_file: Write, small: Any, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {
        "lora_unet__gone.lora_down.weight": torch.ones(1, 8),
        "lora_unet__gone.lora_up.weight": torch.ones(8, 1),
    }
    lora = load_lora(small.make_pipe(), write_lora_file({**small.lora_tensors(), **extra}))
    assert (len(lora.matched), lora.ignored) == (11, ("lora_unet__gone",))
    assert "11 layers matched, 1 ignored (the model has no lora_unet__gone)" in caplog.text


def test_an_untrained_file_is_reported(
    write_lora_file: Write, small: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = {key: value * ("lora_up" not in key) for key, value in small.lora_tensors().items()}
    with caplog.at_level(logging.WARNING):
        load_lora(small.make_pipe(), write_lora_file(tensors))
    assert "changes nothing: every up matrix is 0" in caplog.text


def test_errors(write_lora_file: Write, small: Any) -> None:
    path = write_lora_file()
    pipe = small.make_pipe(text=False)
    hashed = small.pipe_hash(pipe)
    with pytest.raises(UserError, match=r"2 layers for a text encoder"):
        load_lora(pipe, path)
    with pytest.raises(
        UserError, match="`parts` may hold denoiser, text, got 'denoisr'; did you mean 'denoiser'"
    ):
        load_lora(pipe, path, parts=("denoisr",))
    for weight in (float("nan"), float("inf"), 101, "1", True, None):
        with pytest.raises(UserError, match="`weight` of a LoRA must be a number from -100 to 100"):
            load_lora(pipe, path, weight)
    with pytest.raises(UserError, match="`pipe` must be a VideoPipeline or a torch module, got 'str'"):
        load_lora("tiny", path)
    assert small.pipe_hash(pipe) == hashed


def test_a_file_of_another_model_names_counts(write_lora_file: Write, small: Any) -> None:
    tensors = {
        key.replace("unet__", f"unet_{'down' if 'net_0' in key else 'up'}_0_"): value
        for key, value in small.lora_tensors().items()
        if "te_" not in key
    }
    expected = (
        r"9 for the denoiser \(first 'lora_unet_down_0_blocks_0_net_0'\), 0 match the modules of this model "
    )
    hint = (
        r"\(9 in the denoiser and 3 in the text\); 7 would match without the prefix 'lora_unet_up_0_', which"
    )
    with pytest.raises(UserError, match=expected + hint):
        load_lora(small.make_pipe(), write_lora_file(tensors))
    wide = write_lora_file(
        {**small.lora_tensors(), "lora_unet__blocks_0_to_q.lora_down.weight": torch.ones(4, 12)}
    )
    with pytest.raises(UserError, match=r"is for 12 -> 8 channels, blocks\.0\.to_q has 8 -> 8"):
        load_lora(small.make_pipe(), wide)


def test_what_float16_cannot_hold_is_refused(write_lora_file: Write, small: Any) -> None:
    tensors = small.lora_tensors()
    tensors["lora_unet__proj_out.lora_down.weight"] *= 1e6
    tensors["lora_unet__proj_out.lora_up.weight"] *= 1e-6
    pipe = small.make_pipe(torch.float16)
    hashed = small.pipe_hash(pipe)
    with pytest.raises(UserError, match="'lora_unet__proj_out': down overflows float16; load the model in"):
        load_lora(pipe, write_lora_file(tensors))
    assert small.pipe_hash(pipe) == hashed
    load_lora(small.make_pipe(torch.bfloat16), write_lora_file(tensors))


def test_models_on_which_it_would_do_nothing_are_refused(write_lora_file: Write, small: Any) -> None:
    pipe = small.make_pipe()
    pipe.denoiser.compile(backend="eager")
    with pytest.raises(UserError, match="the denoiser is compiled"):
        load_lora(pipe, write_lora_file())
    pipe = small.make_pipe()
    pipe.denoiser.to("meta")
    with pytest.raises(UserError, match="has no weights in memory"):
        load_lora(pipe, write_lora_file())


def test_a_lora_of_another_model_cannot_be_taken_off_here(write_lora_file: Write, small: Any) -> None:
    here, there = small.make_pipe(), small.make_pipe()
    lora = load_lora(there, write_lora_file())
    with pytest.raises(UserError, match="is not on this model"):
        unload_lora(here, lora)
    assert lora.is_loaded


class AdaptableDenoiser(FakeDenoiser):
    """The host's stand-in with one Linear behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.proj_out = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor, *args: Any, **how: Any) -> SimpleNamespace:
        sample = super().forward(hidden_states, *args, **how).sample
        return SimpleNamespace(sample=sample + self.proj_out(sample.transpose(1, -1) * 1e-3).transpose(1, -1))


def test_through_the_pipeline(write_lora_file: Write) -> None:
    pipe = VideoPipeline(FakeVae(), AdaptableDenoiser(), FakeTextEncoder())
    tensors = {
        "lora_unet__proj_out.lora_down.weight": torch.ones(2, 8),
        "lora_unet__proj_out.lora_up.weight": torch.ones(8, 2),
    }

    def latents() -> Tensor:
        return pipe(
            "a", num_frames=1, height=16, width=16, num_inference_steps=2, seed=1, output="latents"
        ).latents

    before = latents()
    lora = load_lora(pipe, write_lora_file(tensors), 1.0)
    assert not torch.equal(latents(), before)
    lora.weight = 0
    assert torch.equal(latents(), before)
    lora.weight = 1
    unload_lora(pipe)
    assert torch.equal(latents(), before)
