"""One adapter under the names of every trainer in use: all layers match, and the output is the same.

The spellings follow what these projects document and write; the files are made here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ea_lora import load_lora, read_lora
from ea_lora.keys import find_targets, flatten

RANK, ALPHA, WIDTH = 4, 2, 8
Metadata = dict[str, str]
#: tensors, the header's metadata, and peft's config beside the file or None
Spelt = tuple[dict[str, Tensor], Metadata, dict[str, Any] | None]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("to_q", "to_k", "to_v"):
            self.add_module(name, nn.Linear(WIDTH, WIDTH))
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Dropout(0.0)])

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.get_submodule(name)(x) for name in ("to_q", "to_k", "to_v"))
        return self.to_out[0](torch.softmax(q @ k.transpose(-1, -2), -1) @ v)


class Model(nn.Module):
    """Two transformer blocks with the names of V2's modules."""

    def __init__(self) -> None:
        super().__init__()
        net = nn.ModuleList(
            [nn.ModuleDict({"proj": nn.Linear(WIDTH, WIDTH)}), nn.Identity(), nn.Linear(WIDTH, WIDTH)]
        )
        block = {"attn1": Attention(), "ff": nn.ModuleDict({"net": net})}
        self.transformer_blocks = nn.ModuleList([nn.ModuleDict(block) for _ in range(2)])
        self.proj_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.transformer_blocks:
            x = x + block.get_submodule("attn1")(x)
            net = block.get_submodule("ff.net")
            x = x + net.get_submodule("2")(torch.tanh(net.get_submodule("0.proj")(x)))
        return self.proj_out(x)


def make_model() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Model().eval()


def output(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(2)))


#: path -> down (R, I) and up (O, R), whose change is ALPHA / RANK * up @ down
def adapter() -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return {
        path: (torch.randn(RANK, WIDTH, generator=generator), torch.randn(WIDTH, RANK, generator=generator))
        for path in find_targets(make_model())
    }


def spell(
    name: Callable[[str], str],
    down: str = ".lora_A.weight",
    up: str = ".lora_B.weight",
    alpha: Tensor | None = None,
    *,
    folded: bool = False,
) -> dict[str, Tensor]:
    """The adapter's tensors. name: of a layer, by path. alpha: a tensor for each layer; folded: multiplied in."""
    tensors = {}
    for path, (one, other) in adapter().items():
        tensors[name(path) + down] = one * (ALPHA / RANK) if folded else one
        tensors[name(path) + up] = other
        if alpha is not None:
            tensors[name(path) + ".alpha"] = alpha.clone()
    return tensors


def kohya(prefix: str, alpha: Tensor | None) -> dict[str, Tensor]:
    return spell(lambda path: prefix + flatten(path), ".lora_down.weight", ".lora_up.weight", alpha)


def dotted(prefix: str, down: str = ".lora_A.weight", up: str = ".lora_B.weight") -> dict[str, Tensor]:
    """Without an alpha, as it is where a trainer multiplies it in."""
    return spell(lambda path: prefix + path, down, up, folded=True)


def config(**more: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", **more}


def in_processor(path: str) -> str:
    """diffusers' attention processors, `attn1.to_out.0` -> `attn1.processor.to_out_lora`; else the path."""
    before, attention, name = path.rpartition(".attn1.")
    return f"{before}.attn1.processor.{name.removesuffix('.0')}_lora" if attention else f"{path}.lora"


def processors(prefix: str) -> dict[str, Tensor]:
    return spell(lambda path: prefix + in_processor(path), ".down.weight", ".up.weight", folded=True)


def convolutions() -> dict[str, Tensor]:
    tensors = kohya("lora_unet_", torch.tensor(float(ALPHA)))
    return {key: value if value.ndim == 0 else value[..., None, None] for key, value in tensors.items()}


def wrapped(path: str) -> str:
    inner = path.replace(".attn1.", "._checkpoint_wrapped_module.attn1.")
    return f"_fsdp_wrapped_module.{inner}"


F32, I64 = torch.tensor(float(ALPHA)), torch.tensor(ALPHA, dtype=torch.int64)
HEADER = {
    "lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config().items()})
}
SD_SCRIPTS = {
    "ss_network_dim": str(RANK),
    "ss_network_alpha": str(ALPHA),
    "ss_network_module": "networks.lora",
}
ZEROS = {f"diffusion_model.{path}.diff_b": torch.zeros(WIDTH) for path in adapter()}
SPELLINGS: dict[str, Callable[[], Spelt]] = {
    "EasyAnimate V2, VideoX-Fun": lambda: (kohya("lora_unet__", F32), SD_SCRIPTS, None),
    "sd-scripts, musubi-tuner": lambda: (kohya("lora_unet_", F32), SD_SCRIPTS, None),
    "sd-scripts, alpha of 16 bits": lambda: (kohya("lora_unet_", F32.bfloat16()), {}, None),
    "sd-scripts, alpha in the metadata alone": lambda: (kohya("lora_unet_", None), SD_SCRIPTS, None),
    "sd-scripts, as convolutions": lambda: (convolutions(), {}, None),
    "sd-scripts behind DDP": lambda: (kohya("module.lora_unet_", F32), {}, None),
    "diffusers' converter to kohya": lambda: (kohya("lora_unet_", I64), {}, None),
    # converted: alpha is multiplied in, and the metadata stays
    "musubi-tuner, converted": lambda: (dotted("diffusion_model."), SD_SCRIPTS, None),
    "OneTrainer": lambda: (kohya("lora_transformer_", F32), {}, None),
    "OneTrainer with dots": lambda: (
        spell(lambda path: f"transformer.{path}", ".lora_down.weight", ".lora_up.weight", F32),
        {},
        None,
    ),
    "LyCORIS": lambda: (kohya("lycoris_", F32), {}, None),
    "SimpleTuner 0.9": lambda: (
        dotted("transformer.base_model.model.", ".lora.down.weight", ".lora.up.weight"),
        {},
        None,
    ),
    "SimpleTuner": lambda: (dotted("transformer."), {}, None),
    "diffusers": lambda: (spell(lambda path: f"transformer.{path}"), HEADER, None),
    "diffusers 0.22": lambda: (dotted("transformer.", ".lora.down.weight", ".lora.up.weight"), {}, None),
    "diffusers 0.20": lambda: (
        dotted("unet.", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        {},
        None,
    ),
    "diffusers 0.17, processors": lambda: (processors("unet."), {}, None),
    "diffusers 0.13, processors": lambda: (processors(""), {}, None),
    "peft": lambda: (spell(lambda path: f"base_model.model.{path}"), {}, config()),
    "peft, another adapter's name": lambda: (
        spell(lambda path: f"base_model.model.{path}", ".lora_A.style.weight", ".lora_B.style.weight"),
        {},
        config(),
    ),
    "peft, rank-stabilised": lambda: (
        spell(lambda path: f"base_model.model.{path}"),
        {},
        config(use_rslora=True, lora_alpha=ALPHA / math.sqrt(RANK)),
    ),
    "peft's state dict": lambda: (
        dotted("base_model.model.", ".lora_A.default.weight", ".lora_B.default.weight"),
        {},
        None,
    ),
    "diffusion-pipe": lambda: (spell(lambda path: f"diffusion_model.{path}"), {}, config()),
    "ai-toolkit": lambda: (spell(lambda path: f"transformer.{path}", alpha=F32), {}, None),
    "ComfyUI": lambda: (
        {**dotted("diffusion_model.", ".lora_down.weight", ".lora_up.weight"), **ZEROS},
        {},
        None,
    ),
    "ComfyUI, of a checkpoint": lambda: (
        spell(lambda path: f"model.diffusion_model.{path}", alpha=F32),
        {},
        None,
    ),
    "DiffSynth-Studio": lambda: (
        dotted("pipe.dit.", ".lora_A.default.weight", ".lora_B.default.weight"),
        {},
        None,
    ),
    "compiled behind DDP": lambda: (dotted("module._orig_mod."), {}, None),
    "FSDP": lambda: (spell(wrapped, folded=True), {}, None),
    "Lightning": lambda: (dotted("state_dict.model.transformer."), {}, None),
    "loralib": lambda: (dotted("", ".lora_A", ".lora_B"), {}, None),
    "torchtune": lambda: (dotted("", ".lora_a.weight", ".lora_b.weight"), {}, None),
}


@pytest.fixture(scope="module")
def expected() -> Tensor:
    """The output with the changes added to the weights."""
    model = make_model()
    for path, (down, up) in adapter().items():
        model.get_submodule(path).get_parameter("weight").data += ALPHA / RANK * up @ down
    return output(model)


def test_there_are_enough_of_them() -> None:
    assert len(SPELLINGS) >= 24
    names = [tuple(sorted(make()[0])) for make in SPELLINGS.values()]
    assert len(set(names)) >= 24


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_same_adapter(spelling: str, expected: Tensor, tmp_path: Path) -> None:
    tensors, metadata, beside = SPELLINGS[spelling]()
    file = tmp_path / ("adapter_model.safetensors" if beside else "style.safetensors")
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata)
    if beside:
        (tmp_path / "adapter_config.json").write_text(json.dumps(beside))
    model = make_model()
    lora = load_lora(model, tmp_path if beside else file, 1.0)
    assert (len(lora.matched), lora.ignored, lora.left_out) == (len(adapter()), (), ())
    assert float((output(model) - expected).norm() / expected.norm()) < 1e-6  # float32
    lora.unload()
    assert torch.equal(output(model), output(make_model()))


def test_zeros_beside_the_matrices_are_told(tmp_path: Path) -> None:
    save_file(SPELLINGS["ComfyUI"]()[0], tmp_path / "style.safetensors")
    notes = read_lora(tmp_path / "style.safetensors").notes
    assert f"{len(adapter())} tensors of zeros (diff_b) left out" in notes[0]


def test_alpha_of_the_metadata_is_for_its_rank_only(tmp_path: Path) -> None:
    tensors = kohya("lora_unet_", None)
    path = tmp_path / "style.safetensors"
    save_file(tensors, path, SD_SCRIPTS | {"ss_network_dim": "16"})
    file = read_lora(path)
    assert {layer.scale for layer in file.layers} == {1.0}
    assert f"no alpha for {len(adapter())} layers; their rank is used" in file.notes[0]
    save_file(tensors, path, SD_SCRIPTS | {"ss_network_alpha": "None", "ss_network_dim": "Dynamic"})
    assert {layer.scale for layer in read_lora(path).layers} == {1.0}


CASES = ("lora_names", "lora_int64_alpha", "lora_zero_bias")


@pytest.mark.parametrize("name", CASES)
def test_files_of_public_reports(name: str, field_cases: Path) -> None:
    from ea_lora.folder import load_networks
    from ea_lora.matching import match_lora
    from ea_runtime.errors import MissingPackageError
    from ea_runtime.models.layout import resolve_folder

    files = sorted((field_cases / "generation" / name).glob("*.safetensors"))
    assert files
    try:
        networks = load_networks(resolve_folder("tiny"), {"denoiser", "text"})
    except MissingPackageError as error:
        pytest.skip(str(error))
    for file in files:
        found = match_lora(read_lora(file), networks)
        assert (len(found.matches), found.ignored) == (60, ()), file.name
        assert bool(found.file.notes) or name != "lora_zero_bias"
