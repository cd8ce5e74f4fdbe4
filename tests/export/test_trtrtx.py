"""TensorRT-RTX parses and builds our graphs without a GPU: a small model, and the published sizes at 768x768x144.

Nothing is run, since that needs a GPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (extra trt-rtx)")
if torch.cuda.is_available():
    pytest.skip("these tests tell what a machine without a GPU does", allow_module_level=True)

from ea_runtime import VideoPipeline
from ea_runtime.cli.main import run
from ea_runtime.errors import UserError
from ea_runtime.export import tensorrt_build
from ea_runtime.export.bundle import open_bundle
from ea_runtime.export.make import ExportRequest, export_bundle
from ea_runtime.export.preflight import MAX_ELEMENTS

pytestmark = pytest.mark.trtrtx
FULL = os.environ.get("EA_FULL") == "1"
#: activation memory in the builder's log, GB (a decoder written as in the reference takes 10.15)
CEILING = {"vae-decoder-causal-3": 7.0, "vae-encoder-causal-9": 7.0, "dit": 5.0}


def check(report: Any) -> None:
    assert report["builds"].keys() == set(report["graphs"])
    for name, built in report["builds"].items():
        assert built["engine_bytes"] > 1000
        assert built["activation_bytes"] is not None, "the log has the activation memory"
        assert built["activation_bytes"] < CEILING[name] * 1e9
        largest = report["preflight"]["largest_tensors"][name]
        assert 0 < largest["elements"] < MAX_ELEMENTS
        assert largest["without_shape"] == 0


@pytest.mark.slow
def test_all_parts(random_models: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a model as `tiny` with fewer layers."""
    model = str(random_models.write_small(tmp_path / "model"))
    words = ["export", "--model", model, "--trt-rtx", "--parity", "off", "--capability", "sm89"]
    assert run([*words, "-o", str(tmp_path / "tiny")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "tiny")
    bundle = open_bundle(tmp_path / "tiny", "trt-rtx")
    assert bundle.parts == ("vae-decoder", "vae-encoder", "dit", "text")
    assert all(
        graph.engine is not None and (bundle.folder / graph.engine).stat().st_size for graph in bundle.graphs
    )
    page = (bundle.folder / "report.html").read_text(encoding="utf-8")
    assert "activation memory" in page
    with pytest.raises(UserError, match="engine 'trt-rtx' needs an NVIDIA GPU"):
        VideoPipeline.from_pretrained(model, engine="trt-rtx", bundle=bundle.folder)


def build(random_models: ModuleType, folder: Path, part: str, dtype: str, **dit: Any) -> Any:
    # each kind of layer once, at the published widths and frames; under EA_FULL=1 the published depth in bf16
    depth = 2 if dtype == "bf16" and FULL else 1
    vae = random_models.FULL_VAE | {"layers_per_block": depth} if part.startswith("vae") else None
    model = random_models.write_model(folder / "model", vae, None if vae else dit)
    side = 512 if "in_channels" in dit else 768
    size = {"num_frames": 144, "height": side, "width": side}
    out = str(folder / "bundle")
    request = ExportRequest(
        str(model), out, target="trt-rtx", parts=(part,), dtype=dtype, parity="off", **size
    )
    return export_bundle(request).report


#: each part once, two in either format; the other halves under EA_FULL=1
IN_16_BITS = [("vae-decoder", "bf16"), ("vae-encoder", "fp16"), ("dit", "bf16"), ("dit-v3", "fp16")]
if FULL:
    IN_16_BITS += [("vae-decoder", "fp16"), ("vae-encoder", "bf16"), ("dit", "fp16"), ("dit-v3", "bf16")]


@pytest.mark.slow
@pytest.mark.parametrize(("part", "dtype"), IN_16_BITS)
def test_every_part_in_16_bits(random_models: ModuleType, tmp_path: Path, part: str, dtype: str) -> None:
    networks = {"dit": {"num_layers": 2}, "dit-v3": {"num_layers": 2, **random_models.V3}}
    name = "dit" if part in networks else part
    check(build(random_models, tmp_path, name, dtype, **networks.get(part, {})))


def test_what_cannot_be_built_here_says_what_can(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = ["-o", str(tmp_path / "out")]
    assert run(["export", "--trt-rtx", "--refit", *where]) == 2
    assert "`refit` needs a GPU" in capsys.readouterr().err
    assert run(["export", "--trt-rtx", "--capability", "sm90", *where]) == 2
    assert "`capability` must be one of sm75, sm80, sm86, sm89, sm120, sm121" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_graph_that_the_builder_refuses(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"trt-rtx cannot build x\.onnx: the parser refused the graph"):
        tensorrt_build.build("trt-rtx", tmp_path / "x.onnx", tmp_path / "x.engine", refittable=False)
    assert not (tmp_path / "x.engine").exists()


def test_a_builder_that_crashes_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_build.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="the builder of trt-rtx ended with exit code 1"):
        tensorrt_build.build("trt-rtx", tmp_path / "x.onnx", tmp_path / "x.engine")
