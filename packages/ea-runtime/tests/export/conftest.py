"""Fixtures: a separate build record for each test, and bundles made by hand."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the build record."""
    folder = tmp_path / "state"
    monkeypatch.setenv("EA_STATE_DIR", str(folder))
    return folder


@pytest.fixture(scope="session")
def bundles() -> ModuleType:
    """The module crafted_bundles.py."""
    pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    path = Path(__file__).with_name("crafted_bundles.py")
    spec = spec_from_file_location("crafted_bundles", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
