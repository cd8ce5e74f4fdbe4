"""A model of random weights, a fraction of a second for a video: for tests of the command, not of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights: 48x32, 18 frames, 3 steps."""
    ea_vae = pytest.importorskip("ea_vae")
    ea_dit = pytest.importorskip("ea_dit")
    import torch
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
