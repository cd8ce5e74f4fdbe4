"""Fixtures for tests of model folders: a host with two small networks, a whole folder of a few KB, and one that
makes videos."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ea_runtime.plugins.host import Host, set_host

FAKE_NETWORKS = Path(__file__).parent / "fake_networks.py"


@pytest.fixture(scope="session")
def fake_host() -> Host:
    """A host with ea_runtime's own plugin and the two networks of fake_networks.py, without installed plugins."""
    return Host(files=[FAKE_NETWORKS], entry_points=False)


@pytest.fixture
def use_fake_host(fake_host: Host) -> Iterator[Host]:
    """`fake_host` as the process's host for one test."""
    set_host(fake_host)
    yield fake_host
    set_host(None)


@pytest.fixture(scope="session")
def folder_source(fake_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model folder of small random networks; copy it before changing it."""
    from transformers import T5Config, T5EncoderModel

    from ea_runtime.text.encoder import TextEncoder, train_tokenizer

    folder = tmp_path_factory.mktemp("model") / "small"
    torch.manual_seed(0)
    for part, name in (("vae", "fake-vae"), ("transformer", "fake-denoiser")):
        network = fake_host.get("vaes" if part == "vae" else "denoisers", name).build()()
        (folder / part).mkdir(parents=True)
        config = {"_class_name": type(network).__name__, "_diffusers_version": "0.0", **network.config}
        (folder / part / "config.json").write_text(json.dumps(config))
        tensors = {key: value.clone() for key, value in network.state_dict().items() if key != "last.weight"}
        save_file(tensors, folder / part / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    tokenizer = train_tokenizer(["a red circle moves right"], vocab_size=400)
    config = T5Config(vocab_size=400, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2)
    TextEncoder(T5EncoderModel(config), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights: 48x32, 18 frames, 3 steps; a quarter of a second for a video."""
    ea_vae = pytest.importorskip("ea_vae")
    ea_dit = pytest.importorskip("ea_dit")
    from transformers import T5Config, T5EncoderModel

    from ea_runtime.text.encoder import TextEncoder, train_tokenizer

    folder = tmp_path_factory.mktemp("models") / "random"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = ea_vae.AutoencoderKLMagvit(ch=8, ch_mult=[1, 1, 1, 1], layers_per_block=1, norm_num_groups=4)
        vae.save_pretrained(folder / "vae")
        motion = {"num_attention_heads": 4, "temporal_position_encoding_max_len": 24}
        size = {
            "num_attention_heads": 4,
            "attention_head_dim": 8,
            "cross_attention_dim": 32,
            "caption_channels": 16,
        }
        denoiser = ea_dit.Transformer3DModel(num_layers=3, motion_module_kwargs=motion, **size)
        denoiser.save_pretrained(folder / "transformer")
        config = T5Config(vocab_size=512, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        tokenizer = train_tokenizer(["a red circle moves right"])
        TextEncoder(T5EncoderModel(config), tokenizer).save_pretrained(folder)
    values = {"width": 48, "height": 32, "num_frames": 18, "fps": 12, "steps": 3, "guidance": 4.0}
    (folder / "ea.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def model_folder(folder_source: Path, tmp_path: Path, use_fake_host: Host) -> Path:
    """A copy of `folder_source` to load or to damage, with the host that knows its networks."""
    return Path(shutil.copytree(folder_source, tmp_path / "model"))
