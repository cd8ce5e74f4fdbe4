"""Weights from local files, checked: safe formats, and exactly the tensors that the network has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ea_runtime.errors import UserError

if TYPE_CHECKING:
    import torch


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or a torch file; nothing in it is executed.

    Raises UserError if it cannot be read as weights.
    """
    path = path.expanduser()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise what they like on foreign files
        raise UserError(f"{str(path)!r} cannot be read as weights: {error}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(hasattr(v, "shape") for v in state.values()):
        raise UserError(f"{str(path)!r} holds no state dict of tensors")
    return state


def load_weights(network: torch.nn.Module, path: Path, what: str) -> None:
    """Loads a state dict that must fit exactly. Raises UserError that names the first tensor that does not."""
    state = read_state(path)
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            raise UserError(f"{str(path)!r} lacks {name!r}; it should be {what}")
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{str(path)!r}: {name!r} is {tuple(state[name].shape)}, {what} wants {tuple(tensor.shape)}"
            )
    if extra := sorted(state.keys() - wanted.keys()):
        raise UserError(f"{str(path)!r} holds {extra[0]!r}, which {what} does not have")
    network.load_state_dict(state)
