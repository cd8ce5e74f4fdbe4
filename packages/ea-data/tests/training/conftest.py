"""Fixtures for tests of training sets: the small files of clips_for_tests.py."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

_FILE = Path(__file__).parent / "clips_for_tests.py"


@pytest.fixture(scope="session")
def clips() -> ModuleType:
    """The module clips_for_tests.py."""
    spec = spec_from_file_location(_FILE.stem, _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(_FILE.stem, module_from_spec(spec))
    spec.loader.exec_module(module)
    return module
