"""Fixtures: the bundled model exported once, and model folders of V2's shapes with random weights."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")


@pytest.fixture(scope="session", autouse=True)
def _own_build_record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A separate state folder: tests record nothing in the user's own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("EA_STATE_DIR", str(tmp_path_factory.mktemp("state")))
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _one_table_of_operators() -> Iterator[None]:
    """torch's exporter lists its thousand operators again for each graph, which takes half a second: here once."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    patch = pytest.MonkeyPatch()
    patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def random_models() -> ModuleType:
    """The module random_models.py."""
    path = Path(__file__).with_name("random_models.py")
    spec = spec_from_file_location("random_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["random_models"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The result of export_bundle for `ea export --onnx --model tiny`, all parts."""
    from ea_runtime.export.make import ExportRequest, export_bundle

    return export_bundle(ExportRequest("tiny", str(tmp_path_factory.mktemp("bundles") / "tiny-onnx")))
