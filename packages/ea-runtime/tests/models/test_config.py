"""A part's config.json before a class is built from it: each limit, at it and one above, and keys that load code."""

from __future__ import annotations

from typing import Any

import pytest

from ea_runtime.errors import UserError
from ea_runtime.models.config import check_config, check_no_code


def refused(config: dict[str, Any], num_tensors: int | None = None) -> str:
    with pytest.raises(UserError, match="vae config") as error:
        check_config(config, "vae config", num_tensors)
    assert "\n" not in str(error.value)
    return str(error.value)


def taken(config: dict[str, Any], num_tensors: int | None = None) -> None:
    check_config(config, "vae config", num_tensors)


@pytest.mark.parametrize(
    ("keys", "limit"),
    [
        ("num_layers num_hidden_layers num_transformer_block layers_per_block num_blocks depth", 512),
        ("sample_size patch_size block_size", 4096),
        ("num_heads num_attention_heads num_kv_heads", 1024),
        ("ch ch_mult d_model d_ff d_kv dim cross_attention_dim in_channels channels", 1 << 17),
        ("max_length temporal_max_len max_position relative_attention_num_buckets", 1 << 16),
        ("relative_attention_max_distance num_embeds_ada_norm", 1 << 16),
        ("vocab_size num_vector_embeds", 1 << 20),
    ],
)
def test_each_number_has_a_limit(keys: str, limit: int) -> None:
    for key in keys.split():
        for sign in (1, -1):
            taken({key: sign * limit})
            line = refused({key: sign * (limit + 1)})
            assert f"`{key}` must be at most {limit:,}, got {sign * (limit + 1)}; the file is damaged" in line
            refused({"deep": {key: [1, {key: sign * (limit + 1)}]}})
        taken({key: True})
        taken({key: "9" * 10})
        taken({key: float(limit + 1)})
    taken({"other": 1 << 40})


@pytest.mark.parametrize(
    "key",
    [
        "auto_map",
        "custom_pipeline",
        "custom_pipelines",
        "quantization_config",
        "trust_remote_code",
        "transformers_weights",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_experts_implementation",
    ],
)
def test_a_key_that_loads_code_is_refused_wherever_it_is(key: str) -> None:
    for value in ("x", {"a": 1}, ["x"], 1):
        for config in ({key: value}, {"a": {"b": [{key: value}]}}):
            assert f"has `{key}`, which makes a library load code or other files; remove it" in refused(
                config
            )
            with pytest.raises(UserError, match="which makes a library load code"):
                check_no_code(config, "vae config")
    for harmless in (None, False, True, "", {}, [], 0):
        taken({key: harmless})
    taken({f"my{key}": "x"})


def nested(depth: int, end: Any = 1) -> Any:
    for _ in range(depth):
        end = {"a": end}
    return end


def test_a_config_has_a_size() -> None:
    taken(nested(16))
    assert "is larger than any config of a model" in refused(nested(17))
    refused(nested(16, [1]))
    lists: list[Any] = []
    for _ in range(14):
        lists = [lists]
    taken({"a": [lists]})  # a list within a list is as deep as an object within one
    refused({"a": [[lists]]})
    # the config itself is a value too, and a list one more than its members
    taken({"a": [0] * 4000, "b": [0] * 4000, "c": [0] * 1997})
    assert "is larger than any config" in refused({"a": [0] * 4000, "b": [0] * 4000, "c": [0] * 1998})


def test_a_text_and_a_list_have_a_length() -> None:
    taken({"a": "x" * 4096, "b": [0] * 4096, "c": dict.fromkeys(map(str, range(1000)))})
    assert "`a` has 4,097 entries or characters; do not use this folder" in refused({"a": "x" * 4097})
    assert "`b` has 4,097 entries" in refused({"b": [0] * 4097})


def test_a_depth_is_bound_by_the_tensors_of_the_file() -> None:
    for key in ("num_layers", "layers_per_block", "num_blocks"):
        taken({key: 6}, 6)
        assert f"`{key}` 7 does not fit weights of 6 tensors; download the folder again" in refused(
            {key: 7}, 6
        )
    taken({"num_layers": 7})
    taken({"num_heads": 7}, 6)


@pytest.mark.parametrize("key", ["block_out_channels", "ch_mult", "down_block_types", "up_block_types"])
def test_blocks_within_blocks_are_bound(key: str) -> None:
    config = {key: [1] * 3, "layers_per_block": 4}
    taken(config)
    taken(config, 12)
    assert "describes 12 layers, which does not fit weights of 11 tensors" in refused(config, 11)
    taken({key: [1] * 3}, 3)
    refused({key: [1] * 3}, 2)
    taken({key: [], "layers_per_block": 4}, 4)
    taken({key: "xxx", "layers_per_block": -4}, 1)


@pytest.mark.parametrize("kind", ["", "_even", "_odd"])
def test_motion_modules_are_bound(kind: str) -> None:
    motion = {"num_transformer_block": 3, "attention_block_types": ["x"] * 5}
    config = {"num_layers": 2, f"motion_module_kwargs{kind}": motion}
    taken(config, 30)
    assert "describes 30 layers" in refused(config, 29)
    taken({**config, f"motion_module_kwargs{kind}": "x"}, 2)
    taken({"num_layers": 2, "layers_per_block": 3}, 3)
    config[f"motion_module_kwargs{kind}"] = {**motion, "attention_block_types": []}
    assert "describes 6 layers" in refused(config, 5)  # none named counts as one


def test_position_tables_are_bound() -> None:
    """heads x width of a head x the longer of positions in time and on a picture, at most 2^27 numbers."""
    heads = {"num_attention_heads": 1 << 7, "attention_head_dim": 1 << 8}
    taken({**heads, "motion_module_kwargs": {"temporal_position_encoding_max_len": 1 << 12}})
    long = {**heads, "motion_module_kwargs_odd": {"temporal_position_encoding_max_len": (1 << 12) + 1}}
    assert "x positions is 134,250,496, at most 134,217,728 can be built" in refused(long)
    taken({**heads, "sample_size": 128, "patch_size": 2})
    assert "can be built; the file is damaged or hostile" in refused({**heads, "sample_size": 65})
    taken({**heads, "sample_size": 64})
    refused({**heads, "sample_size": 130, "patch_size": 2})
    taken({"num_attention_heads": 1 << 7, "sample_size": 1024})
    # what is no size counts as 1
    long = {"motion_module_kwargs": {"temporal_position_encoding_max_len": 1 << 16}}
    assert "x positions is 8,589,934,592" in refused(
        {"num_attention_heads": -1, "attention_head_dim": 1 << 17, **long}
    )
    taken({"sample_size": 4096, "patch_size": 0})
    refused({"num_attention_heads": 16, "sample_size": 4096, "patch_size": 0})
