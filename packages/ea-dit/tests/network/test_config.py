from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from ea_dit import Transformer3DModel
from ea_dit.network.config import MotionConfig, TransformerConfig


@pytest.mark.parametrize(
    ("depth", "count", "first"),
    [(1, 0, 1), (2, 0, 2), (3, 1, 2), (4, 1, 3), (5, 2, 3), (6, 2, 4), (7, 3, 4), (8, 3, 5), (28, 13, 15)],
)
def test_skips_follow_from_depth(depth: int, count: int, first: int) -> None:
    config = TransformerConfig(num_layers=depth)
    assert (config.num_skips, config.first_skip_block) == (count, first)
    # Every block that takes a skip gets one, from a block before the middle.
    assert config.num_skips == depth - config.first_skip_block
    assert TransformerConfig(num_layers=depth, enable_uvit=False).num_skips == 0


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_layers", 0, "`num_layers` must be a positive integer"),
        ("num_layers", "28", "`num_layers` must be a positive integer"),
        ("patch_size", None, "`patch_size` must be a positive integer"),
        ("attention_head_dim", 71, "multiple of 32"),
        ("activation_fn", "relu", "`activation_fn` must be one of"),
        ("dropout", 1.0, "`dropout` must be in"),
        ("norm_type", "layer_norm", "`norm_type` must be 'ada_norm_single'"),
        (
            "basic_block_type",
            "kvcompression_motionmodule",
            "must be one of motionmodule, global_motionmodule",
        ),
        ("patch_3d", True, "`patch_3d` must be False"),
        ("casual_3d", True, "`casual_3d` must be False"),
        ("motion_module_type", "Global", "`motion_module_type` must be one of"),
        ("motion_module_kwargs", "dict(block_size=1)", "must be a JSON object, got str"),
        ("motion_module_kwargs", {"block_size": 0}, "`motion_module_kwargs.block_size` must be a positive"),
        ("motion_module_kwargs", {"qk_norm": True}, "`motion_module_kwargs.qk_norm` must be False"),
        ("motion_module_kwargs", {"attention_block_types": ["Temporal_Cross"]}, "Temporal_Cross"),
        ("motion_module_kwargs", {"num_attention_heads": 7}, "must divide the width 1152"),
    ],
)
def test_errors_take_one_line(key: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        TransformerConfig.from_mapping({key: value})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_size_conditions_need_a_width_in_thirds() -> None:
    with pytest.raises(ValueError, match="3 must divide width 128"):
        TransformerConfig(num_attention_heads=8, attention_head_dim=16, sample_size=128)


def test_strings_are_never_evaluated(tmp_path) -> None:
    canary = tmp_path / "canary"
    attack = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    config = {"_class_name": "Transformer3DModel", "motion_module_kwargs": attack}
    with pytest.raises(ValueError, match="must be a JSON object"):
        Transformer3DModel.from_config(config)
    assert not canary.exists()


def test_unknown_keys_are_reported_not_fatal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ea_dit.network.config"):
        config = TransformerConfig.from_mapping(
            {"decay": 0.9999, "num_layers": 6, "_class_name": "x", "motion_module_kwargs": {"colour": 1}}
        )
    assert config.num_layers == 6
    assert "decay" in caplog.text
    assert "motion_module_kwargs.colour" in caplog.text
    assert "_class_name" not in caplog.text


def test_from_config_reports_stray_keys_and_goes_on() -> None:
    # diffusers' own logger does not propagate: listen there.
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("diffusers.configuration_utils")
    logger.addHandler(handler)
    try:
        config = {"_class_name": "Transformer3DModel", "num_layers": 2, "optimization_step": 2100}
        with torch.device("meta"):
            model = Transformer3DModel.from_config(config)
    finally:
        logger.removeHandler(handler)
    assert len(model.transformer_blocks) == 2
    assert any("optimization_step" in record.getMessage() for record in records)


def test_motion_config_takes_lists() -> None:
    config = MotionConfig.from_mapping({"attention_block_types": ["Temporal_Self"]})
    assert config.attention_block_types == ("Temporal_Self",)
    assert MotionConfig.from_mapping(None) == MotionConfig()


def test_grid_counts_only_for_grid_modules() -> None:
    motion = MotionConfig(block_size=2)
    assert TransformerConfig(motion_module_kwargs=motion).motion_block_size == 1
    assert (
        TransformerConfig(motion_module_kwargs=motion, motion_module_type="VanillaGrid").motion_block_size
        == 2
    )
