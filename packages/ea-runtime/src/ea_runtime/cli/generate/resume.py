"""`--resume` and files that are there already: finished outputs are kept, those that a killed run left are replaced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.files.hashes import content_hash
from ea_runtime.generation.adapters import AdapterChoice
from ea_runtime.generation.making import model_name
from ea_runtime.generation.recipe import read_embedded
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.run_files import is_writing, state_folder
from ea_runtime.generation.sidecar import describes, plan_sidecar, read_sidecar, sidecars_of
from ea_runtime.generation.windows import recorded_settings
from ea_runtime.video.output import Output, plan_output


def settle(
    output: Output, overwrite: bool, request: ModelRequest, adapters: Sequence[AdapterChoice]
) -> tuple[Output, Path, bool]:
    """The output as it may be written, its sidecar, and True if both are there, made by this very request.

    output: planned as one that may be replaced. Raises UserError for a file that is neither finished, nor left by a
    killed run of this request, nor to be replaced.
    """
    if not output.path.exists():
        output = replace(output, overwrite=overwrite)
        return output, plan_sidecar(output), False
    sidecar = next(
        (one for one in sidecars_of(output.path, output.kind) if describes(one) == output.path.name), None
    )
    if sidecar is not None:
        record = read_sidecar(sidecar)
        if _made_by(record, request, adapters) and record["output"]["sha256"] == content_hash(output.path):
            return output, sidecar, True
    is_own = is_writing(state_folder(output.path)) or (
        sidecar is None and _is_left(output, request, adapters)
    )
    if not (overwrite or is_own):
        plan_output(output.path)  # raises
    return output, plan_sidecar(output), False


def _is_left(output: Output, request: ModelRequest, adapters: Sequence[AdapterChoice]) -> bool:
    """True for an output that was killed before its sidecar: what is written in it is this request."""
    try:
        return _made_by(read_embedded(output.path, output.kind), request, adapters)
    except UserError:
        return False


def _made_by(record: Mapping[str, Any], request: ModelRequest, adapters: Sequence[AdapterChoice]) -> bool:
    loras = [(one["sha256"], one["weight"]) for one in record.get("loras", ())]
    return (
        record["settings"] == recorded_settings(request.settings)
        and record["fps"] == request.fps
        and Path(record["model"]["name"]).name == Path(model_name(request)).name
        and record.get("engine", {}).get("name", "torch") == request.engine
        and request.dtype in (None, record["device"]["dtype"])
        and loras == [(content_hash(Path(one.path)), one.weight) for one in adapters]
    )
