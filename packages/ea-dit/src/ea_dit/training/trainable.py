"""The parameters that a stage trains, and their rates: patterns over names -> optimiser groups.

A pattern is a regular expression that is searched anywhere in a parameter's name, so a plain piece of a name,
such as EasyAnimate's `transformer_blocks.6` or `long_connect_fc`, works as it did there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Literal

from torch import nn

Stage = Literal["align", "motion", "finetune"]
MOTION = ".attn_temporal."  # in the name of every tensor of a motion module
#: The parameters that each stage trains by default.
DEFAULT_PATTERNS: dict[Stage, tuple[str, ...]] = {
    "align": ("",),
    "motion": (re.escape(MOTION),),
    "finetune": ("",),
}
#: Rate of the second list, as a part of the first's: EasyAnimate halves it.
LOW_RATE = 0.5


def choose(
    names: Iterable[str], stage: Stage, patterns: Sequence[str] = (), low: Sequence[str] = ()
) -> dict[str, bool]:
    """The parameters to train -> True if at the lower rate.

    patterns: trained at the full rate; none: the stage's own. low: trained at the lower rate. A name in both
    lists has the full rate, as in EasyAnimate; the stage's own choice gives way to `low`.
    In stage "align" the motion modules are left out of the network, so no pattern reaches them.
    Raises ValueError, one line, for an invalid pattern or one that matches nothing.
    """
    offered = [name for name in names if stage != "align" or MOTION not in name]
    full = _matching(offered, patterns or DEFAULT_PATTERNS[stage], "trainable.patterns", stage)
    lower = _matching(offered, low, "trainable.low", stage)
    return {
        name: name in lower and not (patterns and name in full)
        for name in offered
        if name in full or name in lower
    }


def _matching(names: list[str], patterns: Sequence[str], where: str, stage: Stage) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"`{where}` must hold regular expressions, got {pattern!r}: {error}") from None
        hits = {name for name in names if expression.search(name)}
        if not hits:
            raise ValueError(
                f"`{where}`: {pattern!r} matches no parameter that stage {stage!r} may train{_near(pattern, names)}"
            )
        found |= hits
    return found


def _near(pattern: str, names: list[str]) -> str:
    """A hint with names near the pattern: whole ones and pieces of them, without block numbers."""
    pieces: dict[str, None] = {}
    for name in names:
        parts = [part for part in name.split(".") if not part.isdigit()]
        for piece in (name, *parts, *(name.rsplit(".", cut)[0] for cut in range(1, name.count(".") + 1))):
            pieces.setdefault(piece)
    close = get_close_matches(pattern, list(pieces), n=3, cutoff=0.5)
    if close:
        return f"; near: {', '.join(close)}"
    tops = list(dict.fromkeys(name.split(".")[0] for name in names))
    return f"; names begin with {', '.join(tops[:8])}"


def freeze_others(model: nn.Module, chosen: dict[str, bool]) -> None:
    """Turns `requires_grad` on for the chosen parameters, off for the rest."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


def parameter_groups(
    model: nn.Module, chosen: dict[str, bool], low_rate: float = LOW_RATE
) -> list[dict[str, Any]]:
    """Optimiser groups of the chosen parameters: by kind and by rate, without empty ones.

    The matrices of blocks and skips are for Muon; embeddings, tables, norms, biases and ends for AdamW.
    """
    groups: list[dict[str, Any]] = [
        {
            "name": f"{what}{', low rate' if is_low else ''}",
            "kind": kind,
            "lr_scale": low_rate if is_low else 1.0,
            "params": [],
        }
        for is_low in (False, True)
        for what, kind in (("matrices", "muon"), ("others", "adamw"))
    ]
    for name, parameter in model.named_parameters():
        if name in chosen:
            is_matrix = parameter.ndim == 2 and name.endswith("weight") and "table" not in name
            is_inner = name.startswith(("transformer_blocks.", "long_connect_fc."))
            groups[2 * chosen[name] + (not (is_matrix and is_inner))]["params"].append(parameter)
    return [group for group in groups if group["params"]]
