"""What a checkpoint holds beside the weights, in safetensors and JSON: nothing that runs code when loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.training.average import WeightAverage


def save_state(
    folder: Path,
    *,
    modules: dict[str, nn.Module],
    averages: dict[str, WeightAverage],
    optimizer: torch.optim.Optimizer,
    position: dict[str, Any],
) -> None:
    """Writes state.safetensors (weights, averages, optimiser) and state.json (position, rates)."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"weight/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, average in averages.items():
        tensors |= {f"average/{name}/{key}": value for key, value in average.state_dict().items()}
    state = optimizer.state_dict()
    for index, values in state["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in values.items()}
    save_file(
        {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()},
        folder / "state.safetensors",
    )
    text = json.dumps({"position": position, "optimizer_groups": state["param_groups"]}, indent=1)
    (folder / "state.json").write_text(text + "\n", encoding="utf-8")


def load_state(
    folder: Path,
    *,
    modules: dict[str, nn.Module],
    averages: dict[str, WeightAverage],
    optimizer: torch.optim.Optimizer,
) -> dict[str, Any]:
    """Restores what save_state wrote, to the bit, and returns the position.

    Raises UserError where the checkpoint lacks one of `modules`.
    """
    tensors = load_file(folder / "state.safetensors")
    written = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    for name, module in modules.items():
        weights = _below(tensors, f"weight/{name}/")
        if not weights:
            raise UserError(f"checkpoint {folder.name} has no module {name!r}; it belongs to another recipe")
        module.load_state_dict(weights)
    for name, average in averages.items():
        average.load_state_dict(_below(tensors, f"average/{name}/"))
    values: dict[int, dict[str, Tensor]] = {}
    for key, value in _below(tensors, "optimizer/").items():
        index, _, part = key.partition("/")
        values.setdefault(int(index), {})[part] = value
    groups = written["optimizer_groups"]
    for group in groups:
        group["betas"] = tuple(group["betas"])
    optimizer.load_state_dict({"state": values, "param_groups": groups})
    _lay_out_like_parameters(optimizer)
    return written["position"]


@torch.no_grad()
def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Gives the optimiser's tensors their parameters' strides (channels last), as in an unbroken run.

    Files hold them contiguous. Arithmetic over mixed layouts is slower, and need not round alike.
    """
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
