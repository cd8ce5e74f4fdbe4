"""A small model folder of V3's shapes with random weights: the layout of a published InP folder."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

#: 8 frames <-> 2 latent frames
VAE: dict[str, Any] = {
    "block_out_channels": [8, 8, 16, 16],
    "down_block_types": ["SpatialDownBlock3D"] + ["SpatialTemporalDownBlock3D"] * 3,
    "up_block_types": ["SpatialUpBlock3D"] + ["SpatialTemporalUpBlock3D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "scaling_factor": 0.18215,
    "slice_compression_vae": True,
    "mini_batch_encoder": 8,
    "mini_batch_decoder": 2,
}
DIT: dict[str, Any] = {
    "num_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
    "caption_channels": 16,
    "sample_size": 8,
}
CLIP: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 768,
}
#: settings of a call that takes a fraction of a second
SMALL: dict[str, Any] = {"num_frames": 16, "height": 32, "width": 48, "num_inference_steps": 4, "seed": 3}


@pytest.fixture(scope="session")
def random_models() -> ModuleType:
    """The module tests/export/random_models.py."""
    path = Path(__file__).parent.parent / "export" / "random_models.py"
    spec = spec_from_file_location("random_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["random_models"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def v3_source(random_models: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all tests read; `v3_folder` is one to change."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, T5Config, T5EncoderModel

    from ea_runtime.text.encoder import TextEncoder, train_tokenizer

    folder = tmp_path_factory.mktemp("models") / "v3"
    random_models.write_model(folder, VAE, DIT | random_models.V3, torch.float32)
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red circle moves right"], vocab_size=400)
    config = T5Config(vocab_size=400, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2)
    TextEncoder(T5EncoderModel(config), tokenizer).save_pretrained(folder)
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP))
    clip.save_pretrained(str(folder / "image_encoder"))
    (folder / "image_encoder" / "preprocessor_config.json").write_text(
        json.dumps(
            {"size": 32, "crop_size": 32, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"}
        )
    )
    (folder / "ea.json").write_text(
        json.dumps({"height": 32, "width": 48, "num_frames": 16, "steps": 4, "sampler": "ddim"})
    )
    return folder


@pytest.fixture
def v3_folder(v3_source: Path, tmp_path: Path) -> Path:
    """A copy of the folder."""
    import shutil

    return Path(shutil.copytree(v3_source, tmp_path / "v3"))


@pytest.fixture(scope="session")
def v3_pipe(v3_source: Path) -> Any:
    """The folder as a pipeline on the CPU in float32."""
    from ea_runtime import VideoPipeline

    return VideoPipeline.from_pretrained(v3_source, device="cpu", dtype="float32")
