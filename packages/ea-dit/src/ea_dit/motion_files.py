"""Motion modules as files: from a model folder, into another, and into a network before training.

Everything is read through the host's safe readers, and appears whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ea_dit.network.model import Transformer3DModel
from ea_dit.weights.convert import strip_wrappers
from ea_dit.weights.transplant import MotionReport, match_motion, motion_names, require_fit
from ea_runtime.errors import UserError, writing
from ea_runtime.files.atomic import atomic_file, new_folder, sync_path
from ea_runtime.files.safe import is_file, quote_path
from ea_runtime.models.convert import copy_rest
from ea_runtime.models.loading import denoiser_of
from ea_runtime.models.weights import PartWeights, find_weights, iter_tensors, read_header

from .network.config import TransformerConfig

#: Where a motion file keeps the settings of its modules, as JSON, in its safetensors metadata.
SETTINGS_KEY = "ea.motion"
_MAKE_ROOM = "make room there or name another `--output`"


def extract_motion(model: str | os.PathLike[str], output: Path) -> list[str]:
    """Write the motion modules of a model folder (or of its transformer folder) as one safetensors file.

    The tensors keep their names and their bits; the metadata says how the modules are built.
    Returns lines for the user. Raises UserError, one line; an existing file is never replaced.
    """
    found = denoiser_of(model)
    weights = find_weights(found.root, found.spec.folder)
    names = motion_names(weights.tensors)
    if not names:
        raise UserError(f"the denoiser of {quote_path(os.fspath(model))} has no motion modules to extract")
    _require_new_file(output)
    tensors = dict(iter_tensors(weights, set(names)))
    # one key only: safetensors writes several in any order, and equal modules should be equal files
    metadata = {SETTINGS_KEY: json.dumps(motion_settings(found.config), sort_keys=True)}
    with writing(output, _MAKE_ROOM), atomic_file(output, durable=True) as partial:
        save_file(tensors, partial, metadata=metadata)
    size = sum(tensor.nbytes for tensor in tensors.values())
    return [f"{len(names)} tensors of the motion modules, {size / 1e6:.1f} MB -> {output}"]


def insert_motion(motion: Path, model: str | os.PathLike[str], output: Path) -> list[str]:
    """Write a copy of `model` (a model folder or its transformer folder) with the motion modules of a file.

    The modules' settings come with them if the file has them. Tensors take the dtype of those they replace.
    Returns lines for the user. Raises UserError or ValueError, one line, before anything is written if they do not fit.
    """
    found = denoiser_of(model)
    weights = find_weights(found.root, found.spec.folder)
    source, settings = read_motion(motion)
    where = quote_path(motion)
    backbone = {name: entry.shape for name, entry in weights.tensors.items()}
    report = match_motion({name: entry.shape for name, (_, entry) in source.items()}, backbone, where)
    require_fit(report, where)
    config, changed = adopt_settings(found.config, settings)
    folder = found.root / found.spec.folder if found.is_bare else found.root
    lines = [f"{where}: {report.line}"]
    with writing(output, _MAKE_ROOM), new_folder(output, "--output", outside=folder) as staged:
        copy_rest(folder, staged)
        part = staged if found.is_bare else staged / found.spec.folder
        cast = _rewrite(weights, part, _load(source, report.matched))
        if changed:
            (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            lines.append(f"settings that came with the motion modules: {', '.join(changed)}")
    if cast:
        lines.append(f"{cast} tensors were converted to the dtype of those they replace")
    return [*lines, f"-> {output}"]


def load_motion(model: Transformer3DModel, path: Path, *, dry_run: bool = False) -> MotionReport:
    """Put the motion modules of a file into a network, in place. Raises UserError or ValueError, one line.

    dry_run: only compare.
    """
    source, settings = read_motion(path)
    where = f"`init.motion` {quote_path(path)}"
    state = model.state_dict(keep_vars=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    report = match_motion({name: entry.shape for name, (_, entry) in source.items()}, shapes, where)
    require_fit(report, where)
    changed = adopt_settings(dict(model.config), settings)[1]
    if changed:
        raise UserError(
            f"{where} was trained with other settings of the network: {', '.join(changed)} differ; set them in "
            f"[model] as the file has them ({json.dumps(settings, sort_keys=True)})"
        )
    if not dry_run:
        with torch.no_grad():
            for name, tensor in _load(source, report.matched).items():
                state[name].copy_(tensor)
    return report


def read_motion(path: Path) -> tuple[dict[str, tuple[str, Any]], dict[str, Any]]:
    """A motion file's header: published name -> (name in the file, entry), and its settings ({}: it has none).

    Wrappers' prefixes ("module.") are removed. Raises UserError, one line.
    """
    if not is_file(path):
        raise UserError(
            f"the motion modules must be a safetensors file, got {quote_path(path)}, which is none; make one with "
            "`ea models extract-motion`"
        )
    weights = read_header(path)
    return strip_wrappers({name: (name, entry) for name, entry in weights.tensors.items()}), _settings(
        weights, path
    )


def _settings(weights: PartWeights, path: Path) -> dict[str, Any]:
    text = weights.metadata.get(SETTINGS_KEY)
    if text is None:
        return {}
    try:
        settings = json.loads(text)
        if not isinstance(settings, dict) or set(settings) != {"motion_module_type", "motion_module_kwargs"}:
            raise ValueError("it must name motion_module_type and motion_module_kwargs")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{quote_path(path)}: its settings are damaged: {error}; extract it again") from error
    return settings


def _load(source: Mapping[str, tuple[str, Any]], wanted: tuple[str, ...]) -> dict[str, Tensor]:
    entries = dict(source[name] for name in wanted)
    back = {source[name][0]: name for name in wanted}
    weights = PartWeights(tuple({entry.file for entry in entries.values()}), entries)
    return {back[name]: tensor for name, tensor in iter_tensors(weights, set(entries))}


def _rewrite(weights: PartWeights, part: Path, motion: dict[str, Tensor]) -> int:
    """Rewrites each weight file of `part` that holds one of `motion`; returns how many tensors changed dtype."""
    cast = 0
    for file in weights.files:
        header = read_header(file)
        if not set(header.tensors) & set(motion):
            continue
        tensors = dict(iter_tensors(header, set(header.tensors)))
        for name in set(tensors) & set(motion):
            cast += motion[name].dtype != tensors[name].dtype
            tensors[name] = motion[name].to(tensors[name].dtype)
        target = part / file.name
        target.unlink()
        save_file(tensors, target, metadata=dict(header.metadata) or {"format": "pt"})
        sync_path(target)
    return cast


def _require_new_file(output: Path) -> None:
    if os.path.lexists(output):
        raise UserError(f"{quote_path(output)} exists already; remove it or give another --output")
    if output.suffix != ".safetensors":
        raise UserError(f"`--output` must be a .safetensors file, got {quote_path(output)}")


def motion_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json's settings of its motion modules, with every default filled in; plain JSON values."""
    cfg = TransformerConfig.from_mapping(config)
    kwargs = asdict(cfg.motion_module_kwargs)
    kwargs["attention_block_types"] = list(kwargs["attention_block_types"])
    return {"motion_module_type": cfg.motion_module_type, "motion_module_kwargs": kwargs}


def adopt_settings(
    config: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """`config` with a motion file's settings, and the keys that changed. The number of positions stays the model's.

    Heads and grids do not show in shapes: with another's settings the same tensors are another function.
    Raises ValueError, one line, for invalid settings, or if only one side has positions in time.
    """
    have = motion_settings(config)
    wanted = motion_settings({**config, **settings})
    ours, theirs = have["motion_module_kwargs"], wanted["motion_module_kwargs"]
    if ours["temporal_position_encoding"] != theirs["temporal_position_encoding"]:
        raise ValueError(
            f"`temporal_position_encoding` of the motion modules is {theirs['temporal_position_encoding']}, the "
            f"model's is {ours['temporal_position_encoding']}; both must have positions, or none"
        )
    theirs["temporal_position_encoding_max_len"] = ours["temporal_position_encoding_max_len"]
    changed = [key for key in theirs if theirs[key] != ours[key]]
    changed += ["motion_module_type"] * (have["motion_module_type"] != wanted["motion_module_type"])
    if not changed:
        return dict(config), []
    wanted["motion_module_kwargs"] = {**(config.get("motion_module_kwargs") or {}), **theirs}
    return {**config, **wanted}, changed
