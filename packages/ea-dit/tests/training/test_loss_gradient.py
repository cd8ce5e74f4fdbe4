"""Gradients of the training loss against central differences in float64, for the output and for a network's weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ea_dit import Transformer3DModel, add_noise, training_loss

STEP = 1e-6
Function = Callable[[Tensor], Tensor]


def numeric(function: Function, point: Tensor, places: list[int]) -> Tensor:
    """The derivative of a scalar function with respect to the given elements of `point`, by central differences."""
    slopes = []
    for place in places:
        values = []
        for sign in (1, -1):
            moved = point.detach().clone()
            moved.view(-1)[place] += sign * STEP
            values.append(function(moved))
        slopes.append((values[0] - values[1]) / (2 * STEP))
    return torch.stack(slopes).detach()


def case(channels: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """x_0, noise, and timesteps that reach both ends of the schedule and both sides of `snr`'s switch."""
    generator = torch.Generator().manual_seed(3)
    x_start = torch.randn(4, channels, 3, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(x_start.shape, generator=generator, dtype=torch.float64)
    return x_start.clamp(-1.2, 1.2), noise, torch.tensor([0, 17, 249, 999])


def parts_of(output: Tensor, fixed: Tensor) -> Tensor:
    """The output as the loss's two terms see it: the noise half is a constant (`fixed`) for the bound."""
    channels = output.shape[1] // 2
    return torch.cat([fixed[:, :channels], output[:, channels:]], dim=1)


def loss_of(x_start: Tensor, noise: Tensor, timesteps: Tensor, snr: bool, fixed: Tensor) -> Function:
    """The sum that autograd differentiates, as a function of the output without detached parts."""

    def function(output: Tensor) -> Tensor:
        mse = training_loss(output, x_start, noise, timesteps, snr=snr)["mse"]
        bound = training_loss(parts_of(output, fixed), x_start, noise, timesteps, snr=snr)["vb"]
        return (mse + bound).mean()

    return function


@pytest.mark.parametrize("snr", [False, True])
def test_by_the_output(snr: bool) -> None:
    x_start, noise, timesteps = case()
    output = torch.cat([noise, torch.zeros_like(noise)], dim=1)
    output += 0.05 * torch.randn(
        output.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    output.requires_grad_()
    loss = training_loss(output, x_start, noise, timesteps, snr=snr)["loss"].mean()
    (ours,) = torch.autograd.grad(loss, output)
    places = list(range(0, output.numel(), 7))
    expected = numeric(loss_of(x_start, noise, timesteps, snr, output.detach()), output, places)
    torch.testing.assert_close(ours.flatten()[places], expected, rtol=1e-5, atol=1e-9)
    assert expected.abs().gt(1e-7).float().mean() > 0.5  # the gradients are not all zero


def test_through_a_network(make_model: Callable[..., Transformer3DModel]) -> None:
    """A tiny Transformer3DModel with motion modules and a skip, along random directions of each part's parameters."""
    model = make_model(caption_channels=6).double()
    x_start, noise, timesteps = case(channels=4)
    generator = torch.Generator().manual_seed(5)
    text = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] + [0] * 4, [1] * 5])
    noisy = add_noise(x_start, noise, timesteps)

    def run() -> Tensor:
        return model(
            noisy, timestep=timesteps, encoder_hidden_states=text, encoder_attention_mask=mask
        ).sample

    output = run()
    training_loss(output, x_start, noise, timesteps, snr=True)["loss"].mean().backward()
    function = loss_of(x_start, noise, timesteps, True, output.detach())
    parts: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        words = name.split(".")
        parts.setdefault(words[2] if words[0] == "transformer_blocks" else words[0], []).append(parameter)
    assert {
        "attn1",
        "attn2",
        "attn_temporal",
        "ff",
        "long_connect_fc",
        "pos_embed",
        "proj_out",
    } <= parts.keys()
    for name, parameters in parts.items():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert len(gradients) == len(parameters), name
        directions = [
            torch.randn(g.shape, generator=generator, dtype=g.dtype) * g.abs().max().clamp(min=1e-6)
            for g in gradients
        ]
        length = torch.stack([direction.norm() for direction in directions]).norm()
        along = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True)) / float(length)
        values = []
        with torch.no_grad():
            for factor in (STEP, -2 * STEP, STEP):  # forwards, to the other side, and back
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.add_(direction, alpha=factor / float(length))
                values.append(float(function(run())))
        slope = (values[0] - values[1]) / (2 * STEP)
        assert abs(along) > 1e-6, name
        assert slope == pytest.approx(along, rel=1e-4, abs=1e-8), name


def test_a_loss_that_forgets_to_detach_is_noticed() -> None:
    """The twin, whose bound has a gradient in the noise half: the comparison above catches it."""
    x_start, noise, timesteps = case()
    output = torch.cat([noise + 0.3, torch.zeros_like(noise)], dim=1).requires_grad_()
    fixed = output.detach().clone()
    ours = numeric(loss_of(x_start, noise, timesteps, False, fixed), output, [0, 50, 100])
    leaking = numeric(
        lambda o: training_loss(o, x_start, noise, timesteps)["loss"].mean(), output, [0, 50, 100]
    )
    assert not torch.allclose(ours, leaking, rtol=1e-4, atol=1e-9)
