"""The networks of a model folder, for export: built without weights, which stay in their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.export.parts import EXPORT_PARTS, Exporter
from ea_runtime.export.trace import FakeNetwork
from ea_runtime.models import meta
from ea_runtime.models.layout import PARTS
from ea_runtime.models.loading import PartPlan, build_from_config, plan_part
from ea_runtime.models.weights import iter_tensors


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A network that can be exported. shared: missing name of a tied tensor -> the one in the file."""

    plan: PartPlan
    exporter: Exporter
    network: nn.Module
    shared: Mapping[str, str] = field(default_factory=dict)

    def tensors(self, names: set[str], computed: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """These tensors of the state dict as stored in the files, one in memory at a time."""
        sources = {name: self.shared.get(name, name) for name in names if name not in computed}
        wanted: dict[str, list[str]] = {}
        for name, source in sources.items():
            wanted.setdefault(source, []).append(name)
        for source, tensor in iter_tensors(self.plan.weights, set(wanted), is_shared=True):
            for name in wanted[source]:
                yield name, tensor
        yield from ((name, tensor) for name, tensor in computed.items() if name in names)

    def load(self, fake: FakeNetwork) -> nn.Module:
        """The network with its weights, in the dtypes of the export."""
        network = build(self.plan, self.exporter)
        comparison = meta.compare(network, self.plan.weights.shapes)
        return meta.fill(network, self.plan.weights, comparison, dtype=fake.dtype)


def open_source(folder: Path, model_part: str) -> ExportSource:
    """Finds the class, its exporter and its weights' headers. Raises UserError and MissingPackageError."""
    plan = plan_part(folder, PARTS[model_part])
    make = getattr(plan.record, "export", None)
    if make is None:
        raise UserError(
            f"{plan.record.name!r} ({PARTS[model_part].title}) has no exporter; its plugin must give its record one"
            " (`export=`, docs/export.md)"
        )
    exporter = make()
    network = build(plan, exporter)
    comparison = meta.compare(network, plan.weights.shapes)
    meta.require_fit(comparison, plan.label)
    return ExportSource(plan, exporter, network, dict(comparison.shared))


def build(plan: PartPlan, exporter: Exporter) -> nn.Module:
    """The network without weights."""
    config = {key: value for key, value in plan.config.items() if not key.startswith("_")}
    own = getattr(exporter, "build", lambda build_network, config: build_network())
    return meta.build_without_weights(lambda: own(lambda: build_from_config(plan), config))


def sources_of(folder: Path, parts: tuple[str, ...]) -> dict[str, ExportSource]:
    """The source of each part of an export; parts of one network share theirs."""
    opened: dict[str, ExportSource] = {}
    for part in parts:
        name = EXPORT_PARTS[part]
        if name not in opened:
            opened[name] = open_source(folder, name)
        if part not in opened[name].exporter.parts:
            raise UserError(
                f"`part` {part!r} is not one that {opened[name].plan.record.name!r} exports; it has"
                f" {', '.join(opened[name].exporter.parts)}"
            )
    return {part: opened[EXPORT_PARTS[part]] for part in parts}


def export_configs(folder: Path) -> dict[str, Any]:
    """config.json of VAE and denoiser, None if missing, for the sizes that fit."""
    from ea_runtime.files.safe import inside, is_file, read_json

    found = {}
    for name in ("vae", "denoiser"):
        path = f"{PARTS[name].folder}/config.json"
        found[name] = read_json(folder, path) if is_file(inside(folder, path)) else None
    return found
