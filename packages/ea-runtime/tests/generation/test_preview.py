"""Previews of denoising: what each network pass leads to, for every sampler, without changing the run."""

from __future__ import annotations

import pytest
import torch

from ea_runtime.errors import UserError
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.generation.preview import predicted_clean
from ea_runtime.testing import FakeDenoiser, FakeTextEncoder, FakeVae

SMALL = {"num_frames": 9, "height": 32, "width": 48, "num_inference_steps": 12, "seed": 3}
SAMPLERS = ["euler", "euler-a", "dpm++", "pndm", "ddim", "unipc"]


class KnownDenoiser(FakeDenoiser):
    """The noise that is left if the clean latents are all `value`, whatever the timestep, as they are known."""

    value = 0.3

    def forward(self, hidden_states, timestep, *args, **kwargs):
        out = super().forward(hidden_states, timestep, *args, **kwargs)
        low = timestep.long()
        sigmas = ((1 - self.alphas) / self.alphas).sqrt().double()
        sigma = torch.lerp(sigmas[low], sigmas[(low + 1).clamp(max=999)], (timestep - low).double())
        a = (1 / (sigma**2 + 1)).float()[:, None, None, None, None]
        noise = (hidden_states - a.sqrt() * self.value) / (1 - a).sqrt()
        out.sample = torch.cat([noise, noise], dim=1)
        return out


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_shows_the_clean_latents(sampler, guidance):
    settings = {**SMALL, "sampler": sampler, "guidance_scale": guidance}
    pipe = VideoPipeline(FakeVae(), KnownDenoiser(), FakeTextEncoder())
    seen: list[tuple[int, torch.Tensor]] = []
    shown = pipe("x", on_preview=lambda step, x0: seen.append((step, x0)), **settings)
    assert [step for step, _ in seen] == list(range(1, (21 if sampler == "pndm" else 12) + 1))
    for _, clean in seen:
        assert clean.shape == (4, 3, 4, 6)
        assert clean.dtype == torch.float32
        assert torch.allclose(clean, torch.full_like(clean, 0.3), atol=5e-3)
    assert torch.equal(shown.latents, pipe("x", **settings).latents)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_last_preview_is_near_the_result(sampler):
    pipe = VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder())
    seen: list[torch.Tensor] = []
    result = pipe("x", sampler=sampler, on_preview=lambda _, x0: seen.append(x0), **SMALL)
    wanted = result.latents[0]
    assert (seen[-1] - wanted).abs().mean() < (seen[0] - wanted).abs().mean()
    assert torch.allclose(seen[-1], wanted, atol=0.15)


def test_changing_a_preview_does_not_change_the_run():
    pipe = VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    shown = pipe("x", sampler="euler-a", on_preview=lambda _, x0: x0.zero_(), **SMALL)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(shown.latents, pipe("x", sampler="euler-a", **SMALL).latents)


def test_of_several_videos_the_first_is_shown():
    pipe = VideoPipeline(FakeVae(), FakeDenoiser(), FakeTextEncoder())
    seen: list[tuple[int, torch.Tensor]] = []
    pipe(["x", "y", "z"], batch_size=2, on_preview=lambda *one: seen.append(one), **SMALL)
    assert [step for step, _ in seen] == list(range(1, 25))
    alone: list[torch.Tensor] = []
    pipe("z", on_preview=lambda _, x0: alone.append(x0), **{**SMALL, "seed": 5})
    assert torch.allclose(seen[-1][1], alone[-1], atol=1e-5)


class _Scheduler:
    def __init__(self, kind: str) -> None:
        self.alphas_cumprod = torch.tensor([0.9, 0.5, 0.2])
        self.config = type("Config", (), {"prediction_type": kind})


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_every_kind_of_prediction(kind):
    clean, noise = torch.randn(2, 1, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    a = torch.tensor(0.5)
    x = a.sqrt() * clean + (1 - a).sqrt() * noise
    predicted = {
        "epsilon": noise,
        "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * clean,
        "sample": clean,
    }[kind]
    assert torch.allclose(predicted_clean(_Scheduler(kind), x, torch.tensor(1), predicted), clean, atol=1e-6)


def test_a_sampler_that_hides_its_noise_is_refused():
    with pytest.raises(
        UserError, match="`on_preview` needs a sampler with alphas_cumprod, and object has none"
    ):
        predicted_clean(object(), torch.zeros(1), torch.tensor(1), torch.zeros(1))
