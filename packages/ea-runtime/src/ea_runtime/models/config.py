"""Checks of a part's config.json before a class is built from it: bounded in size, and asking for no code.

Classes check what their own keys mean. Here is what no class can check: a config that would make its constructor
take hours or all memory, and keys that make a library fetch or run code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.files.safe import plain, quote

#: transformers and diffusers load code or other files because of these
_CODE_KEYS = re.compile(
    r"auto_map|custom_pipelines?|quantization_config|trust_remote_code|transformers_weights|_?(attn|experts)_implementation\w*"
)
#: pattern of a key -> the largest whole number it may hold (a depth is also bound by the tensors of the file)
_LIMITS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"num_(\w+_)?layers|num_transformer_block|layers_per_block|num_blocks|depth"), 512),
    (re.compile(r"sample_size|patch_size|block_size"), 4096),
    (re.compile(r"num_\w*heads"), 1024),
    (re.compile(r"ch|ch_mult|d_model|d_ff|d_kv|\w*dim\w*|\w*channels"), 1 << 17),
    (re.compile(r"\w*max_len\w*|\w*max_position\w*|\w*num_buckets|\w*max_distance|num_embeds\w*"), 1 << 16),
    (re.compile(r"vocab_size|num_vector_embeds"), 1 << 20),
)
_DEPTH = _LIMITS[0][0]
_MAX_VALUES = 10_000
_MAX_LENGTH = 4096
_MAX_DEPTH = 16
_MAX_TABLE = 1 << 27


def check_config(config: dict[str, Any], label: str, num_tensors: int | None = None) -> None:
    """Raises UserError if a network's `config` is too large to build or asks for code.

    num_tensors: number of tensors in the part's files; a network of more layers than that cannot be theirs.
    """
    check_no_code(config, label)
    for key, value, _ in _walk(config, "", 0):
        if type(value) is int:
            _check_number(key, value, label, num_tensors)
    _check_depth(config, label, num_tensors)
    _check_tables(config, label)


def check_no_code(config: dict[str, Any], label: str) -> None:
    """Raises UserError if a JSON object is oversized or has a key that makes a library load code."""
    for count, (key, value, depth) in enumerate(_walk(config, "", 0)):
        if count > _MAX_VALUES or depth > _MAX_DEPTH:
            raise UserError(f"{label} is larger than any config of a model; do not use this folder")
        if value and value is not True and _CODE_KEYS.fullmatch(key):
            raise UserError(
                f"{label} has `{key}`, which makes a library load code or other files; remove it if you "
                "trust this folder"
            )
        if isinstance(value, (list, str)) and len(value) > _MAX_LENGTH:
            raise UserError(
                f"{label}: `{plain(key)}` has {len(value):,} entries or characters; do not use this folder"
            )


def _walk(value: Any, key: str, depth: int) -> Iterator[tuple[str, Any, int]]:
    yield key, value, depth
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _walk(item, name, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item, key, depth + 1)


def _check_number(key: str, value: int, label: str, num_tensors: int | None) -> None:
    for pattern, limit in _LIMITS:
        if not pattern.fullmatch(key):
            continue
        if abs(value) > limit:
            raise UserError(
                f"{label}: `{key}` must be at most {limit:,}, got {quote(value)}; the file is damaged or "
                "hostile"
            )
        # one block holds several tensors, so a depth above their number belongs to another network
        if pattern is _DEPTH and num_tensors is not None and value > num_tensors:
            raise UserError(
                f"{label}: `{key}` {value} does not fit weights of {num_tensors} tensors; download the "
                "folder again"
            )
        return


def _check_depth(config: dict[str, Any], label: str, num_tensors: int | None) -> None:
    """Bounds blocks within blocks, whose numbers multiply, by the number of tensors."""
    lists = ("block_out_channels", "ch_mult", "down_block_types", "up_block_types")
    blocks = max(_size(config.get(key)) for key in lists) * _positive(config.get("layers_per_block"))
    inner = max(
        _positive(motion.get("num_transformer_block")) * _size(motion.get("attention_block_types"))
        for motion in _motions(config)
    )
    layers = _positive(config.get("num_layers")) * inner
    if num_tensors is not None and max(blocks, layers) > num_tensors:
        raise UserError(
            f"{label} describes {max(blocks, layers):,} layers, which does not fit weights of "
            f"{num_tensors} tensors; "
            "download the folder again"
        )


def _check_tables(config: dict[str, Any], label: str) -> None:
    """Bounds the position tables, which are computed when a network is built."""
    width = math.prod(_positive(config.get(key)) for key in ("num_attention_heads", "attention_head_dim"))
    max_len = max(_positive(motion.get("temporal_position_encoding_max_len")) for motion in _motions(config))
    side = _positive(config.get("sample_size")) // _positive(config.get("patch_size"))
    size = width * max(max_len, side * side)
    if size > _MAX_TABLE:
        raise UserError(
            f"{label}: `num_attention_heads` x `attention_head_dim` x positions is {size:,}, at most "
            f"{_MAX_TABLE:,} can "
            "be built; the file is damaged or hostile"
        )


def _motions(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of motion modules, in use or not; at least one, if only an empty one."""
    found = [config.get(f"motion_module_kwargs{kind}") for kind in ("", "_even", "_odd")]
    return [one for one in found if isinstance(one, dict)] or [{}]


def _size(value: Any) -> int:
    return len(value) if isinstance(value, list) and value else 1


def _positive(value: Any) -> int:
    return value if type(value) is int and value > 0 else 1
