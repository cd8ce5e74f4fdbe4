"""The sampling loop, step by step, with a stand-in for a sampler; float32 on the CPU."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ea_runtime.errors import NotFiniteError
from ea_runtime.generation.denoise import denoise

NOISE = torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(0))


class Scheduler:
    """x -> x - (place + 1) x noise at the place-th of four timesteps."""

    init_noise_sigma = 4.0

    def __init__(self) -> None:
        self.timesteps = torch.tensor([40, 30, 20, 10])
        self.alphas_cumprod = torch.linspace(0.99, 0.1, 41)
        self.config = SimpleNamespace(prediction_type="sample")

    def scale_model_input(self, x: Tensor, timestep: Tensor) -> Tensor:
        return x / float(timestep)

    def step(self, noise: Tensor, timestep: Tensor, x: Tensor, return_dict: bool = True) -> Any:
        assert not return_dict
        return (x - (4 - int(timestep) // 10 + 1) * noise, "more")


def predicted(place: int) -> Tensor:
    return torch.full_like(NOISE, 0.5 ** (place + 1))


class Predictor:
    dtype = torch.bfloat16

    def __init__(self, fail_at: int = 99, known: Any = None) -> None:
        self.calls: list[tuple[Tensor, int, int]] = []
        self.fail_at, self.known = fail_at, known

    def __call__(self, x: Tensor, timestep: Tensor, step: int) -> Tensor:
        self.calls.append((x, int(timestep), step))
        return predicted(step) * (math.nan if step == self.fail_at else 1)


def run(predict: Any, scheduler: Any = None, **options: Any) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    steps: list[tuple[int, Tensor]] = []
    generators = options.pop("generators", [torch.Generator()])
    found = denoise(
        predict, scheduler or Scheduler(), NOISE, generators, lambda *step: steps.append(step), **options
    )
    return found, steps


def after(x: Tensor, places: range) -> Tensor:
    for place in places:
        x = x - (place + 1) * predicted(place)
    return x


def test_each_step_is_predicted_from_scaled_latents() -> None:
    predict = Predictor()
    found, steps = run(predict)
    torch.testing.assert_close(found, after(NOISE * 4, range(4)))
    assert [done for done, _ in steps] == [1, 2, 3, 4]
    for (done, x), (seen, timestep, step) in zip(steps, predict.calls, strict=True):
        torch.testing.assert_close(x, after(NOISE * 4, range(done)))
        torch.testing.assert_close(seen, after(NOISE * 4, range(done - 1)) / timestep)
        assert (timestep, step) == (50 - 10 * done, done - 1)


def test_a_run_resumes_after_the_passes_that_are_done() -> None:
    predict = Predictor()
    half = after(NOISE * 4, range(2))
    found, steps = run(predict, resumed=(2, half))
    torch.testing.assert_close(found, after(NOISE * 4, range(4)))
    assert [done for done, _ in steps] == [3, 4]
    assert [call[1:] for call in predict.calls] == [(20, 2), (10, 3)]


def test_a_run_starts_from_noised_latents_at_its_first_step() -> None:
    predict, start = Predictor(), NOISE + 1
    found, steps = run(predict, start=start, first=1)
    torch.testing.assert_close(found, after(start, range(1, 4)))
    assert [done for done, _ in steps] == [1, 2, 3]
    assert [call[1:] for call in predict.calls] == [(30, 1), (20, 2), (10, 3)]
    again, steps = run(Predictor(), start=start, first=1, resumed=(1, after(start, range(1, 2))))
    torch.testing.assert_close(again, found)
    assert [done for done, _ in steps] == [2, 3]


def test_clean_latents_come_before_each_step() -> None:
    seen: list[Any] = []
    denoise(
        Predictor(),  # type: ignore[arg-type]
        Scheduler(),
        NOISE,
        [torch.Generator()],
        lambda done, _: seen.append(done),
        on_clean=lambda done, clean: seen.append((done, clean)),
    )
    assert [one for one in seen if isinstance(one, int)] == seen[1::2] == [1, 2, 3, 4]
    for place, (done, clean) in enumerate(seen[::2]):
        assert done == place + 1
        torch.testing.assert_close(clean, predicted(place))


def test_known_frames_are_put_back_after_each_step() -> None:
    steps: list[int] = []

    def put_back(x: Tensor, noise: Tensor, scheduler: Any, step: int) -> Tensor:
        assert noise is NOISE
        assert isinstance(scheduler, Scheduler)
        steps.append(step)
        return x + 1

    found, _ = run(Predictor(known=SimpleNamespace(put_back=put_back)), first=1, start=NOISE)
    torch.testing.assert_close(found, after(NOISE, range(1, 4)) + 3)
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("count", [1, 2])
def test_each_video_draws_from_its_generator(count: int) -> None:
    given: list[Any] = []

    class Drawing(Scheduler):
        def step(self, *values: Any, generator: Any, **options: Any) -> Any:  # type: ignore[override]
            given.append(generator)
            return super().step(*values, **options)

    generators = [torch.Generator() for _ in range(count)]
    run(Predictor(), Drawing(), generators=generators)
    assert given == [generators[0] if count == 1 else generators] * 4


@pytest.mark.parametrize(
    ("dtype", "hint"), [(torch.float32, "a lower guidance_scale"), (torch.bfloat16, "dtype float32")]
)
def test_latents_that_are_no_numbers_end_a_run(dtype: torch.dtype, hint: str) -> None:
    predict = Predictor(fail_at=2)
    predict.dtype = dtype
    text = f"the latents became NaN or infinite at pass 2 of 3 in {str(dtype)[6:]}; try {hint}"
    with pytest.raises(NotFiniteError, match=text):
        run(predict, start=NOISE, first=1)
    assert len(predict.calls) == 2
