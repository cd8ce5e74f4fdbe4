"""The JSON next to every output: the settings that made it, for `ea generate --from out.json` to make it again.

    {"ea_sidecar": 1, "settings": {"prompt": ..., "seed": ..., ...}, "fps": ...,
     "model": {"name", "sha256"}, "device": {"device", "name", "dtype", "threads"}, "versions": {...},
     "output": {"file", "kind", "sha256", "frames", "width", "height"}, "timings": {...}, "notes": [...],
     "loras": [{"file", "sha256", "weight", "summary"}, ...], "engine": {"name", "bundle"},
     "joins": [{"frame", "delta_e", "sharpness", "flow_jump"}, ...]}

`settings` holds arguments of VideoPipeline.__call__; `loras`, `engine` and `joins` (of windows) are there where some
were used. `output` of a signed file has its hash before it was signed too: `unsigned_sha256`.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.files.atomic import write_atomic
from ea_runtime.files.hashes import content_hash
from ea_runtime.files.texts import read_text
from ea_runtime.generation.recipe import read_embedded
from ea_runtime.generation.record import VERSION, check_record
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.windows import with_recorded_window
from ea_runtime.video.output import KINDS, Output

MAX_BYTES = 4 << 20
_LIBRARIES = ("torch", "diffusers", "transformers", "av", "pillow", "numpy")


def plan_sidecar(output: Output) -> Path:
    """The place for the sidecar of `output`: out.json for out.mp4, or out.mp4.json if out.json is taken.

    Raises UserError if that would replace a file without leave.
    """
    path = output.path
    places = sidecars_of(path, output.kind)
    for place in places:
        if not os.path.lexists(place):
            return place
        if describes(place) == path.name:
            if output.overwrite:
                return place
            raise UserError(f"{str(place)!r} exists already; give another name or --overwrite")
    raise UserError(f"{str(places[-1])!r} exists already and is not about {path.name!r}; give another name")


def sidecars_of(output: Path, kind: str) -> list[Path]:
    """The places where an output's sidecar may be, the usual one first."""
    named = output.with_name(f"{output.name}.json")
    return [named] if kind == "folder" else [output.with_suffix(".json"), named]


def describes(path: Path) -> str | None:
    """The file name that the sidecar at `path` is about; None if it is no sidecar."""
    try:
        return str(read_sidecar(path)["output"]["file"])
    except UserError:
        return None


def write_sidecar(path: Path, record: Mapping[str, Any]) -> None:
    """Write `record` whole or not at all. Raises UserError if that fails."""
    try:
        text = json.dumps({"ea_sidecar": VERSION, **record}, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomic(path, text + "\n")
    except OSError as error:
        raise UserError(
            f"{str(path)!r} cannot be written: {error.strerror or error}; the output that it describes is complete"
        ) from error


def read_sidecar(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record in a sidecar, its shape checked. Raises UserError in one line."""
    place = Path(path)
    name = repr(str(place))
    try:
        if not place.is_file():
            raise UserError(f"there is no sidecar file {name}; `ea generate` writes one next to each output")
        if place.stat().st_size > MAX_BYTES:
            raise UserError(f"{name} has more than {MAX_BYTES:,} bytes and is no sidecar of `ea generate`")
        record = json.loads(read_text(place))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{name} is no valid JSON ({str(error)[:100]}); give the .json next to an output"
        ) from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
    if not isinstance(record, dict) or "ea_sidecar" not in record:
        raise UserError(f"{name} is no sidecar of `ea generate`; give the .json next to an output")
    if record["ea_sidecar"] != VERSION:
        raise UserError(
            f"{name} is a sidecar of version {str(record['ea_sidecar'])[:20]}, "
            f"this program reads {VERSION}; update it"
        )
    check_record(record, name)
    return record


def read_recorded(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record that `--from` repeats: of a sidecar, or of an output, by its own sidecar or by what is written in it.

    Raises UserError in one line.
    """
    place = Path(path)
    kind = "folder" if place.is_dir() else KINDS.get(place.suffix.lower())
    if kind is None:
        return read_sidecar(place)
    return _of_own_sidecar(place, kind) or read_embedded(place, kind)


def _of_own_sidecar(output: Path, kind: str) -> dict[str, Any] | None:
    """The record of the sidecar next to an output, if it is there and about these very contents."""
    for place in sidecars_of(output, kind):
        if describes(place) == output.name:
            record = read_sidecar(place)
            return record if record["output"]["sha256"] == content_hash(output) else None
    return None


def request_of(record: Mapping[str, Any]) -> ModelRequest:
    """The request that a sidecar records, without its LoRAs, whose contents it records as well."""
    device, engine = record["device"], record.get("engine", {})
    return ModelRequest(
        **with_recorded_window(record["settings"]),
        model=record["model"]["name"],
        fps=record["fps"],
        device=device["device"],
        dtype=device["dtype"],
        engine=engine.get("name"),
        bundle=engine.get("bundle"),
        compile=device.get("compiled"),
        cuda_graphs=device.get("cuda_graphs"),
        quantize=device.get("quantize"),
        attention=device.get("attention"),
    )


def versions() -> dict[str, str]:
    """Versions of Python, of the plugin packages and of the libraries that a result depends on."""
    from ea_runtime.plugins.host import list_plugins

    found = {"python": platform.python_version(), "platform": platform.platform()}
    found |= {info.package: info.version for info in list_plugins()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
