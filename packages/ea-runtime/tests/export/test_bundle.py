"""Only a user's own, unchanged bundles are opened, and nothing outside of them (RELIABILITY row 15)."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_runtime.cli.main import run
from ea_runtime.errors import UserError
from ea_runtime.export import build_record, bundle
from ea_runtime.export.bundle import inspect_bundle, open_bundle


class Watch:
    """Paths that Python opens while the hook listens; audit hooks cannot be removed."""

    def __init__(self) -> None:
        self.opened: list[str] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.opened is not None and event == "open" and isinstance(args[0], (str, bytes)):
            self.opened.append(os.path.abspath(os.fsdecode(args[0])))

    @contextmanager
    def outside(self, *allowed: Path) -> Iterator[list[str]]:
        """A list, filled at exit with opened paths that are neither below `allowed` nor part of Python's
        installation."""
        found: list[str] = []
        self.opened = []
        try:
            yield found
        finally:
            places = (
                *map(str, allowed),
                sys.prefix,
                sys.base_prefix,
                str(Path(__file__).resolve().parents[3]),
            )
            found += [path for path in self.opened if not path.startswith(places)]
            self.opened = None


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def record(manifest: bytes) -> None:
    build_record.add(hashlib.sha256(manifest).hexdigest(), how="built")


def test_a_bundle_of_ones_own_is_opened(bundles: ModuleType, tmp_path: Path) -> None:
    record(bundles.write(tmp_path / "good"))
    opened = open_bundle(tmp_path / "good", "onnx")
    assert (opened.parts, opened.graphs[0].inputs[0].shape, opened.size.words()) == (
        ("dit",),
        (16,),
        "a picture of 1x1",
    )
    with pytest.raises(UserError, match="was made for engine 'onnx', got 'trt'"):
        open_bundle(tmp_path / "good", "trt")


def test_a_hundred_crafted_bundles_are_refused(
    bundles: ModuleType, tmp_path: Path, watch: Watch, state: Path
) -> None:
    """All are in the build record, as if their author had got that far: the second line of defence holds by itself."""
    (tmp_path / bundles.OUTSIDE).write_text("nobody reads this")
    cases = list(bundles.crafted(tmp_path))
    assert len(cases) >= 100
    accepted, leaked, messages = [], [], []
    for number, (name, make) in enumerate(cases):
        folder = tmp_path / "crafted" / str(number)
        make(folder)
        if (folder / "manifest.json").is_file() and not (folder / "manifest.json").is_symlink():
            record((folder / "manifest.json").read_bytes())
        with watch.outside(folder, state) as outside:
            try:
                open_bundle(folder)
                accepted.append(name)
            except UserError as error:
                messages.append(str(error))
        leaked += [f"{name}: {path}" for path in outside]
    assert not accepted
    assert not leaked
    assert all("\n" not in message for message in messages)


def test_a_hundred_unknown_bundles_are_refused_unread(
    bundles: ModuleType, tmp_path: Path, watch: Watch, state: Path
) -> None:
    for number in range(100):
        folder = tmp_path / "unknown" / str(number)
        bundles.write(folder, described=bundles.description(model=f"model {number}"))
        with (
            watch.outside(folder / "manifest.json", state) as read,
            pytest.raises(UserError, match="build record"),
        ):
            open_bundle(folder)
        assert not read, "no file but the manifest is opened"


def test_without_the_checks_crafted_bundles_get_in(
    bundles: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "check_graph", lambda folder, graph: None)
    (tmp_path / bundles.OUTSIDE).write_text("x")
    manifest = bundles.write(tmp_path / "evil", bundles.graph_with(f"../{bundles.OUTSIDE}"))
    record(manifest)
    assert open_bundle(tmp_path / "evil").target == "onnx"


def test_accepting_takes_a_bundle_from_elsewhere(
    bundles: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundles.write(tmp_path / "other")
    assert run(["bundles", "check", str(tmp_path / "other")]) == 2
    assert "ea bundles accept" in capsys.readouterr().err
    assert run(["bundles", "accept", "--yes", str(tmp_path / "other")]) == 0
    assert run(["bundles", "check", str(tmp_path / "other")]) == 0
    assert "dit: x [16] float32" in capsys.readouterr().out
    assert run(["bundles", "list"]) == 0
    assert "accepted  onnx  tiny" in capsys.readouterr().out
    bundles.write(tmp_path / "evil", bundles.graph_with("/etc/passwd"))
    assert run(["bundles", "accept", "--yes", str(tmp_path / "evil")]) == 2


def test_what_is_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match="bundle"):
            inspect_bundle(folder)


def test_lines_of_the_record_that_cannot_be_read_grant_nothing(state: Path) -> None:
    build_record.add("a" * 64, how="built")
    with (state / "builds.jsonl").open("a") as file:
        file.write('{"sha256": "' + "b" * 64 + '"\n[1]\n{"sha256": 7}\n\0\n')
    build_record.add("c" * 64, how="built")
    assert [build_record.knows(letter * 64) for letter in "abc"] == [True, False, True]


def test_a_record_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EA_STATE_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="EA_STATE_DIR"):
        build_record.require_writable()


def test_the_record_is_in_ea_state_dir_or_the_users_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EA_STATE_DIR", str(tmp_path))
    assert build_record.place() == tmp_path / "builds.jsonl"
    monkeypatch.delenv("EA_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert build_record.place() == tmp_path / "ea" / "builds.jsonl"


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- each layer alone: a fault of one kind, everything else right -----------------------------------------------


def test_a_bundle_is_what_was_written(bundles: ModuleType, tmp_path: Path) -> None:
    manifest = bundles.write(tmp_path / "good")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    found = inspect_bundle(tmp_path / "link")
    assert found.folder == (tmp_path / "good").resolve()
    assert found.digest == hashlib.sha256(manifest).hexdigest()
    described = {**bundles.description(), "graphs": None, "size": None}
    assert {name: getattr(found, name) for name in ("target", "model", "dtype", "opset")} == {
        name: described[name] for name in ("target", "model", "dtype", "opset")
    }
    assert dict(found.part_hashes) == described["part_hashes"]
    assert found.parts == ("dit",)
    assert bundle.weight_names(found.folder, found.graphs[0]) == {"w"}
    assert bundle.read_size(tmp_path / "good") == {"num_frames": 1, "height": 1, "width": 1}
    assert bundle.TARGETS == ("onnx", "trt", "trt-rtx")
    graph = found.graphs[0]
    plain = bundle.Description(**bundles.description())
    for one, name in ((found, "target"), (plain, "target"), (graph, "file"), (graph.inputs[0], "name")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(one, name, "trt")


def test_a_description_is_written_in_version_1(bundles: ModuleType) -> None:
    values = {name: value for name, value in bundles.description().items() if name != "ea_bundle"}
    assert bundle.Description(**values).model_dump()["ea_bundle"] == 1


def test_a_bundle_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("file", "none"):
        line = refused(inspect_bundle, tmp_path / name)
        assert line.startswith("`bundle` must be a folder that `ea export` wrote, got ")


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    names=st.lists(st.text("aB9._-", max_size=6).map("x".__add__), unique_by=str.lower, max_size=4),
    data=st.binary(max_size=9),
    harm=st.integers(0, 3),
)
def test_any_manifest_comes_back_and_any_harm_is_seen(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: bytes, harm: int
) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    hashes = {name: hashlib.sha256(name.encode() + data).hexdigest() for name in names}
    for name in names:
        (folder / name).write_bytes(name.encode() + data)
    manifest = json.dumps({"files": hashes}).encode()
    if not names:
        assert "has a damaged manifest.json" in refused(bundle.check_files, folder, manifest)
        return
    assert bundle.check_files(folder, manifest) == set(names)
    harmed = folder / names[harm % len(names)]
    harmed.write_bytes(harmed.read_bytes() + b"x")
    assert "is not what was built (its sha256 differs); export it again" in refused(
        bundle.check_files, folder, manifest
    )
    harmed.unlink()
    assert "is missing, or no regular file" in refused(bundle.check_files, folder, manifest)


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"files": {}},
        {"files": ["a"]},
        {"files": None},
        {"files": {str(n): "0" * 64 for n in range(1001)}},
    ],
)
def test_a_damaged_manifest(tmp_path: Path, manifest: Any) -> None:
    line = refused(bundle.check_files, tmp_path, json.dumps(manifest).encode())
    assert line.endswith("has a damaged manifest.json; export it again")


def test_a_thousand_files_are_looked_for(tmp_path: Path) -> None:
    many = {str(n): "0" * 64 for n in range(1000)}
    assert "is missing" in refused(bundle.check_files, tmp_path, json.dumps({"files": many}).encode())


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/b", ".x", "", "a\nb", "a\n", "a" * 129, "..", "a b", "a\\b", "ä"]
)
def test_a_manifest_names_plain_files(tmp_path: Path, name: str) -> None:
    """Checked by itself: a file of the right hash may be there."""
    listed = {"files": {name: hashlib.sha256(b"x").hexdigest()}}
    line = refused(bundle.check_files, tmp_path, json.dumps(listed).encode())
    assert "which is no plain file name with a sha256; do not use it" in line


@pytest.mark.parametrize("digest", ["0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", 7, None, ["0" * 64]])
def test_a_manifest_has_hashes(tmp_path: Path, digest: Any) -> None:
    (tmp_path / "a").write_text("x")
    line = refused(bundle.check_files, tmp_path, json.dumps({"files": {"a": digest}}).encode())
    assert "lists 'a', which is no plain file name with a sha256" in line


def test_the_longest_name(tmp_path: Path) -> None:
    name = "a" * 128
    (tmp_path / name).write_bytes(b"x")
    assert bundle.check_files(
        tmp_path, json.dumps({"files": {name: hashlib.sha256(b"x").hexdigest()}}).encode()
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{]", "is no valid JSON"),
        (b'{"a": "\xff"}', "is no valid JSON"),
        (b"[" * 100_000, "is no valid JSON"),
        (b"[]", "must hold a JSON object"),
    ],
)
def test_json_that_is_none(tmp_path: Path, data: bytes, message: str) -> None:
    assert refused(bundle.check_files, tmp_path, data).startswith(f"manifest.json of the bundle {message}")


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert bundle._read(tmp_path, "a", 5) == b"12345"
    assert "has more than 4 bytes; do not use it" in refused(bundle._read, tmp_path, "a", 4)
    assert (bundle.MAX_JSON, bundle.MAX_GRAPH) == (16 << 20, 2 << 30)


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes are POSIX's")
def test_links_pipes_and_folders_are_no_files_of_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert bundle._read(tmp_path, "real", 9) == b"x"

    def free_handle() -> int:
        handle = os.open(os.devnull, os.O_RDONLY)
        os.close(handle)
        return handle

    before = free_handle()
    for name in ("link", "pipe", "folder", "none"):
        assert "regular file; export it again" in refused(bundle._read, tmp_path, name, 9)
    assert free_handle() == before  # what is refused is closed


def test_a_description_is_in_the_manifest(bundles: ModuleType, tmp_path: Path) -> None:
    listed = json.loads(bundles.write(tmp_path / "b"))
    del listed["files"]["ea-bundle.json"]
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(listed))
    line = refused(inspect_bundle, tmp_path / "b")
    assert line.endswith("has no ea-bundle.json in its manifest.json; do not use it")


def described(bundles: ModuleType, **changes: Any) -> dict[str, Any]:
    whole = bundles.description()
    whole["graphs"][0] |= changes.pop("graph", {})
    return whole | changes


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "os"},
        {"graph": {"part": "other"}},
        {"graph": {"file": "gone.onnx"}},
        {"graph": {"weights": "gone.weights"}},
        {"graph": {"engine": "gone.engine"}},
    ],
)
def test_a_description_names_what_is_there(
    bundles: ModuleType, tmp_path: Path, changes: dict[str, Any]
) -> None:
    bundles.write(tmp_path / "b", described=described(bundles, **changes))
    assert "names what it does not have; export it again" in refused(inspect_bundle, tmp_path / "b")


def test_graphs_have_names_of_their_own_and_engines_are_files(bundles: ModuleType, tmp_path: Path) -> None:
    whole = bundles.description()
    bundles.write(tmp_path / "twice", described=whole | {"graphs": whole["graphs"] * 2})
    assert "names what it does not have" in refused(inspect_bundle, tmp_path / "twice")
    other = {**whole["graphs"][0], "name": "second", "part": "text"}
    bundles.write(tmp_path / "two", described=whole | {"graphs": [other, *whole["graphs"]]})
    assert inspect_bundle(tmp_path / "two").parts == ("dit", "text")
    bundles.write(
        tmp_path / "engine", described=described(bundles, graph={"engine": "dit.weights"}, target="trt")
    )
    assert inspect_bundle(tmp_path / "engine").graphs[0].engine == "dit.weights"


@pytest.mark.parametrize(
    "key", ["target", "model", "part_hashes", "size", "dtype", "opset", "graphs", "settings"]
)
def test_each_key_of_a_description_is_needed(bundles: ModuleType, tmp_path: Path, key: str) -> None:
    whole = bundles.description()
    del whole[key]
    bundles.write(tmp_path / "b", described=whole)
    line = refused(inspect_bundle, tmp_path / "b")
    assert line == f"ea-bundle.json of the bundle: key `{key}` is missing; export it again"


@pytest.mark.parametrize(
    ("offset", "length", "is_inside"),
    [
        *((offset, length, True) for offset, length in ((0, 64), (60, 4), (64, 0), (0, 0))),
        *((offset, length, False) for offset, length in ((60, 5), (-1, 4), (4, -1), (65, 0))),
    ],
)
def test_data_is_inside_the_weights_to_the_last_byte(
    bundles: ModuleType, tmp_path: Path, offset: int, length: int, is_inside: bool
) -> None:
    bundles.write(tmp_path / "b", bundles.graph_with(offset=offset, length=length))
    if is_inside:
        inspect_bundle(tmp_path / "b")
    else:
        line = refused(inspect_bundle, tmp_path / "b")
        assert (
            f"({offset}, {length} bytes), outside its weights 'dit.weights' of 64 bytes; do not use" in line
        )


def test_references_without_a_place_a_length_or_a_number(bundles: ModuleType, tmp_path: Path) -> None:
    for number, (key, value, message) in enumerate(
        (
            ("location", None, "names data in None"),
            ("length", None, "has a damaged reference to its weights"),
            ("length", "x", "has a damaged reference to its weights"),
            ("offset", "x", "has a damaged reference to its weights"),
        )
    ):
        model = bundles.graph_with()
        entries = model.graph.initializer[0].external_data
        (entry,) = [one for one in entries if one.key == key]
        if value is None:
            entries.remove(entry)
        else:
            entry.value = value
        bundles.write(tmp_path / str(number), model)
        assert message in refused(inspect_bundle, tmp_path / str(number))
    model = bundles.graph_with()
    entries = model.graph.initializer[0].external_data
    entries.remove(next(one for one in entries if one.key == "offset"))  # 0 by the format
    bundles.write(tmp_path / "zero", model)
    inspect_bundle(tmp_path / "zero")


def test_a_reference_counts_with_and_without_the_mark_that_it_is_one(
    bundles: ModuleType, tmp_path: Path
) -> None:
    marked = bundles.graph_with("elsewhere")
    del marked.graph.initializer[0].external_data[:]
    bundles.write(tmp_path / "marked", marked)
    assert "has a damaged reference to its weights" in refused(inspect_bundle, tmp_path / "marked")
    unmarked = bundles.graph_with("elsewhere")
    unmarked.graph.initializer[0].data_location = 0
    bundles.write(tmp_path / "unmarked", unmarked)
    assert "names data in 'elsewhere'" in refused(inspect_bundle, tmp_path / "unmarked")


@pytest.mark.parametrize(
    "kind", ["t", "tensors", "sparse_tensor", "sparse_tensors", "sparse_initializer", "g", "graphs"]
)
@pytest.mark.parametrize("half", ["values", "indices"])
def test_data_outside_is_found_wherever_a_graph_may_hold_a_tensor(
    bundles: ModuleType, tmp_path: Path, kind: str, half: str
) -> None:
    from onnx import helper

    model, outside = bundles.graph_with(), bundles.graph_with("elsewhere").graph
    tensor = outside.initializer[0]
    node = helper.make_node("Identity", ["x"], ["z"])
    attribute = node.attribute.add(name="a")
    if kind == "t":
        attribute.t.CopyFrom(tensor)
    elif kind == "tensors":
        attribute.tensors.append(tensor)
    elif kind == "sparse_tensor":
        getattr(attribute.sparse_tensor, half).CopyFrom(tensor)
    elif kind == "sparse_tensors":
        getattr(attribute.sparse_tensors.add(), half).CopyFrom(tensor)
    elif kind == "sparse_initializer":
        getattr(model.graph.sparse_initializer.add(), half).CopyFrom(tensor)
    elif kind == "g":
        attribute.g.CopyFrom(outside)
    else:
        attribute.graphs.append(outside)
    model.graph.node.append(node)
    bundles.write(tmp_path / "b", model)
    assert "names data in 'elsewhere'" in refused(inspect_bundle, tmp_path / "b")


def test_operators_are_onnxs_own_at_any_depth(bundles: ModuleType, tmp_path: Path) -> None:
    from onnx import helper

    bundles.write(tmp_path / "own", bundles.graph_with(domain="ai.onnx"))
    inspect_bundle(tmp_path / "own")
    for number, place in enumerate(("node", "inner", "opset")):
        model = bundles.graph_with()
        if place == "node":
            model.graph.node[0].domain = "evil"
        elif place == "inner":
            model.graph.node[0].attribute.add(name="a").g.node.append(
                helper.make_node("X", [], [], domain="evil")
            )
        else:
            model.opset_import.add(domain="evil", version=1)
        bundles.write(tmp_path / str(number), model)
        assert "uses operators of 'evil'; only ONNX's own ones are run" in refused(
            inspect_bundle, tmp_path / str(number)
        )
    model = bundles.graph_with()
    model.functions.add(name="f")
    bundles.write(tmp_path / "function", model)
    assert "uses operators of 'its own'" in refused(inspect_bundle, tmp_path / "function")


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_graph_has_the_inputs_and_outputs_that_are_described(
    bundles: ModuleType, tmp_path: Path, side: str
) -> None:
    bundles.write(
        tmp_path / "b",
        described=described(bundles, graph={side: [{"name": "other", "shape": [16], "dtype": "float32"}]}),
    )
    assert "has other inputs and outputs than ea-bundle.json says; export it again" in refused(
        inspect_bundle, tmp_path / "b"
    )


def test_a_bundle_is_recorded_with_what_it_is(bundles: ModuleType, tmp_path: Path) -> None:
    manifest = bundles.write(tmp_path / "b")
    assert "is not in the build record of this user" in refused(open_bundle, tmp_path / "b")
    found = inspect_bundle(tmp_path / "b")
    bundle.record(found, found.folder, found.digest, "accepted")
    (entry,) = build_record.entries()
    del entry["date"]
    assert entry == {
        "sha256": hashlib.sha256(manifest).hexdigest(),
        "how": "accepted",
        "bundle": str(found.folder),
        "target": "onnx",
        "model": "tiny",
        "size": "a picture of 1x1",
        "dtype": "fp32",
    }
    assert open_bundle(tmp_path / "b") == found
