"""The metadata in a LoRA file's header: rank, trigger words, base model, training.

It uses the names that other tools read: `ss_*` of sd-scripts and A1111, `modelspec.*` (the SAI model specification),
and `ea_*` for the rest. `sshs_*` hashes are computed when a file is written (io.py).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote
from ea_runtime.models.hash import part_hash

#: sha256 over the denoiser's files of the model that a LoRA was trained on (ea_runtime.models.hash.part_hash)
BASE_HASH = "ea_base_hash"
_TRAINING = "ea_training"
_NAMES = {
    "steps": "ss_steps",
    "lr": "ss_learning_rate",
    "seed": "ss_seed",
    "num_samples": "ss_num_train_images",
    "batch_size": "ss_total_batch_size",
}


@dataclass(frozen=True, slots=True)
class Card:
    """A file's own metadata.

    rank, alpha: of most layers. trigger_words: words in a prompt that call the style. base_model: its name;
    base_hash: see BASE_HASH. training: a summary, such as steps, lr, num_samples, loss; numbers and text.
    """

    rank: int | None = None
    alpha: float | None = None
    trigger_words: tuple[str, ...] = ()
    base_model: str | None = None
    base_hash: str | None = None
    title: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """Text by key, for `write_lora`."""
        found: dict[str, Any] = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": self.rank,
            "ss_network_alpha": None if self.alpha is None else f"{self.alpha:g}",
            "ss_base_model_version": "easyanimate_v2",
            "ss_sd_model_name": self.base_model,
            "ss_output_name": self.title,
            "modelspec.title": self.title,
            "modelspec.trigger_phrase": ", ".join(self.trigger_words) or None,
            BASE_HASH: self.base_hash,
            _TRAINING: json.dumps(dict(self.training), sort_keys=True) if self.training else None,
        }
        found |= {name: self.training.get(key) for key, name in _NAMES.items()}
        return {key: str(value) for key, value in found.items() if value is not None}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Card:
        """From a header; unreadable entries are ignored."""
        try:
            training = json.loads(metadata.get(_TRAINING, "{}"))
        except (ValueError, RecursionError):
            training = {}
        words = metadata.get("modelspec.trigger_phrase", "")
        rank, alpha = (_number(metadata.get(key)) for key in ("ss_network_dim", "ss_network_alpha"))
        return cls(
            rank=None if rank is None else int(rank),
            alpha=alpha,
            trigger_words=tuple(word.strip() for word in words.split(",") if word.strip()),
            base_model=metadata.get("ss_sd_model_name"),
            base_hash=metadata.get(BASE_HASH),
            title=metadata.get("modelspec.title", metadata.get("ss_output_name")),
            training=training if isinstance(training, dict) else {},
        )


def base_note(metadata: Mapping[str, str], model: Any) -> str | None:
    """A line for the user if a file was trained on other weights than `model`'s (a folder or name).

    None if they are the same, or if the file or the model has no hash.
    """
    wanted = metadata.get(BASE_HASH)
    if wanted is None or not isinstance(model, (str, os.PathLike)):
        return None
    try:
        found = part_hash(model, "denoiser")
    except UserError:
        return None
    if found == wanted:
        return None
    base = quote(metadata.get("ss_sd_model_name", "another model"))
    return (
        f"it was trained on other weights ({base}, {wanted[:12]!a}) than this model's ({found[:12]!r}): "
        "its effect may be weaker"
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
