"""Reports on model folders: their contents, and if they would load; from headers alone, no tensor is read."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError
from ea_runtime.files.safe import inside, quote_path, read_json
from ea_runtime.models.geometry import Geometry, takes_picture
from ea_runtime.models.image_encoder import (
    CLASS_NAME,
    NO_PREPROCESSOR,
    has_image_encoder,
    plan_image_encoder,
)
from ea_runtime.models.layout import IMAGE_ENCODER, PARTS, PartSpec, class_name, read_defaults, resolve_folder
from ea_runtime.models.loading import PartPlan, build_from_config, plan_part, read_part_config, unknown_keys
from ea_runtime.models.memory import estimates as memory
from ea_runtime.models.weights import PartWeights, find_weights, is_pickle
from ea_runtime.plugins.host import get_host

if TYPE_CHECKING:
    from torch import nn


@dataclass
class PartReport:
    """One part. `state`: "ok", or why it does not load; `missing` and the like name tensors.

    num_values: numbers in the files; num_parameters: those that the class trains (the rest are saved tables).
    """

    name: str
    folder: str
    state: str = "ok"
    class_name: str = ""
    package: str = ""
    files: list[str] = field(default_factory=list)
    num_tensors: int = 0
    num_values: int = 0
    num_parameters: int = 0
    num_bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[dict[str, Any]] = field(default_factory=list)
    unknown_keys: list[str] = field(default_factory=list)
    pickles: list[str] = field(default_factory=list)


@dataclass
class FolderReport:
    """All parts of a folder, what else is wrong or worth knowing, and estimates of memory in bytes."""

    folder: str
    parts: list[PartReport]
    problems: list[str]
    scheduler: dict[str, Any]
    defaults: dict[str, Any]
    memory: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def is_loadable(self) -> bool:
        return not self.problems and all(part.state == "ok" for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "is_loadable": self.is_loadable}


def check_folder(model: str | os.PathLike[str]) -> FolderReport:
    """Checks every part of a model folder against the class that would load it.

    Raises UserError if there is no such folder or it has no part at all; everything else is in the report.
    """
    folder = resolve_folder(model)
    if not any(os.path.lexists(folder / spec.folder) for spec in PARTS.values()):
        expected = ", ".join(f"{spec.folder}/" for spec in PARTS.values())
        raise UserError(
            f"folder {quote_path(folder)} holds no model; expected {expected} each with a config.json"
        )
    reports, configs = [], {}
    for spec in PARTS.values():
        report, config = _check_part(folder, spec)
        reports.append(report)
        configs[spec.name] = config
    notes: list[str] = []
    if has_image_encoder(folder):
        reports.append(_check_image_encoder(folder, notes))
    elif takes_picture(configs["denoiser"]):
        notes.append(
            f"no {IMAGE_ENCODER}/: this model takes CLIP's embedding of the first picture, and makes videos without it"
        )
    problems: list[str] = []
    scheduler: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    try:
        if os.path.lexists(folder / "model_index.json"):
            read_json(folder, "model_index.json")
        scheduler, generation = read_defaults(folder)
        defaults = generation.model_dump()
    except UserError as error:
        problems.append(str(error))
    memory = _memory(reports, configs, defaults) if all(part.state == "ok" for part in reports[:2]) else {}
    return FolderReport(str(folder), reports, problems, scheduler, defaults, memory, notes)


def _check_part(folder: Path, spec: PartSpec) -> tuple[PartReport, dict[str, Any]]:
    report = PartReport(spec.name, spec.folder)
    config: dict[str, Any] = {}
    try:
        directory = inside(folder, spec.folder)
        if directory.is_dir():
            report.pickles = sorted(entry.name for entry in directory.iterdir() if is_pickle(entry.name))
        config = read_part_config(folder, spec)
        report.class_name = class_name(config, spec)
        _describe(report, find_weights(folder, spec.folder))
        plan = plan_part(folder, spec)
        entries = get_host().records(spec.kind).values()
        report.package = next(entry.package for entry in entries if entry.record is plan.record)
        _compare(report, plan)
    except UserError as error:
        report.state = str(error)
    except OSError as error:
        report.state = f"{spec.folder} cannot be read: {error.strerror or error}"
    return report, config


def _check_image_encoder(folder: Path, notes: list[str]) -> PartReport:
    from ea_runtime.models import meta

    report = PartReport("image_encoder", IMAGE_ENCODER, class_name=CLASS_NAME, package="ea-runtime")
    try:
        entries = inside(folder, IMAGE_ENCODER).iterdir()
        report.pickles = sorted(entry.name for entry in entries if is_pickle(entry.name))
        _describe(report, find_weights(folder, IMAGE_ENCODER))
        plan = plan_image_encoder(folder)
        report.unknown_keys = list(plan.unknown_keys)
        if plan.preprocessor is None:
            notes.append(NO_PREPROCESSOR)
        _fit(report, meta.build_shapes(plan.build), plan.weights)
    except UserError as error:
        report.state = str(error)
    except OSError as error:
        report.state = f"{IMAGE_ENCODER} cannot be read: {error.strerror or error}"
    return report


def _describe(report: PartReport, weights: PartWeights) -> None:
    report.files = [path.name for path in weights.files]
    report.num_tensors = len(weights.tensors)
    report.num_values = sum(entry.count for entry in weights.tensors.values())
    report.num_bytes = weights.num_bytes
    report.dtypes = weights.dtypes


def _compare(report: PartReport, plan: PartPlan) -> None:
    from ea_runtime.models import meta

    if plan.spec.name == "text" and report.class_name != "T5EncoderModel":
        return  # another package's encoder builds itself from the folder: its shapes are unknown here
    model = meta.build_shapes(lambda: build_from_config(plan))
    if plan.spec.name != "text":
        report.unknown_keys = unknown_keys(type(model), plan.config)
    _fit(report, model, plan.weights)


def _fit(report: PartReport, model: nn.Module, weights: PartWeights) -> None:
    from ea_runtime.models import meta

    report.num_parameters = sum(parameter.numel() for parameter in model.parameters())
    comparison = meta.compare(model, weights.shapes)
    report.missing = list(comparison.missing)
    report.unexpected = list(comparison.unexpected)
    report.wrong_shape = [
        {"name": name, "expected": list(expected), "got": list(got)}
        for name, expected, got in comparison.wrong_shape
    ]
    meta.require_fit(comparison, report.folder)


def _memory(reports: list[PartReport], configs: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Bytes by dtype: exact for the weights of each part, estimates for activations."""
    vae, denoiser = configs["vae"], configs["denoiser"]
    side = memory.native_size(denoiser, Geometry.from_configs(vae).spatial_ratio)
    num_frames = int(defaults.get("num_frames", 144))
    denoise = memory.estimate_denoise(denoiser, vae, height=side, width=side, num_frames=num_frames)
    decode = memory.estimate_decode(vae, height=side, width=side)
    return {
        "weights": {
            part.name: {name: part.num_values * size for name, size in memory.BYTES.items()}
            for part in reports
        },
        "denoise_estimate": asdict(denoise),
        "decode_estimate": asdict(decode),
    }
