"""A full disk is reported in one line, whichever library met it."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import SafetensorError

from ea_runtime.errors import UserError, writing


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
    ],
)
def test_a_full_disk(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught, writing(tmp_path / "run", "make room"):
        raise error
    assert str(caught.value) == f"'{tmp_path}/run' cannot be written: No space left on device; make room"


@pytest.mark.parametrize(
    "error", [SafetensorError("invalid header"), UserError("told already"), KeyError("x")]
)
def test_other_faults_pass(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, writing(tmp_path, "make room"):
        raise error
    assert caught.value is error
