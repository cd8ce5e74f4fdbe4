"""Step caches: which passes are skipped, and what the pipeline says of it."""

from __future__ import annotations

import pytest
import torch

from ea_runtime.errors import UserError
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.generation.step_cache import TeaCache, check_step_cache
from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae

SMALL = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 6, "guidance_scale": 4.0}


class CachingDenoiser(FakeDenoiser):
    """A fake whose prediction stands for the blocks' output."""

    calls = 0

    def forward(self, hidden_states, timestep, *args, step_cache=None, **kwargs):
        def blocks(x):
            self.calls += 1
            return super(CachingDenoiser, self).forward(x, timestep, *args, **kwargs).sample

        out = super().forward(hidden_states, timestep, *args, **kwargs)
        if step_cache is None:
            return out
        # tokens (B, L, D)
        tokens = lambda x: x.flatten(2).transpose(1, 2)  # noqa: E731
        both = torch.cat([hidden_states, hidden_states], dim=1)
        found = step_cache(tokens(hidden_states), tokens(both), lambda x: tokens(blocks(hidden_states)))
        out.sample = found.transpose(1, 2).reshape(both.shape)
        return out


@pytest.fixture
def pipe() -> VideoPipeline:
    return VideoPipeline(FakeVae(), CachingDenoiser(), FakeTextEncoder(num_tokens=40))


def run(cache: TeaCache, signals: list[float]) -> list[bool]:
    """Whether the blocks ran, for signals of these constant values."""
    ran = []
    for value in signals:
        before = cache.computed
        x = torch.full((1, 2, 3), value)
        out = cache(x, x, lambda x: torch.cat([x + 1, x + 2]))
        assert out.shape == (2, 2, 3)
        assert torch.allclose(out, torch.cat([x + 1, x + 2]))  # the residual is constant
        ran.append(cache.computed > before)
    return ran


def test_passes_are_skipped_until_the_change_adds_up():
    # changes: 10%, 10%, 10%, ... against a threshold of 0.25: two are skipped, the third runs
    signals = [1.1**i for i in range(8)]
    assert run(TeaCache(0.25, 9), signals) == [True, False, False, True, False, False, True, False]
    assert run(TeaCache(0.0, 9), signals) == [True] * 8


def test_the_first_and_the_last_pass_always_run():
    cache = TeaCache(100.0, 5)
    assert run(cache, [1.0] * 5) == [True, False, False, False, True]
    assert (cache.computed, cache.skipped) == (2, 3)


def test_the_pipeline_says_that_it_is_approximate(pipe):
    exact = pipe("a red circle", seed=1, **SMALL)
    cached = pipe("a red circle", seed=1, step_cache="teacache:0.3", **SMALL)
    assert "step_cache" not in exact.settings
    assert cached.settings["step_cache"] == "teacache:0.3"
    assert cached.notes[-1].startswith("approximate: step cache teacache:0.3 skipped ")
    assert 0 < pipe.denoiser.calls < 6
    assert not torch.equal(cached.latents, exact.latents)
    assert torch.equal(pipe(**cached.settings).latents, cached.latents)


def test_a_threshold_of_0_is_exact(pipe):
    exact = pipe("a red circle", seed=1, **SMALL)
    cached = pipe("a red circle", seed=1, step_cache="teacache:0", **SMALL)
    assert torch.equal(cached.latents, exact.latents)
    assert "skipped 0 of 6" in cached.notes[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tea", "no step cache is called 'tea'; there are: teacache"),
        ("teacache:x", "must be NAME:THRESHOLD with a number of 0 or more"),
        ("teacache:-1", "must be NAME:THRESHOLD with a number of 0 or more"),
        ("teacache:nan", "must be NAME:THRESHOLD with a number of 0 or more"),
        (0.1, "must be NAME:THRESHOLD such as"),
    ],
)
def test_other_words_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        check_step_cache(text)


def test_a_denoiser_without_support_is_refused():
    pipe = VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder())
    with pytest.raises(UserError, match="needs a denoiser that can use one, and FakeDenoiser cannot"):
        pipe("x", seed=1, step_cache="teacache:0.1", **SMALL)
