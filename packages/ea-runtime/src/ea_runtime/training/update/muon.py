"""Muon for matrices and convolution kernels, torch's AdamW for the rest, in one optimiser.

Muon (K. Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks"): the momentum of a
weight matrix is replaced by the nearest semi-orthogonal matrix, found by five Newton-Schulz iterations.
torch.optim.Muon takes 2-D parameters only; here a convolution kernel counts as the matrix (out, in * taps).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrix: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """(M, N) -> (M, N) of the same dtype, singular values pulled towards 1 (within about 0.7 to 1.2).

    dtype: of the products. Zeros stay zeros.
    """
    wide = matrix.size(0) <= matrix.size(1)
    x = (matrix if wide else matrix.T).to(dtype)
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x if wide else x.T).to(matrix.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Groups carry `kind`: "muon" (parameters of two or more dimensions), "adamw", or "adam".

    lr, weight_decay (decoupled; "adam" adds it to the gradient instead), betas and eps (Adam), momentum (Muon's,
    Nesterov), dtype (of its products). A Muon update is scaled by max(1, rows / columns) ** 0.5, so that rates carry
    over between shapes.
    Raises ValueError for another `kind`, and for a vector in a Muon group.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(groups, {**defaults, "momentum": momentum, "kind": "adamw"})
        self.dtype = dtype
        for group in self.param_groups:
            if group["kind"] not in ("adamw", "adam", "muon"):
                raise ValueError(
                    f"`kind` of a group must be 'adamw', 'adam' or 'muon', got {group['kind']!r}"
                )
            if group["kind"] == "muon" and any(p.ndim < 2 for p in group["params"]):
                raise ValueError("Muon takes parameters of two or more dimensions only")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        assert closure is None, "closures are not used by the loop"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["kind"] == "muon":
                for parameter in params:
                    self._muon(parameter, group)
            elif params:
                self._adam(params, group)

    def _muon(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        assert gradient is not None
        momentum = state["momentum"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"])  # Nesterov
        matrix = orthogonalise(update.flatten(1), dtype=self.dtype)
        scale = max(1.0, matrix.size(0) / matrix.size(1)) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(matrix.view_as(parameter), alpha=-group["lr"] * scale)

    def _adam(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in params:
            state = self.state[parameter]
            if not state:
                state |= {"step": torch.zeros(()), "mean": torch.zeros_like(parameter)}
                state["square"] = torch.zeros_like(parameter)
            elif not state["step"].is_floating_point():  # from a checkpoint of ea-runtime 0.1
                state["step"] = state["step"].float()
        states = [self.state[parameter] for parameter in params]
        columns = ([state[name] for state in states] for name in ("mean", "square"))
        beta1, beta2 = group["betas"]
        adam(
            params,
            [p.grad for p in params if p.grad is not None],
            *columns,
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            decoupled_weight_decay=group["kind"] == "adamw",
        )
