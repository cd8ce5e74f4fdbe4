"""Sessions of ONNX Runtime: tensors are read and written in place, and runs share nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ea_runtime.errors import UserError
from ea_runtime.export.onnx_session import OnnxSession

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")


def write(path: Path, rows: int | str = 3) -> Path:
    """x + y, and the number of x's rows, as a graph."""
    helper, proto, sides = onnx.helper, onnx.TensorProto, [rows, 4]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "y"], ["sum"]), helper.make_node("Shape", ["x"], ["shape"])],
        "adds",
        [helper.make_tensor_value_info(name, proto.FLOAT, sides) for name in ("x", "y")],
        [
            helper.make_tensor_value_info("sum", proto.FLOAT, sides),
            helper.make_tensor_value_info("shape", proto.INT64, [2]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_a_run_reads_and_writes_in_place(tmp_path: Path) -> None:
    session = OnnxSession(write(tmp_path / "adds.onnx"), ["CPUExecutionProvider"])
    x, y = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 3).T  # another format, and not contiguous
    first = session.run({"x": x, "y": y})
    assert torch.equal(first["sum"], x.float() + y)
    assert first["shape"].tolist() == [3, 4]
    assert (first["sum"].dtype, first["shape"].dtype) == (torch.float32, torch.int64)
    kept = first["sum"].clone()
    second = session.run({"x": -x, "y": -y})
    assert torch.equal(first["sum"], kept)  # a second run does not write into the first one's
    assert torch.equal(second["sum"], -kept)


def test_a_graph_without_fixed_shapes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adds\.onnx: its output 'sum' has no fixed shape"):
        OnnxSession(write(tmp_path / "adds.onnx", "rows"), ["CPUExecutionProvider"])
