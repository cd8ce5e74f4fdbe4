"""Bundles made by hand: a valid one with one small graph, and a hundred ways to tamper with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, TensorProto, helper

OUTSIDE = "canary.txt"


def graph_with(location: str = "dit.weights", offset: int = 0, length: int = 64, domain: str = "") -> Any:
    """The graph y = x + w, with w kept in a file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        weight.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [16]) for name in "xy")
    node = helper.make_node("Add", ["x", "w"], ["y"], domain=domain)
    graph = helper.make_graph([node], "g", [x], [y], initializer=[weight])
    opsets = [helper.make_opsetid("", 23), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets)


def description(**changes: Any) -> dict[str, Any]:
    tensor = {"shape": [16], "dtype": "float32"}
    graph = {
        "name": "dit",
        "part": "dit",
        "file": "dit.onnx",
        "weights": "dit.weights",
        "engine": None,
        "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}],
    }
    size = dict.fromkeys(
        ("num_frames", "height", "width", "latent_frames", "latent_height", "latent_width", "rows"), 1
    )
    whole = {
        "ea_bundle": 1,
        "target": "onnx",
        "model": "tiny",
        "part_hashes": {"denoiser": "0" * 64},
        "size": size,
        "dtype": "fp32",
        "opset": 23,
        "graphs": [graph],
        "settings": {},
    }
    return whole | changes


def write(
    folder: Path, model: Any = None, described: Any = None, files: dict[str, Any] | None = None
) -> bytes:
    """Writes a bundle whose hashes are right; returns its manifest."""
    folder.mkdir(parents=True)
    (folder / "dit.onnx").write_bytes((model or graph_with()).SerializeToString())
    (folder / "dit.weights").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    (folder / "ea-bundle.json").write_text(json.dumps(described or description()))
    listed = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    manifest = json.dumps({"files": listed | (files or {})}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    return manifest


def _graph(**changes: Any) -> dict[str, Any]:
    whole = description()
    whole["graphs"][0] |= changes
    return whole


def crafted(root: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """(name, function that writes it) of a hundred hostile bundles; `root` holds the file that none may read."""
    outside = root / OUTSIDE
    places = (
        f"{outside} ../{OUTSIDE} ../../{OUTSIDE} ./../{OUTSIDE} sub/../../{OUTSIDE} /etc/passwd /dev/zero"
        " /proc/self/environ file:///etc/passwd C:\\secret ..\\secret . .. dit.weights/ ./dit.weights dit.onnx"
        " manifest.json DIT.WEIGHTS"
    ).split()
    places += ["", "dit.weights\0x"]
    for place in places:
        yield f"location {place!r}", lambda folder, place=place: write(folder, graph_with(place)) and None
    for offset, length in ((-1, 64), (64, 64), (0, 65), (1 << 62, 1 << 62), (0, -5), (4096, 0)):
        yield (
            f"offset {offset} {length}",
            lambda folder, o=offset, n=length: write(folder, graph_with(offset=o, length=n)) and None,
        )
    for domain in ("com.microsoft", "ai.onnx.ml", "evil", "pkg.x"):
        yield f"domain {domain}", lambda folder, d=domain: write(folder, graph_with(domain=d)) and None
    yield "hidden in an attribute", lambda folder: write(folder, _hidden("/etc/passwd")) and None
    yield (
        "hidden in sparse tensors",
        lambda folder: write(folder, _hidden("/etc/passwd", sparse=True)) and None,
    )
    yield "hidden in a branch", lambda folder: write(folder, _branch(f"../{OUTSIDE}")) and None
    yield "a function of its own", lambda folder: write(folder, _function()) and None
    for junk in (
        b"",
        b"\0" * 100,
        b"GIF89a",
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        os.urandom(500),
    ):
        yield f"no graph {junk[:4]!r}", lambda folder, junk=junk: _junk(folder, junk)
    names = [
        "../x",
        "/etc/passwd",
        "a/b",
        ".hidden",
        "",
        "a\nb",
        "a" * 200,
        "..",
        f"../{OUTSIDE}",
        "dit weights",
    ]
    for name in names:
        yield (
            f"manifest names {name[:20]!r}",
            lambda folder, n=name: write(folder, files={n: "0" * 64}) and None,
        )
        yield (
            f"graph file {name[:20]!r}",
            lambda folder, n=name: write(folder, described=_graph(file=n)) and None,
        )
        yield (
            f"weights {name[:20]!r}",
            lambda folder, n=name: write(folder, described=_graph(weights=n)) and None,
        )
        yield (
            f"engine {name[:20]!r}",
            lambda folder, n=name: write(folder, described=_graph(engine=n)) and None,
        )
    for digest in ("0" * 64, "x" * 64, "", 7, None, ["0" * 64]):
        yield f"hash {digest!r}"[:40], lambda folder, d=digest: write(folder, files={"dit.onnx": d}) and None
    for name in ("dit.onnx", "dit.weights", "ea-bundle.json", "manifest.json"):
        yield f"link {name}", lambda folder, n=name: _link(folder, n, outside)
        yield f"pipe {name}", lambda folder, n=name: _pipe(folder, n)
    spoiled = [
        {"ea_bundle": 2},
        {"ea_bundle": None},
        {"graphs": 7},
        {"graphs": [{}]},
        {"size": {}},
        {"size": {"x": 1}},
        {"target": "os.system"},
        {"opset": "x"},
        {"part_hashes": 7},
        {"settings": 5},
    ]
    for changes in spoiled:
        yield (
            f"described {changes}",
            lambda folder, c=changes: write(folder, described=description(**c)) and None,
        )


def _hidden(location: str, sparse: bool = False) -> Any:
    model = graph_with()
    inner = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    inner.external_data.add(key="location", value=location)
    inner.external_data.add(key="length", value="64")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=inner))
    if sparse:
        value = model.graph.node[-1].attribute[0]
        value.CopyFrom(AttributeProto(name="values", type=AttributeProto.SPARSE_TENSORS))
        value.sparse_tensors.add(values=inner)
    return model


def _branch(location: str) -> Any:
    model = graph_with()
    inner = graph_with(location).graph
    del inner.input[:]
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner))
    return model


def _function() -> Any:
    model = graph_with()
    node = helper.make_node("Add", ["a", "a"], ["b"])
    model.functions.append(
        helper.make_function("own", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 23)])
    )
    return model


def _junk(folder: Path, junk: bytes) -> None:
    class Raw:
        def SerializeToString(self) -> bytes:
            return junk

    write(folder, Raw())


def _link(folder: Path, name: str, outside: Path) -> None:
    write(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(outside)


def _pipe(folder: Path, name: str) -> None:
    write(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)


__all__ = ["OUTSIDE", "crafted", "description", "graph_with", "write"]
