"""What a training recipe must offer to the loop."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from pydantic import BaseModel
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Context:
    """What the loop tells a recipe about the run.

    seed: the run's seed. device: where the networks live. out: the run's folder.
    say: shows one line to the user.
    dtype: "fp32" or "bf16", the type to compute in; weights stay fp32 (see ea_runtime.training.precision).
    """

    seed: int
    device: str
    out: Path
    say: Callable[[str], None]
    dtype: str = "fp32"


class Recipe(Protocol):
    """Made as `Recipe(options, context)`; the loop owns order, optimiser, EMA, checkpoints and log.

    Everything random inside `loss` should come from the generator that is passed. The loop seeds it, and
    torch's global one (which dropout uses), from (seed, step, process), so that a resumed run draws what an
    uninterrupted one would have drawn. What else changes from step to step must lie in the modules.
    """

    options_model: type[BaseModel]

    def __init__(self, options: Any, context: Context) -> None: ...

    def modules(self) -> dict[str, nn.Module]:
        """The modules that are trained and saved, by name. Frozen helpers are not among them."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser: {"params": [...], "kind": "adamw" | "muon", "lr_scale": 1.0}."""
        ...

    def buckets(self) -> Sequence[Hashable]:
        """One key a sample; the samples of a batch share their key (picture or video, frames, size)."""
        ...

    def loss(
        self, indices: list[int], generator: torch.Generator, step: int
    ) -> tuple[Tensor, dict[str, float]]:
        """The scalar loss of a batch (its mean) and figures for the log, of the same names at every call."""
        ...

    def finish(self) -> None:
        """Called after the last step with the averaged weights in place (for example to whiten latents)."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the modules as they are now as a loadable model folder (config.json and safetensors)."""
        ...
