"""LoRA on a network that an engine runs from a bundle: added to its weights, and removed, at the next run.

A graph has no modules to carry layers. The host sums `W + strength * scale * up @ down` in float32 from the
model folder's own weights, casts once, and opens the graph with that (ONNX Runtime) or refits the engine (TensorRT);
so A, then B, then A again gives the first A's bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ea_lora.loaded import LoadedLora, Shared
from ea_lora.matching import Matching
from ea_runtime.engines.weights import Added, Delta, ExportedWeights
from ea_runtime.errors import UserError


@dataclass(eq=False)
class ExportedLora(LoadedLora):
    """A LoRA on a pipeline of another engine than torch; used like `LoadedLora`.

    A change of `weight` takes effect, and time, at the next run.
    """

    _parts: list[tuple[ExportedWeights, Added]] = field(default_factory=list, repr=False)

    def _set_strength(self) -> None:
        for weights, added in self._parts:
            weights.set_strength(added, self._shared.weight)

    @property
    def is_loaded(self) -> bool:
        return bool(self._parts)

    def unload(self) -> None:
        """Take it off; the next run has the bundle's own weights. Calling it again does nothing."""
        while self._parts:
            weights, added = self._parts.pop()
            weights.remove(added)


def put_on_exported(held: Mapping[str, ExportedWeights], matching: Matching, shared: Shared) -> ExportedLora:
    """Add every matched layer to its weight. Raises UserError, with nothing added, if an engine takes no changes."""
    for part, weights in held.items():
        if weights.refusal and any(match.layer.part == part for match in matching.matches):
            raise UserError(weights.refusal)
    lora = ExportedLora(shared, [])
    for part, weights in held.items():
        deltas: dict[str, Delta] = {
            f"{match.path}.weight": match.layer.delta
            for match in matching.matches
            if match.layer.part == part
        }
        if deltas:
            lora._parts.append((weights, weights.add(deltas, shared.weight, lora)))
    return lora
