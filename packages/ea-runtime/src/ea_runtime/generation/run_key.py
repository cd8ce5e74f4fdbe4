"""All that determines the bits of a video, so that a saved run is resumed by the same run alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ea_runtime.files.hashes import file_hash
from ea_runtime.generation.inputs import INPUTS

if TYPE_CHECKING:
    from ea_runtime.generation.pipeline import VideoPipeline

_TILING = ("use_tiling", "tile_sample_min_size", "tile_overlap_factor")


def run_key(
    pipe: VideoPipeline,
    record: Mapping[str, Any],
    versions: Mapping[str, str],
    model_sha256: Callable[[], str],
) -> Callable[[], dict[str, Any]]:
    """The key for a RunState, as things are now; only the model's hash is asked for when it is called.

    record: as `record_of` gives it.
    """
    import torch

    device = dict(record["device"])
    kind = pipe.device.type
    device["device"] = kind
    if kind == "cuda" and pipe.engine is None:
        device["name"] = torch.cuda.get_device_name(pipe.device)  # whichever number it has
    if kind != "cpu":
        del device["threads"]
    loras: Sequence[Mapping[str, Any]] = record.get("loras", ())
    known = {
        "settings": {name: value for name, value in record["settings"].items() if name not in INPUTS},
        "inputs": record.get("inputs", {}),
        "device": device,
        "loras": [[one["sha256"], one["weight"]] for one in loras],
        "engine": record.get("engine", {}).get("name", "torch"),
        "bundle": _bundle(record.get("engine", {}).get("bundle")),
        "tiling": {name: getattr(pipe.vae, name, None) for name in _TILING},
        "versions": dict(versions),
    }
    return lambda: {**known, "model": model_sha256()}


def _bundle(folder: str | None) -> str | None:
    """A hash of a bundle's records, which hold those of its graphs."""
    if folder is None:
        return None
    files = sorted(Path(folder).glob("*.json"))
    return hashlib.sha256("".join(file_hash(one) for one in files).encode()).hexdigest()
