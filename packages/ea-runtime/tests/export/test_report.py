"""The report's page: every value escaped, errors marked, nothing loaded over the network."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import UndefinedError

from ea_runtime.export.report import page


def error(name: str, relative: float) -> dict[str, Any]:
    return {"name": name, "max_abs": relative, "relative": relative, "mean_relative": relative}


def report() -> dict[str, Any]:
    compared = {"graph": "g<1>", "state": "compared", "size": "a picture", "blocks": []}
    shape = {"tensor": "t", "shape": [2, 3], "elements": 1234, "without_shape": 0, "attention_scores": 5}
    built = {
        "engine_bytes": 12_345_678,
        "activation_bytes": None,
        "weights_bytes": 2 * 10**9,
        "layers": 1500,
        "seconds": 1.25,
        "warnings": ["<script>"],
    }
    return {
        "model": "a & b",
        "size": "18 frames of 64x64",
        "rows": 1,
        "dtype": "fp16",
        "opset": 23,
        "target": "trt-rtx",
        "limit": 2e-2,
        "parity": [compared | {"outputs": [error("good", 1e-4), error("bad", float("inf"))]}],
        "canaries": [],
        "builds": {"g<1>": built},
        "preflight": {
            "largest_tensors": {"g<1>": shape},
            "limit_elements": 1 << 31,
            "weights_bytes": 0,
            "versions": {"torch": "2"},
            "notes": ["<b>"],
        },
        "weights": {"dit": {"used": 3, "biases": 1, "norms": {"GroupNorm(32)": 2}, "unused": ["w<"]}},
        "seconds": {"tracing": 1.0},
    }


def test_every_value_is_escaped() -> None:
    text = page(report())
    assert "a &amp; b, 18 frames of 64x64, 1 row a pass" in text
    assert "g&lt;1&gt;: &lt;script&gt;" in text
    assert "1 w&lt;" in text
    assert "&lt;b&gt;" in text
    for word in ("<script", "://", "src=", "<link", "@import"):
        assert word not in text


def test_errors_above_the_limit_are_marked() -> None:
    good, bad = (line for line in page(report()).splitlines() if "class=bar" in line and "<td>" in line)
    assert 'class="over"' not in good
    assert "width:50%" in good
    assert 'class="over"' in bad
    assert "width:100%" in bad


def test_figures_of_an_engine() -> None:
    assert "12.3 MB<td class=n>unknown<td class=n>2.00 GB<td class=n>1,500<td class=n>1.2" in page(report())
    assert "<h2>Engines</h2>" not in page(report() | {"builds": {}})


def test_a_missing_value_is_an_error() -> None:
    lacking = report()
    del lacking["model"]
    with pytest.raises(UndefinedError, match="model"):
        page(lacking)
