"""The training state in a checkpoint: tensors in safetensors, numbers in JSON; nothing that runs code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.training.update.average import WeightAverage
from ea_runtime.training.update.optimizers import TurnOptimizer
from ea_runtime.training.update.sharded import fill, like, whole


def save_state(
    folder: Path | None,
    *,
    modules: dict[str, nn.Module],
    averages: dict[str, WeightAverage],
    turns: Sequence[TurnOptimizer],
    position: dict[str, Any],
) -> None:
    """Writes state.safetensors (weights, averages, optimisers) and state.json (position, rates, loss scales).

    Tensors are whole even if the run shards them: then every process must call this, the others with folder None.
    position: anything that JSON can hold.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {"position": position, "turns": {}}
    for name, module in modules.items():
        tensors |= {f"weight/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, average in averages.items():
        tensors |= {f"average/{name}/{key}": value for key, value in average.state_dict().items()}
    for turn in turns:
        written = []
        for place, optimizer in enumerate(turn.optimizers):
            state = optimizer.state_dict()
            rest: dict[str, dict[str, Any]] = {}
            for index, values in state["state"].items():
                for key, value in values.items():
                    if isinstance(value, Tensor):
                        tensors[f"optimizer/{turn.turn}/{place}/{index}/{key}"] = value
                    else:
                        rest.setdefault(str(index), {})[key] = value
            written.append({"groups": state["param_groups"], "rest": rest})
        numbers["turns"][turn.turn] = {"optimizers": written, "scaler": turn.scaler.state_dict()}
    kept = {}
    for key, value in tensors.items():
        gathered = whole(value.detach())  # one at a time, so that only the first process fills up
        if folder is not None:
            kept[key] = gathered.cpu().contiguous().clone()
    if folder is not None:
        save_file(kept, folder / "state.safetensors")
        (folder / "state.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def load_state(
    folder: Path,
    *,
    modules: dict[str, nn.Module],
    averages: dict[str, WeightAverage],
    turns: Sequence[TurnOptimizer],
) -> dict[str, Any]:
    """Restores what save_state wrote, bit-exact, and returns the position.

    Raises UserError if the checkpoint is of other modules or turns.
    """
    tensors = load_file(folder / "state.safetensors")
    numbers = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    for name, module in modules.items():
        _load_module(folder, name, module, _below(tensors, f"weight/{name}/"))
    for name, average in averages.items():
        average.load_state_dict(_below(tensors, f"average/{name}/"))
    for turn in turns:
        written = numbers["turns"].get(turn.turn)
        if written is None or len(written["optimizers"]) != len(turn.optimizers):
            raise UserError(
                f"checkpoint {folder.name} does not fit the turn {turn.turn!r}; it is of another recipe"
            )
        turn.scaler.load_state_dict(written["scaler"])
        for place, (optimizer, table) in enumerate(zip(turn.optimizers, written["optimizers"], strict=True)):
            values = _below(tensors, f"optimizer/{turn.turn}/{place}/")
            _load_optimizer(optimizer, values, table["groups"], table["rest"])
    return numbers["position"]


def _load_module(folder: Path, name: str, module: nn.Module, weights: dict[str, Tensor]) -> None:
    own = module.state_dict()
    if not weights:
        raise UserError(f"checkpoint {folder.name} has no module {name!r}; it belongs to another recipe")
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())
        raise UserError(
            f"checkpoint {folder.name} is of another {name!r}: {len(odd)} keys differ, {odd[0]!r} first"
        )
    for key, target in own.items():
        if target.shape != weights[key].shape:
            raise UserError(
                f"checkpoint {folder.name} is of another {name!r}: {key!r} has shape {list(weights[key].shape)}, "
                f"expected {list(target.shape)}"
            )
        fill(target, weights[key])


def _load_optimizer(
    optimizer: torch.optim.Optimizer, values: dict[str, Tensor], groups: list[Any], rest: dict[str, Any]
) -> None:
    """Also gives the tensors their parameters' strides (channels last) and shards, as in an uninterrupted run.

    Files hold them contiguous and whole. Arithmetic over mixed layouts is slower, and need not round alike.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {int(index): dict(table) for index, table in rest.items()}
    for path, value in values.items():
        index, _, key = path.partition("/")
        parameter = parameters[int(index)]
        is_alike = value.shape == parameter.shape
        state.setdefault(int(index), {})[key] = like(parameter.detach(), value) if is_alike else value
    for group in groups:
        group["betas"] = tuple(group["betas"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
