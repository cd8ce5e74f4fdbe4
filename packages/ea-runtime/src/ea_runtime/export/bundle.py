"""Bundles: folders that `ea export` writes, and the one way to open them.

    ea-bundle.json      description: target, model, size, dtype, graphs with inputs and outputs, versions
    GRAPH.onnx          one static graph; its weights are offsets into the part's file
    PART.weights        weights of a part, shared by its graphs
    GRAPH.engine        for TensorRT: the built engine
    report.html, report.json    preflight and parity
    manifest.json       sha256 of every file

A graph is nearly code and an engine is code: a bundle is opened only if this user's build record has the sha256 of
its manifest (build_record.py), every file has its hash, and no graph names data outside. All of that is checked before
any of it reaches a runtime.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from ea_runtime.errors import UserError
from ea_runtime.export import build_record
from ea_runtime.export.parts import EXPORT_PARTS, Size
from ea_runtime.files.atomic import MANIFEST
from ea_runtime.files.safe import plain, quote, quote_path, read_json
from ea_runtime.settings import validate

DESCRIPTION = "ea-bundle.json"
VERSION = 1
TARGETS = ("onnx", "trt", "trt-rtx")
_AGAIN = "; export it again"
MAX_JSON = 16 << 20
MAX_GRAPH = 2 << 30
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HASH = re.compile(r"[0-9a-f]{64}")


class TensorInfo(BaseModel, frozen=True):
    """An input or output of a graph. dtype: torch's name, "float16"."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class GraphInfo(BaseModel, frozen=True):
    """A graph of a bundle. file: the .onnx; engine: the built engine, for TensorRT."""

    name: str
    part: str
    file: str
    weights: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    engine: str | None = None


class Description(BaseModel, frozen=True):
    """The contents of ea-bundle.json. part_hashes: of the model's parts that the bundle was made from."""

    ea_bundle: Literal[1] = VERSION
    target: str
    model: str
    part_hashes: Mapping[str, str]
    size: Size
    dtype: str
    opset: int
    graphs: tuple[GraphInfo, ...]
    settings: Mapping[str, Any]


class Bundle(Description, frozen=True):
    """A bundle that was checked. folder: its real path. digest: sha256 of its manifest."""

    folder: Path
    digest: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that it holds."""
        held = {graph.part for graph in self.graphs}
        return tuple(part for part in EXPORT_PARTS if part in held)


def open_bundle(folder: str | os.PathLike[str], target: str | None = None) -> Bundle:
    """Checks a bundle and reads its description.

    target: what it must have been made for. Raises UserError, one line: no bundle, not in this user's build record, a
    file that has changed or is missing, a graph that names data outside, another target.
    """
    path, manifest = _manifest(folder)
    if not build_record.knows(hashlib.sha256(manifest).hexdigest()):
        raise UserError(
            f"bundle {quote_path(path)} is not in the build record of this user ({build_record.place()}); build it"
            " with `ea export`, or, if you trust where it comes from, run `ea bundles accept` on it"
        )
    bundle = _inspect(path, manifest)
    if target is not None and bundle.target != target:
        raise UserError(f"bundle {quote_path(path)} was made for engine {bundle.target!r}, got {target!r}")
    return bundle


def inspect_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """As `open_bundle` without the build record: to look at a bundle from elsewhere. Nothing is run."""
    return _inspect(*_manifest(folder))


def _manifest(folder: str | os.PathLike[str]) -> tuple[Path, bytes]:
    """The bundle's real path, and the contents of its manifest."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"`bundle` must be a folder that `ea export` wrote, got {quote_path(path)}")
    return path.resolve(), _read(path.resolve(), MANIFEST, MAX_JSON)


def record(described: Description, folder: Path, digest: str, how: str) -> None:
    """Adds a bundle to this user's build record. digest: of its manifest. how: "built" or "accepted"."""
    about = {"target": described.target, "model": described.model}
    about |= {"size": described.size.words(), "dtype": described.dtype}
    build_record.add(digest, how=how, bundle=str(folder), **about)


def _inspect(folder: Path, manifest: bytes) -> Bundle:
    files = check_files(folder, manifest)
    if DESCRIPTION not in files:  # else it could be changed later
        raise UserError(f"bundle {quote_path(folder)} has no {DESCRIPTION} in its {MANIFEST}; do not use it")
    digest = hashlib.sha256(manifest).hexdigest()
    bundle = _parse(folder, digest, _json(_read(folder, DESCRIPTION, MAX_JSON), DESCRIPTION), files)
    for graph in bundle.graphs:
        check_graph(folder, graph)
    return bundle


def check_files(folder: Path, manifest: bytes) -> set[str]:
    """Names of the bundle's files, each with its hash, all of them beneath `folder`. Raises UserError."""
    listed = _json(manifest, MANIFEST).get("files")
    where = f"bundle {quote_path(folder)}"
    if not isinstance(listed, dict) or not listed or len(listed) > 1000:
        raise UserError(f"{where} has a damaged {MANIFEST}; export it again")
    for name, digest in listed.items():
        is_hash = isinstance(digest, str) and _HASH.fullmatch(digest)
        if not _NAME.fullmatch(name) or not is_hash:
            raise UserError(
                f"{where} lists {quote(name)}, which is no plain file name with a sha256; do not use it"
            )
    for name, digest in listed.items():
        with _open(folder, name) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != digest:
            raise UserError(
                f"{where}: {quote(name)} is not what was built (its sha256 differs); export it again"
            )
    return set(listed)


def check_graph(folder: Path, graph: GraphInfo) -> None:
    """Raises UserError unless every tensor that a graph keeps outside of itself is in its part's file."""
    import onnx

    raw = _read(folder, graph.file, MAX_GRAPH)
    size = (folder / graph.weights).stat().st_size
    try:
        model = onnx.load_model_from_string(raw)
    except Exception as error:  # protobuf's own kinds
        raise UserError(
            f"{quote(graph.file)} is no ONNX graph: {plain(error, 100)}; export it again"
        ) from error
    named = [value.name for value in (*model.graph.input, *model.graph.output)]
    if named != [one.name for one in (*graph.inputs, *graph.outputs)]:
        raise UserError(
            f"{quote(graph.file)} has other inputs and outputs than {DESCRIPTION} says; export it again"
        )
    graphs = list(_graphs(model.graph))
    for tensor in (tensor for inner in graphs for tensor in _tensors(inner)):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if not entries and tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        try:
            offset, length = int(entries.get("offset", "0")), int(entries["length"])
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{quote(graph.file)} has a damaged reference to its weights; do not use it"
            ) from error
        is_inside = offset >= 0 and length >= 0 and offset + length <= size
        if entries.get("location") != graph.weights or not is_inside:
            raise UserError(
                f"{quote(graph.file)} names data in {quote(entries.get('location'))} ({offset}, {length} bytes),"
                f" outside its weights {graph.weights!r} of {size} bytes; do not use this bundle"
            )
    domains = {node.domain for inner in graphs for node in inner.node}
    domains |= {entry.domain for entry in model.opset_import}
    foreign = sorted(domains - {"", "ai.onnx"})
    if foreign or model.functions:
        raise UserError(
            f"{quote(graph.file)} uses operators of {quote(foreign[0] if foreign else 'its own')}; only ONNX's own"
            " ones are run"
        )


def weight_names(folder: Path, graph: GraphInfo) -> set[str]:
    """The initializers of a graph of an opened bundle. A weight that its size does not need (see parity) is in none."""
    import onnx

    model = onnx.load_model_from_string(_read(folder, graph.file, MAX_GRAPH))
    return {tensor.name for tensor in model.graph.initializer}


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph and all graphs in its nodes' attributes."""
    yield graph
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            yield from _graphs(inner)


def _tensors(graph: Any) -> Iterator[Any]:
    """The tensors of one graph. A field that is not set reads as an empty tensor, which names no file."""
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    yield from graph.initializer
    sparse = list(graph.sparse_initializer)
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
    for one in sparse:
        yield from (one.values, one.indices)


def _open(folder: Path, name: str) -> Any:
    """A regular file directly in `folder`; a link is refused before it is followed."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(folder / name, flags)
    except OSError as error:
        raise UserError(
            f"{quote(name)} of bundle {quote_path(folder)} is missing, or no regular file; export it again"
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{quote(name)} of bundle {quote_path(folder)} is no regular file; export it again")
    return os.fdopen(handle, "rb")


def _read(folder: Path, name: str, limit: int) -> bytes:
    with _open(folder, name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(
            f"{quote(name)} of bundle {quote_path(folder)} has more than {limit:,} bytes; do not use it"
        )
    return data


def _json(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} of the bundle is no valid JSON ({plain(error)}); export it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{name} of the bundle must hold a JSON object; export it again")
    return value


def _parse(folder: Path, digest: str, value: dict[str, Any], files: set[str]) -> Bundle:
    table = {**value, "folder": folder, "digest": digest}
    bundle = validate(Bundle, table, f"{DESCRIPTION} of the bundle", _AGAIN)
    graphs = bundle.graphs
    named = {name for g in graphs for name in (g.file, g.weights, g.engine) if name is not None}
    is_known = bundle.target in TARGETS and all(graph.part in EXPORT_PARTS for graph in graphs)
    if not is_known or not named <= files or len({g.name for g in graphs}) != len(graphs):
        raise UserError(f"{DESCRIPTION} of the bundle names what it does not have{_AGAIN}")
    return bundle


def read_size(folder: str | os.PathLike[str]) -> dict[str, int]:
    """num_frames, height, width, read before torch is imported; opening the bundle checks the rest.

    Raises UserError where the folder is no bundle.
    """
    path = Path(folder)
    where = f"{DESCRIPTION} of {quote_path(path)}"
    size = validate(Description, read_json(path, DESCRIPTION), where, _AGAIN).size
    return {"num_frames": size.num_frames, "height": size.height, "width": size.width}
