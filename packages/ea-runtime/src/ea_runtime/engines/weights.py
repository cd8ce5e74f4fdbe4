"""Weights of an exported network, and what adapters add to them.

A graph holds numbers, so an adapter cannot sit next to a module. Its deltas are added in float32 to the model folder's
own weights each time, never to an earlier sum, and cast once: taking the adapter off gives the same bytes again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ea_runtime.errors import UserError

if TYPE_CHECKING:
    from ea_runtime.export.networks import ExportSource

#: computes what one adapter adds to a weight at strength 1, in float32
Delta = Callable[[], Tensor]


@dataclass(eq=False)
class Added:
    """One adapter's deltas by name in the state dict. `ExportedWeights.set_strength` changes its strength."""

    deltas: Mapping[str, Delta]
    strength: float
    owner: Any = None


@dataclass(eq=False)
class ExportedWeights:
    """version: counts changes; sessions of another version are opened again. refusal: why it takes no adapter."""

    source: ExportSource
    dtype: torch.dtype
    version: int = 0
    added: list[Added] = field(default_factory=list)
    refusal: str = ""

    @property
    def network(self) -> nn.Module:
        """The network's modules, without weights."""
        return self.source.network

    def add(self, deltas: Mapping[str, Delta], strength: float, owner: Any = None) -> Added:
        """Put an adapter on; the next run has it. Raises UserError for names that the network does not have."""
        known = self.source.plan.weights.tensors
        unknown = [name for name in deltas if self.source.shared.get(name, name) not in known]
        if unknown:
            raise UserError(f"the exported network has no weight {unknown[0]!r} to add to")
        one = Added(dict(deltas), strength, owner)
        self.added.append(one)
        self.version += 1
        return one

    def set_strength(self, one: Added, strength: float) -> None:
        """Change an adapter's strength; 0 takes it off, bit-exact."""
        if one.strength != strength:
            one.strength = strength
            self.version += 1

    def remove(self, one: Added) -> None:
        """Take an adapter off. One that is not on is skipped."""
        if one in self.added:
            self.added.remove(one)
            self.version += 1

    def merged(self) -> dict[str, Tensor]:
        """The weights that differ from the bundle's, in the dtype of the export. Raises UserError for infinite ones."""
        wanted: dict[str, list[Added]] = {}
        for one in self.added:
            if one.strength != 0:
                for name in one.deltas:
                    wanted.setdefault(name, []).append(one)
        found = {}
        for name, base in self.source.tensors(set(wanted), {}):
            wide = base.to(torch.float32, copy=True)
            for one in wanted[name]:
                wide += (one.strength * one.deltas[name]()).to(wide).reshape(wide.shape)
            found[name] = wide.to(self.dtype)
            if not bool(torch.isfinite(found[name]).all()):
                raise UserError(
                    f"{name} would hold NaN or infinity in {self.dtype} with this adapter; use less of it"
                )
        return found
