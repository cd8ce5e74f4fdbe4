"""The published layout: configs, class names, tensor names and shapes, at full size."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ea_runtime.errors import MissingPackageError
from ea_runtime.models.check import check_folder
from ea_runtime.models.loading import load_parts
from ea_runtime.models.weights import read_header
from ea_runtime.plugins.host import Host, set_host

ROOT = next(parent for parent in Path(__file__).resolve().parents if (parent / "packages").is_dir())
PUBLISHED = ROOT.parent / "shared" / "reference" / "easyanimate_v2_768"
STEM = "diffusion_pytorch_model"

pytestmark = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="shared/reference/easyanimate_v2_768 is not here"
)


@pytest.fixture
def published_host(tmp_path: Path) -> Iterator[Host]:
    """A host with the networks of ea-vae and ea-dit, wherever they are installed."""
    pytest.importorskip("ea_vae.plugin", reason="ea-vae is not installed")
    pytest.importorskip("ea_dit.plugin", reason="ea-dit is not installed")
    plugin = tmp_path / "published.py"
    plugin.write_text("from ea_dit.plugin import ea_denoisers\nfrom ea_vae.plugin import ea_vaes\n")
    host = Host(files=[plugin], entry_points=False)
    set_host(host)
    yield host
    set_host(None)


def shapes_of(part: str) -> dict[str, list[int]]:
    return json.loads((PUBLISHED / part / "state_dict_shapes.json").read_text())


def published_folder(folder: Path) -> Path:
    """The published folder without its weights."""
    for part in ("vae", "transformer"):
        (folder / part).mkdir(parents=True)
        shutil.copy(PUBLISHED / part / "config.json", folder / part)
    shutil.copy(PUBLISHED / "model_index.json", folder)
    return folder


def header_of(shapes: dict[str, list[int]]) -> tuple[bytes, int]:
    """Length and header of a bf16 file, and the number of data bytes that follow."""
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text, position


def write_hole(path: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file whose data is a hole: any size, no disk."""
    header, size = header_of(shapes)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)


def write_random(path: Path, shapes: dict[str, list[int]], rng: np.random.Generator) -> None:
    """Random bf16 weights, one drawn block repeated: drawing 246 M numbers would take too long."""
    header, size = header_of(shapes)
    block = torch.from_numpy(rng.uniform(-0.02, 0.02, 1 << 20).astype(np.float32)).bfloat16()
    data = block.view(torch.uint8).numpy().data
    with path.open("wb") as file:
        file.write(header)
        for done in range(0, size, len(data)):
            file.write(data[: size - done])


def test_the_vae_at_full_size(published_host: Host, tmp_path: Path) -> None:
    """246 M random bf16 weights in two shards load, encode a picture and decode it."""
    folder = published_folder(tmp_path / "model")
    shapes = shapes_of("vae")
    rng = np.random.default_rng(0)
    names = sorted(shapes)
    weight_map = {}
    for number, part in enumerate((names[:124], names[124:]), 1):
        file = f"{STEM}-0000{number}-of-00002.safetensors"
        write_random(folder / "vae" / file, {name: shapes[name] for name in part}, rng)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 2 * 245_979_879}, "weight_map": weight_map}
    (folder / "vae" / f"{STEM}.safetensors.index.json").write_text(json.dumps(index))
    try:
        parts = load_parts(folder, parts=["vae"])
        kept = parts.vae.decoder.conv_in.weight
        assert sum(parameter.numel() for parameter in parts.vae.parameters()) == 245_979_879
        assert kept.dtype == torch.bfloat16
        file = folder / "vae" / weight_map["decoder.conv_in.weight"]
        entry = read_header(file).tensors["decoder.conv_in.weight"]
        with file.open("rb") as stream:
            stream.seek(entry.begin)
            assert kept.detach().view(torch.uint8).numpy().tobytes() == stream.read(entry.end - entry.begin)
        del parts, kept
        vae = load_parts(folder, parts=["vae"], dtype=torch.float32).vae
    finally:
        shutil.rmtree(folder / "vae")  # 492 MB that pytest would keep
    assert vae.config.scaling_factor == 0.18215
    with torch.no_grad():
        frames = torch.zeros(1, 3, 1, 16, 16)
        latents = vae.encode(frames).latent_dist.mode()
        decoded = vae.decode(latents).sample
    assert latents.shape == (1, 4, 1, 2, 2)
    assert decoded.shape == frames.shape
    assert decoded.isfinite().all()


def test_the_transformer_loads_on_the_meta_device(published_host: Host, tmp_path: Path) -> None:
    """1.4 B parameters in a file of 3.4 GB that is one hole: headers, class and shapes are read, and no tensor."""
    folder = published_folder(tmp_path / "model")
    write_hole(folder / "transformer" / f"{STEM}.safetensors", shapes_of("transformer"))
    parts = load_parts(folder, device="meta", parts=["denoiser"])
    assert {n: list(t.shape) for n, t in parts.denoiser.state_dict().items()} == shapes_of("transformer")
    assert sum(parameter.numel() for parameter in parts.denoiser.parameters()) == 1_446_296_864
    assert all(parameter.is_meta for parameter in parts.denoiser.parameters())
    assert "optimization_step" in parts.notes[0], "the stray EMA keys of the published config are reported"


def test_check_of_the_published_layout(published_host: Host, tmp_path: Path) -> None:
    folder = published_folder(tmp_path / "model")
    for part in ("vae", "transformer"):
        write_hole(folder / part / f"{STEM}.safetensors", shapes_of(part))
    report = check_folder(folder)
    vae, denoiser, text = report.parts
    assert (vae.state, vae.class_name, vae.num_parameters) == ("ok", "AutoencoderKL", 245_979_879)
    assert (denoiser.state, denoiser.num_tensors, denoiser.num_parameters) == ("ok", 1413, 1_446_296_864)
    assert "expected text_encoder/config.json" in text.state
    assert report.memory["weights"]["denoiser"]["bf16"] == 3_421_076_032
    assert report.memory["decode_estimate"]["height"] == 512
    shapes = shapes_of("transformer")
    del shapes["proj_out.bias"]
    shapes |= {"pos_embed.proj.weight": [1152, 4, 4, 4], "module.extra": [1]}
    write_hole(folder / "transformer" / f"{STEM}.safetensors", shapes)
    denoiser = check_folder(folder).parts[1]
    assert denoiser.missing == ["proj_out.bias"]
    assert denoiser.unexpected == ["module.extra"]
    assert denoiser.wrong_shape == [
        {"name": "pos_embed.proj.weight", "expected": [1152, 4, 2, 2], "got": [1152, 4, 4, 4]}
    ]


#: CLIP ViT-L/14's picture half, with its projection
CLIP_L: dict[str, int] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}


def clip_shapes() -> dict[str, list[int]]:
    """Names and shapes of ViT-L/14 as published, written from its sizes."""
    width, inner = CLIP_L["hidden_size"], CLIP_L["intermediate_size"]
    shapes = {
        "vision_model.embeddings.class_embedding": [width],
        "vision_model.embeddings.patch_embedding.weight": [width, 3, 14, 14],
        "vision_model.embeddings.position_embedding.weight": [(224 // 14) ** 2 + 1, width],
        "visual_projection.weight": [768, width],
    }
    layers = {f"self_attn.{one}_proj": [width, width] for one in ("q", "k", "v", "out")}
    layers |= {"mlp.fc1": [inner, width], "mlp.fc2": [width, inner]}
    for number in range(CLIP_L["num_hidden_layers"]):
        for name, shape in layers.items():
            shapes[f"vision_model.encoder.layers.{number}.{name}.weight"] = shape
            shapes[f"vision_model.encoder.layers.{number}.{name}.bias"] = shape[:1]
    norms = [f"encoder.layers.{n}.layer_norm{i}" for n in range(CLIP_L["num_hidden_layers"]) for i in (1, 2)]
    for name in (*norms, "pre_layrnorm", "post_layernorm"):  # the first is spelt so
        shapes |= {f"vision_model.{name}.{kind}": [width] for kind in ("weight", "bias")}
    return shapes


def test_the_published_layout_of_v3(published_host: Host, tmp_path: Path) -> None:
    """A whole InP folder of 512: transformer, slice VAE and picture encoder load by name on the meta device."""
    source = PUBLISHED.parent / "easyanimate_v3_inp_512" / "transformer"
    folder = published_folder(tmp_path / "model")
    shutil.copy(source / "config.json", folder / "transformer")
    shapes = json.loads((source / "state_dict_shapes.json").read_text())
    config = json.loads((folder / "vae" / "config.json").read_text())
    config |= {"slice_compression_vae": True, "mini_batch_encoder": 8, "mini_batch_decoder": 2}
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    (folder / "image_encoder").mkdir()
    (folder / "image_encoder" / "config.json").write_text(
        json.dumps({"model_type": "clip_vision_model", **CLIP_L})
    )
    write_hole(folder / "transformer" / f"{STEM}.safetensors", shapes)
    write_hole(folder / "vae" / f"{STEM}.safetensors", shapes_of("vae"))
    write_hole(folder / "image_encoder" / "model.safetensors", clip_shapes())
    denoiser = load_parts(folder, device="meta", parts=["denoiser"]).denoiser
    assert len(shapes) == 1417
    assert {n: list(tensor.shape) for n, tensor in denoiser.state_dict().items()} == shapes
    del shapes["clip_projection.linear_2.bias"]  # the twin
    write_hole(folder / "transformer" / f"{STEM}.safetensors", shapes)
    report = check_folder(folder)
    parts = {part.name: part for part in report.parts}
    assert parts["denoiser"].missing == ["clip_projection.linear_2.bias"]
    assert parts["denoiser"].num_parameters == 1_538_364_704
    for name, count in (("vae", 245_979_879), ("image_encoder", 303_966_208)):
        assert (parts[name].state, parts[name].unexpected, parts[name].num_parameters) == ("ok", [], count)
    assert parts["vae"].num_tensors == 248
    assert any("preprocessor_config.json" in note for note in report.notes)


def test_without_the_packages_the_missing_one_is_named(use_fake_host: Host, tmp_path: Path) -> None:
    folder = published_folder(tmp_path / "model")
    for part in ("vae", "transformer"):
        write_hole(folder / part / f"{STEM}.safetensors", shapes_of(part))
    with pytest.raises(MissingPackageError, match="pip install ea-vae"):
        load_parts(folder, parts=["vae"])
    with pytest.raises(MissingPackageError, match="pip install ea-dit"):
        load_parts(folder, parts=["denoiser"])


@pytest.mark.parametrize("name", ["dit_v2", "dit_grid", "dit_sizecond", "vae_magvit", "vae_slice"])
def test_golden_networks_equal_the_usual_way(published_host: Host, tmp_path: Path, name: str) -> None:
    """The loaded network equals the class built and filled by hand, bit-exact, buffers included."""
    from safetensors.torch import load_file

    is_vae = name.startswith("vae")
    source = PUBLISHED.parent / name
    part = tmp_path / "model" / ("vae" if is_vae else "transformer")
    part.mkdir(parents=True)
    for file in ("config.json", f"{STEM}.safetensors"):
        shutil.copy(source / file, part)
    parts = load_parts(tmp_path / "model", parts=["vae" if is_vae else "denoiser"])
    got = parts.vae if is_vae else parts.denoiser
    expected = type(got).from_config(json.loads((source / "config.json").read_text())).eval()
    expected.load_state_dict(load_file(source / f"{STEM}.safetensors"))
    torch.manual_seed(0)
    with torch.no_grad():
        if is_vae:
            z = torch.randn(1, 4, 2, 2, 2)
            assert torch.equal(got.decode(z).sample, expected.decode(z).sample)
            return
        width = expected.config.caption_channels
        inputs = {
            "hidden_states": torch.randn(1, 4, 2, 8, 8),
            "timestep": torch.tensor([500]),
            "encoder_hidden_states": torch.randn(1, 5, width),
            "encoder_attention_mask": torch.ones(1, 5),
            "added_cond_kwargs": {
                "resolution": torch.tensor([[64.0, 64.0]]),
                "aspect_ratio": torch.tensor([[1.0]]),
            },
        }
        assert torch.equal(got(**inputs).sample, expected(**inputs).sample)
