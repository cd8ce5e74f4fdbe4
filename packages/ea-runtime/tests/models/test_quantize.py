"""Quantisation as it is asked for: what is refused, what is counted, and GGUF headers that cannot be trusted."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from ea_runtime.errors import UserError
from ea_runtime.models import quantize as module
from ea_runtime.models.gguf_header import gguf_bytes, read_gguf
from ea_runtime.models.quantize import Quantize, check_engine, check_packages, parse_quantize, takes


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        (None, None),
        ("none", None),
        ("int8", {"denoiser": "int8"}),
        ("text=nf4", {"text": "nf4"}),
        ("denoiser=int8,text=nf4", {"denoiser": "int8", "text": "nf4"}),
        ({"denoiser": "fp8", "text": None}, {"denoiser": "fp8"}),
        ("fp8-unscaled", {"denoiser": "fp8-unscaled"}),
    ],
)
def test_forms_by_part(asked: Any, kinds: dict[str, str] | None) -> None:
    found = parse_quantize(asked)
    assert (None if found is None else dict(found.kinds)) == kinds
    if found is not None:
        assert parse_quantize(found.text) == found  # what the record holds gives the same again


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("int9", r"`quantize` must be int8, fp8, nf4, fp8-unscaled, none or a .gguf file, got 'int9'.*int8"),
        ("vae=int8", r"`quantize` of the vae is not possible: its weights are convolutions"),
        ("txt=int8", r"`quantize` takes the parts denoiser and text, got 'txt'"),
        ("text=int8,text=nf4", r"`quantize` names the text twice"),
        ("missing.gguf", r"`quantize` names the file 'missing.gguf', which is not there"),
        ("text=t5.gguf", r"`quantize` reads GGUF files of the denoiser"),
        (8, r"`quantize` must be .*, got 8"),
    ],
)
def test_what_cannot_be_is_one_line(asked: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        parse_quantize(asked)
    assert "\n" not in str(error.value)


def test_what_does_not_go_together_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    int8 = Quantize({"denoiser": "int8"})
    with pytest.raises(UserError, match=r"`quantize` needs engine 'torch', got 'onnx'"):
        check_engine("onnx", int8, None)
    with pytest.raises(UserError, match=r"`attention` needs engine 'torch', got 'trt'"):
        check_engine("trt", None, "flash")
    with pytest.raises(UserError, match=r"`quantize` and `offload` 'group' cannot be combined"):
        check_engine("torch", int8, None, "group")
    check_engine("torch", int8, "flash", "model")
    monkeypatch.setattr(module, "is_installed", lambda package: package in (None, "bitsandbytes"))
    with pytest.raises(
        UserError,
        match=r"int8 needs the package torchao.*ea-runtime\[quantize\].*works here: nf4, fp8-unscaled",
    ):
        check_packages(int8)
    check_packages(Quantize({"denoiser": "fp8-unscaled", "text": "nf4"}))


def test_layers_that_change() -> None:
    assert takes("denoiser", "transformer_blocks.0.attn1.to_q.weight", (8, 8))
    assert takes("denoiser", "long_connect_fc.0.weight", (8, 8))
    assert not takes("denoiser", "transformer_blocks.0.attn1.to_q.bias", (8,))
    assert not takes("denoiser", "transformer_blocks.0.scale_shift_table", (6, 8))
    assert not takes("denoiser", "proj_out.weight", (8, 8))
    wo = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    assert takes("text", wo, (8, 8))
    assert not takes("text", wo, (8, 8), is_half=True)
    assert not takes("text", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 4))
    assert not takes("vae", "encoder.conv_in.weight", (8, 8))


def a_gguf(
    tensors: list[tuple[str, list[int], int]], data: int, keys: bytes = b"", num_keys: int = 0
) -> bytes:
    """A GGUF file. tensors: names, dimensions (the fastest first) and types; data: bytes of each."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), num_keys) + keys
    for number, (name, shape, kind) in enumerate(tensors):
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, number * data)
    return head + bytes(-len(head) % 32) + bytes(data * len(tensors))


def test_a_gguf_header_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    key = struct.pack("<Q", 3) + b"key" + struct.pack("<IIQ", 9, 8, 1) + struct.pack("<Q", 2) + b"ab"
    file.write_bytes(a_gguf([("a", [64, 4], 8), ("b", [4], 0)], 288, key, 1))  # Q8_0: 8 blocks of 34
    found = read_gguf(file)
    assert (found["a"].shape, found["a"].kind, found["a"].size) == ((4, 64), "Q8_0", 272)
    assert (found["b"].shape, found["b"].is_plain, found["b"].size) == ((4,), True, 16)
    assert gguf_bytes(file) == {"a": 272}


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (a_gguf([("a", [64, 4], 8)], 272)[:-40], r"tensor 'a' ends after the file"),
        (a_gguf([("a", [64, 4], 8)], 272)[:30], r"its header does not end within the file"),
        (b"GGML" + bytes(40), r"it does not begin with GGUF"),
        (a_gguf([("a", [33, 4], 8)], 272), r"tensor 'a' of type Q8_0 has shape \[4, 33\]"),
        (a_gguf([("a", [64, 4], 77)], 272), r"tensor 'a' is of type 77"),
        (a_gguf([("a", [64, 4], 8)] * 2, 272), r"names tensor 'a' twice"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), r"it would have 1,099,511,627,776 tensors"),
        (a_gguf([], 0, struct.pack("<Q", 1 << 60), 1), r"it has a text of"),
    ],
)
def test_a_damaged_gguf_is_one_line(tmp_path: Path, contents: bytes, words: str) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(contents)
    with pytest.raises(UserError, match=rf"GGUF file 'a.gguf' is damaged or cut short: .*{words}") as error:
        read_gguf(file)
    assert "\n" not in str(error.value)
