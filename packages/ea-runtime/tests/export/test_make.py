"""Refusals of `ea export`, in one line with exit code 2, leaving nothing half-made behind."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ea_runtime.cli.main import run
from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.export import make
from ea_runtime.export.make import ExportRequest, export_bundle, size_of
from ea_runtime.models.layout import resolve_folder

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --onnx, --trt and --trt-rtx, got none"),
        (["--onnx", "--trt"], "got --onnx and --trt"),
        (
            ["--onnx", "--part", "dti"],
            "`part` must be one of vae-decoder, vae-encoder, dit, text, got 'dti'; did you mean",
        ),
        (["--onnx", "--size", "72x64"], "`width` and `height` must be multiples of 64, got 72x64"),
        (["--onnx", "--size", "big"], "`size` must be WIDTHxHEIGHT"),
        (["--onnx", "--num-frames", "20"], "`num_frames` must be 1 or a multiple of 9, got 20; use 18 or 27"),
        (["--onnx", "--dtype", "fp8"], "`dtype` must be one of fp32, fp16, bf16, got 'fp8'"),
        (["--onnx", "--opset", "18"], "`opset` must be one of 20, 21, 22, 23, got 18"),
        (["--onnx", "--batch", "0"], "`batch` must be a whole number from 1 to 8, got 0"),
        (["--onnx", "--parity", "some"], "`parity` must be auto or off"),
        (["--onnx", "--capability", "sm89"], "`capability` is for --trt-rtx"),
        (["--onnx", "--memory-limit", "0"], "`memory-limit` must be from 0.01"),
        (["--onnx", "--model", "nothing-here"], "no model is called 'nothing-here'"),
    ],
)
def test_bad_input(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", *words, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("target", "extra"), [("trt", "trt"), ("trt-rtx", "trt-rtx"), ("onnx", "onnx")])
def test_a_missing_extra_names_its_command(target: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from ea_runtime.export import tensorrt_api

    real = importlib.util.find_spec
    hidden = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx", "onnx": "onnxscript"}[target]

    def find(name: str, *more: object) -> object:
        return None if name == hidden else real(name)

    monkeypatch.setattr(make, "find_spec", find)
    monkeypatch.setattr(tensorrt_api, "find_spec", find)
    with pytest.raises(MissingPackageError, match=rf"pip install 'ea-runtime\[.*{extra}\]'"):
        make.require_packages(target)


def test_trt_without_a_gpu_says_what_can_be_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from ea_runtime.export import tensorrt_api, tensorrt_build

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(tensorrt_build, "load_api", lambda target: tensorrt_api.Api(target, None, "11.4"))
    with pytest.raises(
        UserError, match=r"--trt needs an NVIDIA GPU.* here you can build --trt-rtx .* and --onnx"
    ):
        tensorrt_build.check("trt", (), None)


def test_rows_follow_from_the_size() -> None:
    published = {"patch_size": 2, "num_attention_heads": 16, "attention_head_dim": 72}
    assert [make._rows(published, 24 * 48 * 48), make._rows(published, 48 * 96 * 96)] == [2, 1]
    size = size_of(ExportRequest("tiny", "out"), resolve_folder("tiny"))
    assert (size.words(), size.rows, size.latent_frames) == ("18 frames of 64x64", 2, 6)


def test_what_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    with pytest.raises(UserError, match="`--output` must be a new or empty folder"):
        export_bundle(ExportRequest("tiny", str(tmp_path / "mine")))
    with pytest.raises(UserError, match="`--output` must be a new or empty folder"):
        export_bundle(ExportRequest("tiny", str(tmp_path / "mine"), overwrite=True))
    assert (tmp_path / "mine" / "letter.txt").read_text() == "x"


def test_a_disk_that_fills_up_leaves_no_half_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, places: object, tensors: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(make, "write_weights", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        export_bundle(ExportRequest("tiny", str(tmp_path / "out"), parts=("text",)))
    assert not [path for path in tmp_path.iterdir() if path.name != "state"]
