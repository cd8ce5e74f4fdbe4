"""diffusers' caches over the steps of sampling (`enable_cache`), as far as they are right for this network.

FirstBlockCache and MagCache replace all blocks but the first by the identity in passes that they skip. The U-ViT skips
run between blocks: while such a cache is on they are given to the blocks that they lead to, and so are skipped with
them. TaylorSeer predicts the outputs of single modules; its own patterns find none here, so that it gets ours.
The others look for diffusers' attention classes, find none, and would do nothing in silence: they are refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from .blocks import TransformerBlock

_SUPPORTED = ("FirstBlockCacheConfig", "MagCacheConfig", "TaylorSeerCacheConfig")
#: modules that TaylorSeer predicts: each branch of the residual stream but the text's, which is no module's output
BRANCHES = (r"transformer_blocks\.\d+\.(attn1|attn_temporal|ff)",)
#: modules that are called once in each pass
_CALLED = re.compile(r"transformer_blocks\.\d+(\.(attn1|attn_temporal|ff)(\..*)?)?|proj_out")


def prepare_cache(model: nn.Module, blocks: Sequence[TransformerBlock], config: Any) -> Any:
    """Make the network's blocks known to diffusers; the config to use. Raises ValueError, one line."""
    kind = type(config).__name__
    if kind not in _SUPPORTED:
        raise ValueError(
            f"`config` {kind} does nothing or is wrong for this network; use {', '.join(_SUPPORTED)}, or the "
            "pipeline's own step_cache='teacache:0.1'"
        )
    if kind == "TaylorSeerCacheConfig":
        return _with_patterns(model, config)
    if len(blocks) < 2:
        raise ValueError(f"`config` {kind} skips all blocks after the first, and this network has only one")
    from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry

    TransformerBlockRegistry.register(
        TransformerBlock, TransformerBlockMetadata(return_hidden_states_index=0)
    )
    return config


def skips_blocks(config: Any) -> bool:
    """True for a cache that replaces blocks by the identity."""
    return type(config).__name__ in _SUPPORTED[:2]


def _with_patterns(model: nn.Module, config: Any) -> Any:
    if config.use_lite_mode:
        return config  # all blocks are left out, and the last layer is predicted
    if config.skip_predict_identifiers:
        raise ValueError(
            "`skip_predict_identifiers` gives zeros that would reach the output; use `use_lite_mode`, which predicts "
            "the output itself"
        )
    patterns = config.cache_identifiers or list(BRANCHES)
    found = [
        name for name, _ in model.named_modules() if any(re.fullmatch(pattern, name) for pattern in patterns)
    ]
    wrong = next((name for name in found if not _CALLED.fullmatch(name)), None)
    if wrong is not None or not found:
        what = "match no module" if not found else f"match {wrong}, which is not called in each pass"
        raise ValueError(f"`cache_identifiers` {what}; leave them out for {BRANCHES[0]}")
    return replace(config, cache_identifiers=patterns)
