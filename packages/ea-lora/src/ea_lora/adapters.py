"""The network that training adapts: peft's LoRA layers put into a denoiser (and a text encoder on request).

peft's `inject_adapter_in_model` replaces each target by its own layer, whose base is the frozen module. That suits
training: gradients, dropout and initialisation are peft's (down uniform as in kaiming's, up zero, so an
untrained LoRA changes nothing). For use on a pipeline see beside.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ea_lora.beside import ADAPTER
from ea_lora.keys import Part, find_targets, flatten
from ea_lora.layer import Layer
from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote

#: V2's own
RANK, ALPHA = 128, 64.0
MAX_RANK = 4096
#: what `network.motion = false` leaves out: V2's motion modules
MOTION_PATTERN = "*attn_temporal*"


class Adapters(nn.ModuleDict):
    """The trained matrices of one network, by its modules' paths with `_` for `.`, as in checkpoints and averages.

    Each entry shares its parameters with peft's layers in the network: down (R, I) and up (O, R).
    """

    def __init__(self, part: Part, layers: dict[str, Any]) -> None:
        super().__init__(
            {
                flatten(path): nn.ModuleDict({"down": layer.lora_A[ADAPTER], "up": layer.lora_B[ADAPTER]})
                for path, layer in layers.items()
            }
        )
        self.part: Part = part
        self.paths = dict(zip(self.keys(), layers, strict=True))
        self.names = {path: name for name, path in self.paths.items()}
        self.alphas = {name: float(layers[path].lora_alpha[ADAPTER]) for name, path in self.paths.items()}

    def to_layers(self, dtype: torch.dtype = torch.float32) -> list[Layer]:
        """The matrices as they are now, on the CPU, for `write_lora`."""
        layers = []
        for name, path in self.paths.items():
            matrices = (self.get_parameter(f"{name}.{role}.weight") for role in ("down", "up"))
            down, up = (matrix.detach().to("cpu", dtype, copy=True) for matrix in matrices)
            layers.append(
                Layer(name, self.part, path, down, up, torch.tensor(self.alphas[name], dtype=dtype))
            )
        return layers


def adapt(
    network: nn.Module,
    part: Part = "denoiser",
    *,
    rank: int = RANK,
    alpha: float = ALPHA,
    dropout: float = 0.0,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Adapters:
    """Freeze a network and put fresh adapters on its Linears and 1x1 convolutions; only these train afterwards.

    include, exclude: shell patterns over module paths. The matrices are float32 whatever the network is, on its
    device. Any torch module will do: names and kinds of its layers decide.
    Raises UserError if no module is left, and for a rank above 0 that peft cannot make.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = find_targets(network, include, exclude)
    if not targets:
        some = ", ".join(list(find_targets(network))[:3])
        raise UserError(
            f"`network.include` {list(include)} and `network.exclude` {list(exclude)} leave no layer of the {part} "
            f"to adapt; it has, for example, {some or 'no Linear at all'}"
        )
    _check_names(targets)
    network.requires_grad_(False)
    # peft's type of alpha is int; V2 and kohya have fractions too
    sizes: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout}
    config = LoraConfig(**sizes, target_modules=_exactly(targets))
    inject_adapter_in_model(config, network, ADAPTER)
    layers: dict[str, Any] = {path: network.get_submodule(path) for path in targets}
    for layer in layers.values():
        for matrix in (layer.lora_A, layer.lora_B):  # peft takes the base's dtype, which may be 16 bits
            matrix.float().requires_grad_(True)
    return Adapters(part, layers)


def base_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The frozen parameters of an adapted network."""
    return [p for name, p in network.named_parameters() if ".lora_A." not in name and ".lora_B." not in name]


def base_tensors(network: nn.Module) -> list[Tensor]:
    """All tensors that an adapted network keeps in its base's type: frozen parameters, and tables of numbers (in the
    published model's motion modules 0.26 billion)."""
    return [*base_parameters(network), *(b for b in network.buffers() if b.is_floating_point())]


def _exactly(paths: Iterable[str]) -> str:
    """A pattern of peft's for these paths alone: from a list it would take every module that ends in one of them."""
    return f"({'|'.join(re.escape(path) for path in paths)})"


def _check_names(targets: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for path in targets:
        other = seen.setdefault(flatten(path), path)
        if other != path:
            raise UserError(
                f"modules {quote(other)} and {quote(path)} would have one name in a LoRA file; exclude one"
            )
