"""The memory of reading a prompt, walked through from T5's config.

Shapes: L tokens (V2 pads to 120), D width, K width of all heads, F of the feed-forward network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ea_runtime.models.memory.meter import Meter

#: tokens that a prompt is padded to
TEXT_TOKENS = 120


def walk_text(meter: Meter, config: Mapping[str, Any], tokens: int = TEXT_TOKENS) -> None:
    """Adds one prompt through T5's encoder."""
    m = meter
    width, heads = int(config.get("d_model") or 4096), int(config.get("num_heads") or 64)
    inner, wide = heads * int(config.get("d_kv") or 64), int(config.get("d_ff") or 10240)
    is_gated = bool(config.get("is_gated_act")) or str(config.get("feed_forward_proj")).startswith("gated")
    bias = [m.new(heads, tokens, tokens), m.new(heads, tokens, tokens), m.new(5 * tokens, tokens, itemsize=8)]
    x = m.new(tokens, width)
    for _ in range(int(config.get("num_layers") or 24)):
        normed = m.new(tokens, width, passes=6)
        q, k, v = (m.linear(tokens, width, inner) for _ in range(3))
        found = m.attention(1, tokens, tokens, inner)
        out = m.linear(tokens, inner, width)
        total = m.new(tokens, width, passes=3)
        m.free(normed, q, k, v, found, out, x)
        x = total
        normed = m.new(tokens, width, passes=6)
        hidden = m.linear(tokens, width, wide)
        active = [m.new(tokens, wide, passes=6) for _ in range(3)]
        gate = m.linear(tokens, width, wide) if is_gated else None
        out = m.linear(tokens, wide, width)
        total = m.new(tokens, width, passes=3)
        m.free(normed, hidden, *active, gate, out, x)
        x = total
    m.free(x, *bias)
