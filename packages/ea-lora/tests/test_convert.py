"""Layouts: there and back without a lost byte, and peft's and diffusers' own loaders as judges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ea_lora import convert_lora, load_lora, read_lora
from ea_lora.convert import dotted_layers
from ea_lora.keys import LAYOUTS
from ea_runtime.errors import UserError

Write = Callable[..., Path]
OTHERS = [layout for layout in LAYOUTS if layout != "kohya"]


def same(ours: Path, theirs: Path) -> bool:
    """Equal names, shapes, dtypes and bytes of all tensors."""
    one, other = load_file(ours), load_file(theirs)
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and one[k].shape == other[k].shape and torch.equal(one[k], other[k])
        for k in one
    )


def name(layout: str) -> str:
    return layout if layout == "peft" else f"{layout}.safetensors"


@pytest.mark.parametrize("layout", OTHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_loses_nothing(
    write_lora_file: Write, small: Any, model_folder: Path, tmp_path: Path, layout: str, dtype: torch.dtype
) -> None:
    tensors = {key: value.to(dtype) for key, value in small.model_tensors(alpha=1.5).items()}
    source = tmp_path / "source.safetensors"
    save_file(tensors, source, metadata={"ss_note": "kept", "modelspec.trigger_phrase": "inkline"})
    done = convert_lora(source, tmp_path / name(layout), layout, model=model_folder)
    assert (done.source, done.target, done.num_layers) == ("kohya", layout, 5)
    assert read_lora(tmp_path / name(layout)).layout == layout
    convert_lora(tmp_path / name(layout), tmp_path / "back.safetensors", "kohya")
    assert same(tmp_path / "back.safetensors", source)
    metadata = dict(read_lora(tmp_path / "back.safetensors").metadata)
    assert metadata.pop("sshs_model_hash")
    assert metadata.pop("sshs_legacy_hash")
    assert metadata == {"ss_note": "kept", "modelspec.trigger_phrase": "inkline"}


@pytest.mark.parametrize("layout", OTHERS)
def test_mixed_ranks_alphas_and_layers_without_alpha(
    small: Any, model_folder: Path, tmp_path: Path, layout: str
) -> None:
    tensors = small.model_tensors()
    del tensors["lora_unet__mix.alpha"]
    tensors["lora_unet__proj_out.alpha"] = torch.tensor(3.0, dtype=torch.float16)
    key = "lora_unet__blocks_0_to_q"
    tensors |= {f"{key}.lora_down.weight": torch.randn(2, 8), f"{key}.lora_up.weight": torch.randn(8, 2)}
    source = tmp_path / "source.safetensors"
    save_file(tensors, source)
    convert_lora(source, tmp_path / name(layout), layout, model=model_folder)
    convert_lora(tmp_path / name(layout), tmp_path / "back.safetensors", "kohya")
    assert same(tmp_path / "back.safetensors", source)


@pytest.mark.parametrize("layout", OTHERS)
def test_every_layout_has_the_same_effect(
    write_lora_file: Write, small: Any, model_folder: Path, tmp_path: Path, layout: str
) -> None:
    source = write_lora_file(small.model_tensors())
    convert_lora(source, tmp_path / name(layout), layout, model=model_folder)
    outputs = []
    for path in (source, tmp_path / name(layout)):
        pipe = small.make_pipe()
        lora = load_lora(pipe, path, 0.7)
        assert len(lora.matched) == 5
        outputs.append(small.run(pipe)[0])
    assert torch.equal(*outputs)


@pytest.fixture
def model(model_folder: Path) -> Callable[[], Any]:
    """Loads the model of `model_folder` anew."""
    from ea_runtime.plugins.host import get_host

    return lambda: get_host().get("denoisers", "small").build().from_pretrained(model_folder / "transformer")


def sample(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x, text = torch.randn(1, 4, 2, 5, 6, generator=generator), torch.randn(1, 3, 8, generator=generator)
    with torch.inference_mode():
        return model(x, 1, text).sample


def test_peft_itself_reads_it(
    write_lora_file: Write, small: Any, model: Any, model_folder: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    source = write_lora_file(small.model_tensors())
    convert_lora(source, tmp_path / "peft", "peft", model=model_folder)
    ours = model()
    load_lora(ours, source, 1.0)
    theirs = PeftModel.from_pretrained(model(), str(tmp_path / "peft")).eval()
    assert small.relative_error(sample(theirs), sample(ours)) < 1e-6
    assert small.relative_error(sample(theirs), sample(model())) > 1e-2


def test_what_peft_writes_is_read(small: Any, model: Any, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=3,
        lora_alpha=5,
        use_rslora=True,
        target_modules=["to_q", "proj_out"],
        alpha_pattern={"proj_out": 7},
        init_lora_weights=False,
    )
    theirs: Any = get_peft_model(model(), config)
    theirs.save_pretrained(tmp_path / "peft")
    ours = model()
    assert len(load_lora(ours, tmp_path / "peft", 1.0).matched) == 3
    assert small.relative_error(sample(ours), sample(theirs)) < 1e-6


def test_diffusers_own_loader_reads_it(small: Any, model: Any, model_folder: Path, tmp_path: Path) -> None:
    from diffusers.loaders import PeftAdapterMixin

    from ea_runtime.plugins.host import get_host

    base = get_host().get("denoisers", "small").build()
    theirs = type("WithAdapters", (base, PeftAdapterMixin), {}).from_pretrained(model_folder / "transformer")
    ours = model()
    source = tmp_path / "source.safetensors"
    save_file(small.model_tensors(), source)
    convert_lora(source, tmp_path / "style.safetensors", "diffusers", model=model_folder)
    with safe_open(tmp_path / "style.safetensors", "pt") as file:
        packed = json.loads(file.metadata()["lora_adapter_metadata"])
    theirs.load_lora_adapter(load_file(tmp_path / "style.safetensors"), prefix="transformer", metadata=packed)
    load_lora(ours, source, 1.0)
    assert small.relative_error(sample(theirs), sample(ours)) < 1e-6


def test_both_networks_go_over(reference: Path, golden_folder: Path, tmp_path: Path) -> None:
    source = reference / "lora" / "lora_temporal.safetensors"
    for layout in OTHERS:
        try:
            convert_lora(source, tmp_path / name(layout), layout, model=golden_folder)
        except UserError as error:
            pytest.skip(str(error))
        convert_lora(tmp_path / name(layout), tmp_path / f"back-{layout}.safetensors", "kohya")
        assert same(tmp_path / f"back-{layout}.safetensors", source)
        assert read_lora(tmp_path / f"back-{layout}.safetensors").metadata == read_lora(source).metadata
    keys = load_file(tmp_path / "diffusers.safetensors")
    assert "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight" in keys
    assert "text_encoder.encoder.block.0.layer.0.SelfAttention.k.lora_B.weight" in keys
    keys = load_file(tmp_path / "comfyui.safetensors")
    assert "diffusion_model.transformer_blocks.0.attn1.to_q.lora_down.weight" in keys
    assert (tmp_path / "peft" / "text_encoder" / "adapter_config.json").is_file()


def test_a_small_model_names_the_layers_of_a_deep_one() -> None:
    from ea_lora.layer import Layer

    def layer(path: str) -> Layer:
        return Layer(f"lora_unet__{path}", "denoiser", path, torch.ones(1, 1), torch.ones(1, 1))

    names = {"denoiser": ["blocks.0.to_q", "blocks.0.net_0.to_out", "proj_out"]}
    found = dotted_layers([layer("blocks_27_to_q"), layer("blocks_9_net_3_to_out"), layer("proj_out")], names)
    assert [one.path for one in found] == ["blocks.27.to_q", "blocks.9.net_3.to_out", "proj_out"]
    with pytest.raises(UserError, match=r"'lora_unet__other_1' fits the name of no module.*--model"):
        dotted_layers([layer("other_1")], names)
    with pytest.raises(UserError, match=r"'lora_unet__a_b' can mean a\.b and a_b; name it with dots"):
        dotted_layers([layer("a_b")], {"denoiser": ["a.b", "x", "a_b"]})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"use_dora": True}, "asks for DoRA"),
        ({"peft_type": "LOHA"}, "`peft_type` must be LORA, got 'LOHA'"),
        ({"lora_alpha": float("inf")}, "alpha must be a number above 0, got inf"),
        ({"lora_alpha": "4"}, "alpha must be a number above 0, got '4'"),
        ({"alpha_pattern": {"(a+": 1}}, r"`alpha_pattern` holds '\(a\+', which is no regular expression"),
        ({"alpha_pattern": ["to_q"]}, "`alpha_pattern` must map module paths to numbers"),
        ({"modules_to_save": ["proj_out"]}, "asks for whole modules"),
        ("[]", "must hold a JSON object"),
        ("{", "no valid JSON"),
    ],
)
def test_wrong_configs_are_one_line(
    write_lora_file: Write, small: Any, model_folder: Path, tmp_path: Path, change: Any, text: str
) -> None:
    convert_lora(write_lora_file(small.model_tensors()), tmp_path / "peft", "peft", model=model_folder)
    config = tmp_path / "peft" / "adapter_config.json"
    new = change if isinstance(change, str) else json.dumps(json.loads(config.read_text()) | change)
    config.write_text(new)
    with pytest.raises(UserError, match=text) as caught:
        read_lora(tmp_path / "peft")
    assert "\n" not in str(caught.value)


def test_without_any_alpha_the_rank_is_used_and_reported(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    name, matrices = "transformer.proj_out.lora_{}.weight", {"A": torch.ones(2, 8), "B": torch.ones(4, 2)}
    save_file({name.format(half): matrix for half, matrix in matrices.items()}, path)
    file = read_lora(path)
    assert file.layers[0].scale == 1.0
    assert file.notes == ("no alpha for 1 layer; its rank is used",)
    lora = load_lora(small.make_pipe(), file)
    assert lora.notes == file.notes


@pytest.mark.parametrize("prefix", ["lora_transformer_", "lora_unet_", "module.lora_unet__"])
def test_names_of_other_trainers_go_over(small: Any, model_folder: Path, tmp_path: Path, prefix: str) -> None:
    tensors = small.model_tensors()
    source, theirs = tmp_path / "source.safetensors", tmp_path / "theirs.safetensors"
    save_file(tensors, source)
    save_file({key.replace("lora_unet__", prefix): value for key, value in tensors.items()}, theirs)
    done = convert_lora(theirs, tmp_path / "kohya.safetensors", "kohya", model=model_folder)
    assert (done.source, done.num_layers) == ("other", 5)
    assert same(tmp_path / "kohya.safetensors", source)
    convert_lora(theirs, tmp_path / "peft", "peft", model=model_folder)
    assert [layer.path for layer in read_lora(tmp_path / "peft").layers] == sorted(
        ["blocks.0.to_q", "blocks.1.to_q", "mix", "proj_in", "proj_out"]
    )


def test_mistakes(write_lora_file: Write, small: Any, model_folder: Path, tmp_path: Path) -> None:
    source = write_lora_file(small.model_tensors())
    with pytest.raises(UserError, match="`to` must be one of kohya, diffusers, peft, comfyui, got 'comfy'"):
        convert_lora(source, tmp_path / "a.safetensors", "comfy")
    with pytest.raises(UserError, match="exists already"):
        convert_lora(source, source, "kohya")
    with pytest.raises(UserError, match=r"must end in \.safetensors, got 'a\.pt'"):
        convert_lora(source, tmp_path / "a.pt", "kohya")
    tensors = {key.replace("to_q", "to_x"): value for key, value in small.model_tensors().items()}
    strange = write_lora_file(tensors, "x.safetensors")
    with pytest.raises(UserError, match="fits the name of no module of the model"):
        convert_lora(
            strange,
            tmp_path / "a.safetensors",
            "comfyui",
            model=model_folder,
        )
    assert not (tmp_path / "a.safetensors").exists()
