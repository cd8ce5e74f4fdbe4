"""peft's config of an adapter, as its folder or diffusers' header has it: ranks and alphas, and all that is refused.

Patterns are peft's: a regular expression for the end of a module's path that begins at a dot, the first that fits.
Anything that an adapter asks for besides plain LoRA, or that this version does not know, is refused by name: applied as
plain LoRA it would silently give other pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import regex

from ea_lora.keys import Part
from ea_lora.places import is_text
from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote

#: diffusers' key in a file's header for the configs of its adapters
DIFFUSERS_KEY = "lora_adapter_metadata"
#: peft's own, where a config does not say
_RANK, _ALPHA = 8, 8
#: keys that change nothing when an adapter is used
_IDLE = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("eva_config", "runtime_config", "megatron_core", "qalora_group_size"),
)
_READ = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
#: ways to begin a training that leave the base as it is; the others (pissa, olora, loftq, corda, ...) change it
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_ASKS_FOR = {
    "use_dora": "DoRA",
    "fan_in_fan_out": "transposed weights",
    "lora_bias": "biases",
    "modules_to_save": "whole modules",
    "trainable_token_indices": "new tokens",
    "layer_replication": "repeated layers",
    "target_parameters": "parameters outside of Linears",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "loftq_config": "LoftQ",
    "corda_config": "CorDA",
    "lora_ga_config": "LoRA-GA",
    "arrow_config": "Arrow",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron's layers",
    "ensure_weight_tying": "tied weights",
}
_ONLY = "only plain LoRA can be used"
_LONGEST_PATTERN, _PATTERN_SECONDS = 1000, 1.0


class AdapterConfig:
    """Rank and alpha of every layer. Raises UserError, one line, for anything but plain LoRA."""

    def __init__(self, config: Mapping[str, Any], label: str) -> None:
        self.label = label
        kind = config.get("peft_type", "LORA")
        if kind != "LORA":
            raise UserError(f"{label}: `peft_type` must be LORA, got {quote(kind)}; {_ONLY}")
        for key, value in config.items():
            self._check(key, value)
        self.is_rs = config.get("use_rslora") or False
        self.rank = _whole(config.get("r", _RANK), f"{label}: `r`")
        self.alpha = _alpha(config.get("lora_alpha", _ALPHA), label)
        self.ranks = [
            (pattern, _whole(value, f"{label}: `rank_pattern`"))
            for pattern, value in self._patterns(config, "rank_pattern")
        ]
        self.alphas = [
            (pattern, _alpha(value, label)) for pattern, value in self._patterns(config, "alpha_pattern")
        ]
        #: True if a pattern is for the whole path of a module, from its model on
        self.needs_whole_paths = any("^" in pattern.pattern for pattern, _ in (*self.ranks, *self.alphas))

    def _check(self, key: str, value: Any) -> None:
        is_off = value in (None, False, "", [], {})
        if key == "bias" and value != "none":
            raise UserError(
                f"{self.label} asks for biases (`bias` is {quote(value)}, must be 'none'); {_ONLY}"
            )
        if key == "use_rslora" and not (isinstance(value, bool) or value is None):
            raise UserError(f"{self.label}: `use_rslora` must be true or false, got {quote(value)}")
        start = value.lower() if isinstance(value, str) else value
        if key == "init_lora_weights" and start not in _PLAIN_STARTS:
            raise UserError(
                f"{self.label}: `init_lora_weights` {quote(value)} changes the base model, which plain LoRA does not; "
                "save it again with peft's path_initial_model_for_weight_conversion, or merge it there"
            )
        if key in (*_IDLE, *_READ, "bias", "init_lora_weights") or is_off:
            return
        if key in _ASKS_FOR:
            raise UserError(f"{self.label} asks for {_ASKS_FOR[key]} (`{key}`); {_ONLY}")
        raise UserError(
            f"{self.label} sets {quote(key)} to {quote(value)}, which is unknown here and may change "
            f"the result; {_ONLY}"
        )

    def _patterns(self, config: Mapping[str, Any], key: str) -> list[tuple[Any, Any]]:
        table = config.get(key) or {}
        if not isinstance(table, Mapping):
            raise UserError(f"{self.label}: `{key}` must map module paths to numbers, got {quote(table)}")
        found = []
        for text, value in table.items():
            try:
                if len(text) > _LONGEST_PATTERN:
                    raise ValueError
                found.append((regex.compile(rf"(.*\.)?({text})$"), value))
            except (regex.error, ValueError, OverflowError):
                raise UserError(
                    f"{self.label}: `{key}` holds {quote(text)}, which is no regular expression of up to "
                    f"{_LONGEST_PATTERN} characters for module paths"
                ) from None
        return found

    def alpha_of(self, path: str, rank: int) -> float:
        """A layer's alpha as kohya counts it: its scale is alpha / rank."""
        alpha = self._first(self.alphas, path, self.alpha)
        return alpha * math.sqrt(rank) if self.is_rs else alpha

    def check_rank(self, path: str, rank: int) -> None:
        """Raises UserError if the config gives a layer another rank than its matrices have."""
        said = self._first(self.ranks, path, self.rank)
        if said != rank:
            raise UserError(
                f"{self.label} gives {quote(path)} rank {said}, and its matrices have {rank}; "
                "the config belongs to another adapter"
            )

    def _first(self, patterns: Iterable[tuple[Any, Any]], path: str, default: Any) -> Any:
        for pattern, value in patterns:
            try:
                if pattern.match(path, timeout=_PATTERN_SECONDS):
                    return value
            except TimeoutError:
                raise UserError(
                    f"{self.label}: the pattern {quote(pattern.pattern)} takes too long to match; write it simpler"
                ) from None
        return default


def header_configs(metadata: Mapping[str, str], label: str) -> dict[Part, tuple[str, AdapterConfig]]:
    """The configs in a file's own header, by network: the network's name there, and its config.

    Raises UserError for a damaged record, and as AdapterConfig does.
    """
    if DIFFUSERS_KEY not in metadata:
        return {}
    try:
        packed = json.loads(metadata[DIFFUSERS_KEY])
        assert isinstance(packed, dict)
    except (ValueError, RecursionError, AssertionError):
        raise UserError(f"{label}: `{DIFFUSERS_KEY}` in its header must be a JSON object") from None
    networks: dict[str, dict[str, Any]] = {}
    for key, value in packed.items():
        name, _, own = key.rpartition(".")
        networks.setdefault(name, {})[own] = value
    return {
        "text" if is_text(f"{name}.") else "denoiser": (name, AdapterConfig(own, label))
        for name, own in networks.items()
    }


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 20:
        raise UserError(f"{what} must be a whole number above 0, got {quote(value)}")
    return value


def _alpha(value: Any, label: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 < value < 1e9:
        raise UserError(f"{label}: alpha must be a number above 0, got {quote(value)}")
    return float(value)
