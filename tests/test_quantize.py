"""Weights in fewer bits, on `tiny`: close to the plain result, as many bytes as the plan says, with a LoRA on top.

Needs the extra `quantize` of ea-runtime; .ci/run runs this file once more with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ea_lora import load_lora, merge_lora
from ea_runtime import VideoPipeline
from ea_runtime.errors import UserError
from ea_runtime.models import quantize_layers
from ea_runtime.models.layout import resolve_folder
from ea_runtime.models.quantize import KINDS, is_installed
from ea_runtime.models.quantize_layers import count_quantized, weight_bytes
from ea_runtime.planning.parts import loaded_part, read_parts

#: linear layers in tiny's blocks and skips, and in its T5
LAYERS, TEXT_LAYERS = 134, 14
LORA_LAYER = "lora_unet__transformer_blocks_1_attn1_to_q"


def needs(package: str | None) -> None:
    if not is_installed(package):
        pytest.skip(f"{package} is not installed (extra quantize)")


def load(**settings: Any) -> VideoPipeline:
    return VideoPipeline.from_pretrained("tiny", device="cpu", dtype="float32", **settings)


def latents(pipe: VideoPipeline) -> Tensor:
    small = {"num_frames": 1, "height": 64, "width": 64, "num_inference_steps": 8, "guidance_scale": 1.0}
    return pipe("a red circle", seed=3, output="latents", **small).latents


def error_of(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.fixture(scope="module")
def plain() -> VideoPipeline:
    return load()


@pytest.fixture(scope="module")
def lora(plain: VideoPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(0)
    width = plain.denoiser.config.num_attention_heads * plain.denoiser.config.attention_head_dim
    tensors = {}
    for layer in ("attn1_to_q", "attn2_to_out_0", "ff_net_2"):
        name = f"lora_unet__transformer_blocks_1_{layer}"
        inputs = 4 * width if layer == "ff_net_2" else width
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, inputs, generator=generator) * inputs**-0.5
        tensors[f"{name}.lora_up.weight"] = torch.randn(width, 4, generator=generator)
    file = tmp_path_factory.mktemp("lora") / "a.safetensors"
    save_file(tensors, file)
    return file


def check_plan(pipe: VideoPipeline, plain: VideoPipeline, changed: list[tuple[int, int]]) -> None:
    """A loaded pipeline's plan counts the layers in fewer bits that its model's folder has, each time they run."""
    assert pipe.quantize is not None
    loaded = loaded_part("denoiser", pipe.denoiser, pipe.denoiser.config)
    assert sorted(loaded.changed_bytes("float32", pipe.quantize.of("denoiser"))) == sorted(changed)
    ours, usual = (
        one.plan("a circle", num_frames=1).phase("denoising").work.get("swept", 0) for one in (pipe, plain)
    )
    assert ours - usual > 8 * sum(stored for stored, _ in changed)  # 20 steps


def check_lora(pipe: VideoPipeline, lora: Path, found: Tensor) -> None:
    """A layer gets the LoRA's share, whatever form its weight has, and the model is as before without it."""
    layer = pipe.denoiser.get_submodule("transformer_blocks.1.attn1.to_q")
    down, up = (load_file(lora)[f"{LORA_LAYER}.lora_{name}.weight"] for name in ("down", "up"))
    x = torch.randn(1, 5, down.shape[1], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = layer(x)
        with load_lora(pipe, lora) as loaded:
            assert len(loaded.matched) == 3
            assert torch.allclose(layer(x) - plain, x @ down.T @ up.T, atol=1e-4)
            assert error_of(latents(pipe), found) > 0.001
    assert torch.equal(latents(pipe), found)


@pytest.mark.parametrize(
    ("kind", "most"), [("int8", 0.05), ("fp8", 0.15), ("nf4", 0.3), ("fp8-unscaled", 0.15)]
)
def test_the_denoiser_in_fewer_bits(kind: str, most: float, plain: VideoPipeline, lora: Path) -> None:
    needs(KINDS[kind])
    pipe = load(quantize=kind)
    wanted, found = latents(plain), latents(pipe)
    # the twin: what does nothing has no such layers, the same bits, and as many bytes
    assert count_quantized(pipe.denoiser) == LAYERS
    assert count_quantized(plain.denoiser) == 0
    assert 0 < error_of(found, wanted) < most
    part = read_parts(resolve_folder("tiny"))["denoiser"]
    for one, form in ((plain, None), (pipe, kind)):
        assert weight_bytes(one.denoiser) == pytest.approx(part.bytes_in("float32", form), rel=0.01)
    assert weight_bytes(pipe.denoiser) < 0.4 * weight_bytes(plain.denoiser)
    check_plan(pipe, plain, part.changed_bytes("float32", kind))
    check_lora(pipe, lora, found)
    with pytest.raises(UserError, match=rf"`model` was loaded with quantize='{kind}'.*take no LoRA"):
        merge_lora(pipe, lora, "/nowhere/else")
    with pytest.raises(UserError, match=r"`dtype` of a quantised pipeline cannot change"):
        pipe.to(dtype="bfloat16")


def test_a_form_that_no_layer_takes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("torchao")
    monkeypatch.setattr(quantize_layers, "takes", lambda *arguments, **more: False)
    with pytest.raises(UserError, match=r"`quantize` 'int8' found no layer of the denoiser"):
        load(quantize="int8")


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp8-unscaled"])
def test_the_text_encoder_in_fewer_bits(kind: str, plain: VideoPipeline) -> None:
    needs(KINDS[kind])
    pipe = load(quantize={"text": kind})
    assert (count_quantized(pipe.denoiser), count_quantized(pipe.text.model)) == (0, TEXT_LAYERS)
    found, wanted = (one.text.encode(["a red circle moves right"]).embeds for one in (pipe, plain))
    assert 0 < error_of(found, wanted) < 0.3
    part = read_parts(resolve_folder("tiny"))["text"]
    assert weight_bytes(pipe.text.model) == pytest.approx(part.bytes_in("float32", kind), rel=0.1)


def write_gguf(file: Path, tensors: dict[str, Tensor]) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra quantize)")
    writer = gguf.GGUFWriter(str(file), "ea")
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        is_layer = name.startswith("transformer_blocks.") and values.ndim == 2 and values.shape[1] % 32 == 0
        if is_layer and name.endswith(".weight"):
            writer.add_tensor(name, gguf.quants.quantize(values, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_of_the_denoiser(plain: VideoPipeline, lora: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    state = plain.denoiser.state_dict()
    write_gguf(file, state)
    pipe = load(quantize=str(file))
    wanted, found = latents(plain), latents(pipe)
    assert count_quantized(pipe.denoiser) > 100
    assert 0 < error_of(found, wanted) < 0.02
    part = read_parts(resolve_folder("tiny"))["denoiser"]
    assert weight_bytes(pipe.denoiser) == pytest.approx(part.bytes_in("float32", file), rel=0.01)
    assert weight_bytes(pipe.denoiser) < 0.5 * weight_bytes(plain.denoiser)
    check_plan(pipe, plain, part.changed_bytes("float32", file))
    check_lora(pipe, lora, found)

    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(
        UserError, match=r"GGUF file 'tiny.gguf' is damaged or cut short.*ends after the file"
    ):
        load(quantize=str(file))
    name = "transformer_blocks.0.attn1.to_q.weight"
    write_gguf(file, {**state, name: torch.zeros(32, 32)})
    with pytest.raises(UserError, match=rf"GGUF file 'tiny.gguf' does not fit.*{name} must be .*\[32, 32\]"):
        load(quantize=str(file))
    del state[name]
    write_gguf(file, state)
    with pytest.raises(UserError, match=r"1 tensors are missing"):
        load(quantize=str(file))
