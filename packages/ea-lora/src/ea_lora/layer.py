"""A LoRA: its layers, and the file that holds them.

Shape legend: R rank, I inputs and O outputs of the layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ea_lora.keys import PARTS, TEXT_FOLDER, WEIGHTS_NAME, Part, Spelling
from ea_runtime.files.safe import is_file

#: dtypes that the matrices of a file, and the weights that they change, may have
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: further dtypes of an alpha: converters write the rank as it is
WHOLES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
#: a path is shown in errors up to this length
MAX_PATH = 300


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One layer of a LoRA; the change of the module's weight is `scale * up @ down`.

    name: as in the file. part, path: its network and module; until matched with a model, as in the file: the path may
    have `_` where the module has `.`, or a prefix. down: (R, I). up: (O, R). Both may end in dimensions of 1
    (convolutions). alpha: one number, or None: `said`, what the file's metadata says of all layers, and if that is
    None too, R.
    """

    name: str
    part: Part
    path: str
    down: Tensor
    up: Tensor
    alpha: Tensor | None = None
    said: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        alpha = self.said if self.alpha is None else float(self.alpha)
        return 1.0 if alpha is None else alpha / self.rank

    @property
    def num_inputs(self) -> int:
        return self.down.shape[1]

    @property
    def num_outputs(self) -> int:
        return self.up.shape[0]

    def matrices(self) -> tuple[Tensor, Tensor]:
        """down (R, I) and up (O, R) without the convolution's dimensions of 1, views."""
        return self.down.flatten(1), self.up.flatten(1)

    def delta(self) -> Tensor:
        """The change of the weight, (O, I) in float32 (float64 where the file is)."""
        down, up = self.matrices()
        dtype = torch.promote_types(down.dtype, torch.float32)
        return self.scale * (up.to(dtype) @ down.to(dtype))


@dataclass(frozen=True, slots=True, eq=False)
class LoraFile:
    """A LoRA from disk, checked.

    path: the file, or peft's folder. layers: in the order of their names. metadata: text by key. layout: the scheme
    of its tensors' names. notes: lines for the user.
    """

    path: Path
    layers: tuple[Layer, ...]
    metadata: Mapping[str, str]
    layout: Spelling = "kohya"
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Its safetensors files."""
        return weight_files(self.path)

    def of_part(self, part: Part) -> list[Layer]:
        return [layer for layer in self.layers if layer.part == part]

    def may_have(self, part: Part) -> bool:
        """True if it has layers for a network, as far as can be told without the model."""
        return self.layout == "other" or bool(self.of_part(part))


def weight_files(path: Path) -> tuple[Path, ...]:
    """A file itself; of peft's folder the adapter's weights, and its text encoder's if there are any."""
    if not path.is_dir():
        return (path,)
    names = (WEIGHTS_NAME, f"{TEXT_FOLDER}/{WEIGHTS_NAME}")
    return tuple(path / name for name in names if is_file(path / name))


def count_parts(layers: Iterable[Layer]) -> dict[Part, int]:
    """Layers per network, without networks that have none."""
    parts = [layer.part for layer in layers]
    return {part: parts.count(part) for part in PARTS if part in parts}
