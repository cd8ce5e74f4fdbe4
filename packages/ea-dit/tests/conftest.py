"""Fixtures: tiny models and seeded inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ea_dit import Transformer3DModel

MOTION: dict[str, Any] = {"num_attention_heads": 4, "temporal_position_encoding_max_len": 16}
TINY: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "num_layers": 4,
    "cross_attention_dim": 32,
    "caption_channels": 24,
    "sample_size": 8,
    "motion_module_kwargs": MOTION,
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_model() -> Callable[..., Transformer3DModel]:
    """Builds a tiny model; `randomized` fills its zero-initialised layers too, so that every branch contributes."""

    def make(randomized: bool = True, **changes: Any) -> Transformer3DModel:
        model = Transformer3DModel(**{**TINY, **changes})
        if randomized:
            with torch.no_grad():
                for parameter in model.parameters():
                    if not parameter.any():
                        parameter.normal_(std=0.05)
        return model.eval()

    return make


@pytest.fixture
def motion_kinds() -> dict[str, dict[str, Any]]:
    """Kind of motion module -> what it changes of a tiny model's config."""
    return {
        "tracks": {},
        "grid": {"motion_module_type": "VanillaGrid", "motion_module_kwargs": {**MOTION, "block_size": 2}},
        "global": {
            "basic_block_type": "global_motionmodule",
            "motion_module_kwargs": None,
            "motion_module_kwargs_even": MOTION,
            "motion_module_kwargs_odd": {**MOTION, "attention_block_types": ["Temporal_Self", "Global_Self"]},
        },
    }


@pytest.fixture
def make_inputs() -> Callable[..., dict[str, Tensor]]:
    """Seeded arguments of a forward pass."""

    def make(
        batch: int = 2, frames: int = 3, height: int = 4, width: int = 6, tokens: int = 5
    ) -> dict[str, Tensor]:
        mask = torch.ones(batch, tokens, dtype=torch.long)
        mask[:, tokens - 2 :] = 0
        return {
            "hidden_states": torch.randn(batch, 4, frames, height, width),
            "timestep": torch.randint(0, 1000, (batch,)),
            "encoder_hidden_states": torch.randn(batch, tokens, 24),
            "encoder_attention_mask": mask,
        }

    return make
