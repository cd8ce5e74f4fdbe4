"""The interface by which a package's network is exported, and its graphs are run.

A record (VaeRecord, DenoiserRecord, TextEncoderRecord) may name an exporter with `export=`: a function that returns an
object with the methods of `Exporter`. The host traces, writes, checks and runs graphs; the exporter says which graphs
a network is divided into, what goes in and out of them, and how they replace the network in a pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ea_runtime.errors import UserError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

#: part of an export -> part of a model folder (models.layout.PARTS)
EXPORT_PARTS = {"vae-decoder": "vae", "vae-encoder": "vae", "dit": "denoiser", "text": "text"}


@dataclass(frozen=True, slots=True)
class Size:
    """The size that a bundle is made for. Graphs are static: another size is another bundle.

    num_frames, height, width: of the video, in pixels. latent_frames, latent_height, latent_width: of its latents.
    rows: latents that the denoiser takes in one pass (with guidance a video has two).
    """

    num_frames: int
    height: int
    width: int
    latent_frames: int
    latent_height: int
    latent_width: int
    rows: int = 1

    def words(self) -> str:
        """ "18 frames of 64x64"."""
        frames = "a picture" if self.num_frames == 1 else f"{self.num_frames} frames"
        return f"{frames} of {self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class Input:
    """A graph's input: its shape, and its dtype, None for the dtype of the export."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """One static graph.

    name: the file's stem; unique in a bundle. part: one of EXPORT_PARTS. module: takes the inputs in order and
    returns a tensor for each of `outputs`; its parameters are the network's own, so that initializers carry the names
    of the state dict. blocks: paths in `module` whose outputs the parity report compares one by one.
    draw: `draw(generator)` makes inputs for the parity report if unit noise would not do.
    """

    name: str
    part: str
    module: nn.Module
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    blocks: tuple[str, ...] = ()
    draw: Callable[[torch.Generator], dict[str, Tensor]] | None = None


class Run(Protocol):
    """Runs the graphs of a bundle's part."""

    @property
    def size(self) -> Size:
        """The size that the bundle was made for."""
        ...

    @property
    def graphs(self) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
        """Name of each graph -> its inputs' shapes."""
        ...

    def __call__(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, float32 on the CPU. Inputs are cast to the graph's dtypes."""
        ...


class Exporter(Protocol):
    """Divides a network into graphs, and puts graphs in its place.

    It may also have `build(build_network, config)`: the network without weights, if that is not `build_network()`;
    called under a mode that allocates none. And `for_refit(network)`, called before `graphs` for an engine whose
    weights will be replaced by name: operators must then take every weight as it is in the state dict.
    """

    parts: tuple[str, ...]

    def graphs(self, part: str, network: nn.Module, size: Size) -> list[Graph]:
        """The graphs that a video (or picture) of this size needs. `network` may be without weights."""
        ...

    def attach(self, network: nn.Module, runs: Mapping[str, Run]) -> Any:
        """The object that the pipeline uses in the network's place; `runs`: the bundle's parts."""
        ...


def check_parts(names: list[str] | tuple[str, ...] | None) -> tuple[str, ...]:
    """The parts asked for in their usual order; None means all. Raises UserError for others."""
    if not names:
        return tuple(EXPORT_PARTS)
    for name in names:
        if name not in EXPORT_PARTS:
            raise UserError(
                f"`part` must be one of {', '.join(EXPORT_PARTS)}, got {name!r}{nearest(name, EXPORT_PARTS)}"
            )
    return tuple(part for part in EXPORT_PARTS if part in names)
