"""Refusals before anything is written, with numbers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ea_runtime.errors import UserError
from ea_runtime.export import preflight


def graph(side: int) -> Any:
    """The graph y = x * x^T without weights; (side, 1) -> (side, side)."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    helper = onnx.helper
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, [side, 1])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, [side, 1])
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["y"]),
    ]
    return helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 20)]
    )


def test_a_tensor_that_cannot_be_counted_in_32_bits_is_refused() -> None:
    found = preflight.check_shapes(graph(46_340), "g")
    assert (found.tensor, found.shape, found.elements) == ("big", [46_340, 46_340], 2_147_395_600)
    with pytest.raises(UserError, match=r"the tensor big of shape \[46341, 46341\], 2,147,488,281 elements"):
        preflight.check_shapes(graph(46_341), "g")


def test_a_full_disk_and_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000_000))
    preflight.check_disk(tmp_path / "not" / "yet", 4_900_000_000)
    with pytest.raises(UserError, match=r"has 5\.00 GB left, the bundle needs 5\.10 GB"):
        preflight.check_disk(tmp_path, 5_100_000_000)
    monkeypatch.setattr(preflight, "available_memory", lambda: 2_000_000_000)
    preflight.check_memory(1_900_000_000)
    with pytest.raises(UserError, match=r"about 3\.00 GB of memory, 2\.00 GB are available"):
        preflight.check_memory(3_000_000_000)


def test_available_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = preflight.available_memory()
    assert found is None or found > 1 << 20
    monkeypatch.setenv("EA_EXPORT_ANYWAY", "1")
    assert preflight.available_memory() is None


def test_versions_with_known_faults() -> None:
    bad = preflight.version_notes({"torch": "2.9.0+cu128", "cudnn": "91002"})
    assert len(bad) == 2
    assert "17 times" in bad[0]
    assert not preflight.version_notes({"torch": "2.13.0", "cudnn": "92000"})
    assert not preflight.version_notes({"torch": "2.9.0"})
