"""Offloading: weights that are not in use wait outside the device's memory. The result stays bit-exact.

    none         all weights are on the device
    model        a network comes to the GPU when it runs, and the others leave it
    group        a block at a time: on a GPU from the machine's memory (diffusers' group offloading), on the CPU from
                 the model's files (models/waiting.py)
    sequential   a layer at a time, from the machine's memory: the least memory, and the slowest

The CPU has one memory, so only "group" saves any there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ea_runtime.errors import UserError
from ea_runtime.generation.offload_modes import MODES, check_mode

#: where transformers' networks have their blocks; ours say it themselves
_BLOCKS = {
    "T5EncoderModel": ["encoder"],
    "CLIPVisionModelWithProjection": ["vision_model", "encoder"],
}


def check_offload(mode: Any, engine: Any) -> None:
    """Tell an engine how its weights are offloaded, before it loads. Raises UserError for what cannot be done."""
    # an engine that was asked for no device chooses one later
    device = torch.device(getattr(engine, "device", None) or "cpu").type
    if check_mode(mode, device, MODES) == "none":
        return
    if not hasattr(engine, "offload"):
        raise UserError(
            f"`offload` {mode!r} moves the weights of engine torch, and this one holds its own; leave it out"
        )
    engine.offload = mode


def apply_offload(pipe: Any, mode: str, engine: Any) -> None:
    """Put the hooks on the networks of a pipeline that was just loaded; they are on the CPU, or wait in their files."""
    pipe.offload = mode
    if mode == "none" or torch.device(engine.device).type == "cpu":
        return
    networks = networks_of(pipe)
    if mode == "model":
        take_turns(networks, engine.device)
        return
    for network in networks:
        group_offload(network, engine.device, "block_level" if mode == "group" else "leaf_level")


def networks_of(pipe: Any) -> list[nn.Module]:
    """The torch networks of a pipeline, in the order in which they run."""
    found = (getattr(pipe.text, "model", pipe.text), pipe.denoiser, pipe.vae)
    return [one for one in found if isinstance(one, nn.Module)]


def group_offload(
    network: nn.Module, device: str | torch.device, kind: str, folder: str | None = None
) -> None:
    """diffusers' group offloading of one network, whose weights are on the CPU.

    kind: "block_level" or "leaf_level". folder: an empty one, in which weights wait in place of the machine's memory.
    """
    from diffusers.hooks import apply_group_offloading

    if folder is not None and kind == "leaf_level":
        _refuse_tied(network)
    # Without streams: transfers that overlap with arithmetic are not tested here, and weights that come too late
    # would be wrong in silence.
    apply_group_offloading(
        network,
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type=kind,
        num_blocks_per_group=1 if kind == "block_level" else None,
        offload_to_disk_path=folder,
        block_modules=_BLOCKS.get(type(network).__name__),
    )


def _refuse_tied(network: nn.Module) -> None:
    """Raises UserError for a tensor that two modules share: the second would be written to disk when it is gone."""
    found: dict[int, str] = {}
    for path, module in network.named_modules():
        for leaf, tensor in module._parameters.items():
            name = f"{path}.{leaf}"
            if tensor is not None and found.setdefault(id(tensor), name) != name:
                both = " and ".join(sorted((found[id(tensor)], name)))
                raise UserError(f"{both} are one tensor, which cannot wait on disk twice; use 'block_level'")


def take_turns(networks: list[nn.Module], device: str | torch.device) -> None:
    """Networks come to a device when they run, and the others leave it then."""
    from accelerate.hooks import CpuOffload, add_hook_to_module

    class Turn(CpuOffload):
        """Before a network's forward."""

        def __init__(self, others: list[nn.Module]) -> None:
            super().__init__(device)
            self.others = others

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            for other in self.others:
                other.to("cpu")
            return super().pre_forward(module, *args, **kwargs)

    for network in networks:
        add_hook_to_module(network, Turn([one for one in networks if one is not network]), append=True)
