from __future__ import annotations

import math

import pytest
import torch

from ea_dit import add_noise, training_loss
from ea_dit.training.loss import NUM_TIMESTEPS, min_snr_weights, schedule


def make(batch: int = 4, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    x_start = torch.randn(batch, 2, 2, 2, 2, dtype=dtype).clamp(-1.2, 1.2)
    noise = torch.randn_like(x_start)
    output = torch.randn(batch, 4, 2, 2, 2, dtype=dtype) * 0.5
    return output, x_start, noise


def test_a_perfect_prediction_with_the_lower_variance_costs_nothing() -> None:
    _, x_start, noise = make()
    timesteps = torch.tensor([1, 100, 500, 999])
    losses = training_loss(torch.cat([noise, -torch.ones_like(noise)], dim=1), x_start, noise, timesteps)
    for value in losses.values():
        torch.testing.assert_close(value, torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_bound_equals_the_textbook_one() -> None:
    # Written out: means and variances of both Gaussians, from x_t and the prediction of x_0.
    output, x_start, noise = make()
    timesteps = torch.tensor([1, 57, 400, 999])
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    cumulative = (1 - betas).cumprod(0)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), cumulative[:-1]])
    posterior = betas * (1 - previous) / (1 - cumulative)

    def at(table: torch.Tensor) -> torch.Tensor:
        return table[timesteps][:, None, None, None, None]

    noisy = add_noise(x_start, noise, timesteps)
    predicted, fraction = output[:, :2], (output[:, 2:] + 1) / 2
    start = (noisy - (1 - at(cumulative)).sqrt() * predicted) / at(cumulative).sqrt()

    def mean(x_0: torch.Tensor) -> torch.Tensor:
        return (
            at(betas) * at(previous).sqrt() * x_0 + (1 - at(previous)) * (1 - at(betas)).sqrt() * noisy
        ) / (1 - at(cumulative))

    p = torch.distributions.Normal(
        mean(start), (fraction * at(betas).log() + (1 - fraction) * at(posterior).log()).div(2).exp()
    )
    q = torch.distributions.Normal(mean(x_start), at(posterior).sqrt())
    expected = torch.distributions.kl_divergence(q, p).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(
        training_loss(output, x_start, noise, timesteps)["vb"], expected, rtol=1e-9, atol=1e-12
    )


def test_the_last_step_is_the_likelihood_of_grey_levels() -> None:
    """At t = 0 in float64: the probability of x_0's bin, 2/255 wide; the outermost bins have no end."""
    beta = 1e-4
    next_beta = 1e-4 + (0.02 - 1e-4) / 999
    posterior = next_beta * beta / (1 - (1 - beta) * (1 - next_beta))  # of t = 1, as that of t = 0 is 0

    def cdf(x: float) -> float:  # as published, within 3e-4 of the normal one
        return 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    for x in (-3.0, -0.7, 0.2, 1.1):
        assert cdf(x) == pytest.approx(0.5 * (1 + math.erf(x / math.sqrt(2))), abs=3e-4)
    x_start = torch.tensor([-1.0, -0.9991, -0.999, 0.0, 0.999, 0.9991, 1.0, 0.5], dtype=torch.float64)
    errors = torch.tensor([0.3, -0.4, 0.5, -0.6, 0.7, -0.2, 0.1, 900.0], dtype=torch.float64)
    variances = torch.tensor([-1.0, -0.5, 0.0, 0.4, 0.8, 1.0, 1.1, 0.0], dtype=torch.float64)
    wanted = []
    for x, error, v in zip(x_start.tolist(), errors.tolist(), variances.tolist(), strict=True):
        fraction = (v + 1) / 2
        sigma = math.sqrt(beta**fraction * posterior ** (1 - fraction))
        off = error * math.sqrt(1 / (1 - beta) - 1)  # how far p's mean is below x_0
        above, below = cdf((off + 1 / 255) / sigma), cdf((off - 1 / 255) / sigma)
        probability = above if x < -0.999 else 1 - below if x > 0.999 else above - below
        wanted.append(-math.log2(max(probability, 1e-12)))
    shape = (1, 1, 1, 2, 4)
    noise = torch.randn(shape, dtype=torch.float64)
    output = torch.cat([noise + errors.reshape(shape), variances.reshape(shape)], dim=1)
    found = training_loss(output, x_start.reshape(shape), noise, torch.zeros(1, dtype=torch.long))
    assert found["vb"].item() == pytest.approx(sum(wanted) / 8, rel=1e-9)
    assert found["mse"].item() == pytest.approx(errors.square().mean().item())
    assert found["loss"].item() == pytest.approx(found["mse"].item() + found["vb"].item())
    assert wanted[-1] == pytest.approx(12 * math.log2(10))  # no probability is less than 1e-12


@pytest.mark.parametrize("snr", [False, True])
def test_gradients_equal_finite_differences(snr: bool) -> None:
    output, x_start, noise = make()
    timesteps = torch.tensor([0, 249, 250, 999])
    x_start[0, 0, 0, 0] = torch.tensor([-1.0, 1.0])  # the open-ended bins
    # Near the target: far from it, at t = 0, a bin's probability is at its floor and the gradient zero.
    output[:, :2] = noise + 0.01 * output[:, :2]
    output.requires_grad_()
    losses = training_loss(output, x_start, noise, timesteps, snr=snr)
    (ours,) = torch.autograd.grad(losses["loss"].sum(), output)

    # By construction the bound does not train the noise half: take differences of each term over its own half.
    step = 1e-6
    estimate = torch.zeros_like(output)
    flat, base = estimate.view(-1), output.detach()
    for index in range(base.numel()):
        part = (
            "mse" if (index // 8) % 4 < 2 else "vb"
        )  # 4 channels of 8 elements: noise, noise, variance, variance
        values = []
        for sign in (1, -1):
            moved = base.clone()
            moved.view(-1)[index] += sign * step
            values.append(training_loss(moved, x_start, noise, timesteps, snr=snr)[part].sum())
        flat[index] = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(ours, estimate, rtol=1e-5, atol=1e-8)
    assert ours[:, 2:].abs().sum(dim=(1, 2, 3, 4)).gt(0).all()


def test_the_bound_gives_the_noise_no_gradient() -> None:
    output, x_start, noise = make()
    output.requires_grad_()
    vb = training_loss(output, x_start, noise, torch.tensor([0, 3, 411, 999]))["vb"]
    (gradient,) = torch.autograd.grad(vb.sum(), output)
    assert not gradient[:, :2].any()
    assert gradient[:, 2:].any()


def test_finite_everywhere_in_float32() -> None:
    timesteps = torch.arange(NUM_TIMESTEPS)
    x_start = torch.randn(NUM_TIMESTEPS, 2, 1, 2, 2) * 3
    output = (torch.randn(NUM_TIMESTEPS, 4, 1, 2, 2) * 10).requires_grad_()
    losses = training_loss(output, x_start, torch.randn_like(x_start), timesteps)
    losses["loss"].sum().backward()
    assert losses["loss"].isfinite().all()
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_snr_weights_early_steps() -> None:
    output, x_start, noise = make(batch=2)
    timesteps = torch.tensor([249, 250])
    plain = training_loss(output, x_start, noise, timesteps)["mse"]
    snr = training_loss(output, x_start, noise, timesteps, snr=True)["mse"]
    table = schedule(dtype=torch.float64)
    torch.testing.assert_close(snr[0], plain[0] * (table.sigma[249] / table.signal[249]) ** 2)
    torch.testing.assert_close(snr[1], plain[1])


def test_min_snr_weights() -> None:
    """min(SNR, gamma) / SNR: 1 while SNR <= gamma, gamma / SNR above it."""
    timesteps = torch.tensor([0, 50, 200, 500, 999])
    tables = schedule()
    snr = (tables.signal[timesteps] / tables.sigma[timesteps]).double() ** 2
    weights = min_snr_weights(timesteps, 5.0)
    assert torch.allclose(weights.double(), torch.minimum(snr, torch.tensor(5.0)) / snr, rtol=1e-5)
    assert weights[0] < 1e-3
    assert (weights[snr < 5] == 1).all()
    assert (weights.diff() >= 0).all()
    assert torch.equal(min_snr_weights(timesteps, 0.0), torch.ones(5))


def test_half_precision_is_computed_in_float32() -> None:
    output, x_start, noise = (value.bfloat16() for value in make())
    timesteps = torch.tensor([0, 3, 411, 999])
    losses = training_loss(output, x_start, noise, timesteps)
    expected = training_loss(output.float(), x_start.float(), noise.float(), timesteps)
    assert losses["loss"].dtype == torch.float32
    torch.testing.assert_close(losses["loss"], expected["loss"])
    assert add_noise(x_start, noise, timesteps).dtype == torch.bfloat16


def test_the_format_of_the_noise_changes_nothing() -> None:
    """Latents of four channels and float32, with noise in float64."""
    generator = torch.Generator().manual_seed(1)
    x_start, noise = torch.randn(2, 2, 4, 1, 2, 2, generator=generator)
    timesteps = torch.tensor([0, 411])
    output = torch.cat([noise * 1.1, x_start], dim=1)
    found = training_loss(output, x_start, noise.double(), timesteps)
    for name, wanted in training_loss(output, x_start, noise, timesteps).items():
        assert (found[name].dtype, torch.equal(found[name], wanted)) == (torch.float32, True)


def test_tables_are_computed_once() -> None:
    assert schedule("cpu").signal is schedule(torch.device("cpu")).signal
    assert schedule("cpu").signal.dtype == torch.float32


def test_noise_ends_near_unit_variance() -> None:
    x_start = torch.randn(2, 4, 1, 8, 8)
    noise = torch.randn_like(x_start)
    noisy = add_noise(x_start, noise, torch.tensor([0, 999]))
    assert (noisy[0] - x_start[0]).abs().max() < 0.06
    assert (noisy[1] - noise[1]).abs().max() < 0.06


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_output": torch.zeros(2, 2, 1, 2, 2)}, r"`model_output` must have shape \(2, 4, 1, 2, 2\)"),
        ({"noise": torch.zeros(2, 2, 1, 2, 4)}, "`noise` must have the shape of `x_start`"),
        ({"timesteps": torch.zeros(3, dtype=torch.long)}, r"`timesteps` must be integers of shape \(2,\)"),
        ({"timesteps": torch.zeros(2)}, "`timesteps` must be integers"),
    ],
)
def test_errors(changes: dict[str, torch.Tensor], words: str) -> None:
    arguments = {
        "model_output": torch.zeros(2, 4, 1, 2, 2),
        "x_start": torch.zeros(2, 2, 1, 2, 2),
        "noise": torch.zeros(2, 2, 1, 2, 2),
        "timesteps": torch.zeros(2, dtype=torch.long),
    }
    with pytest.raises(ValueError, match=words):
        training_loss(**{**arguments, **changes})
    if "model_output" not in changes:
        del arguments["model_output"]
        with pytest.raises(ValueError, match=words):
            add_noise(**{**arguments, **changes})
