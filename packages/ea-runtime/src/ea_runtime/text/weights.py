"""Checks on a text_encoder/ folder before a weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.files.safe import MAX_INDEX_BYTES, read_json

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
_INDEX = "model.safetensors.index.json"


def check_weights(part: Path, model_folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """The config and the safetensors files of `part`. Raises UserError unless it holds those of a T5.

    Pickled weights are refused here: reading one runs what its author wrote. An index may only name files next to it.
    """
    if not part.is_dir():
        raise UserError(
            f"{str(model_folder)!r} has no text_encoder folder; expected config.json and *.safetensors in it"
        )
    config = read_json(model_folder, f"{part.name}/config.json")
    if config.get("model_type") != "t5":
        raise UserError(
            f"the text encoder in {str(part)!r} must be a T5 (`model_type` 't5' in config.json), "
            f"got {config.get('model_type')!r}"
        )
    if (part / "model.safetensors").is_file():
        return config, [part / "model.safetensors"]
    if (part / _INDEX).is_file():
        shards = read_json(model_folder, f"{part.name}/{_INDEX}", MAX_INDEX_BYTES).get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else set()
        if not names or not all(
            isinstance(n, str) and n == Path(n).name and n.endswith(".safetensors") for n in names
        ):
            raise UserError(
                f"{_INDEX} in {str(part)!r} must map tensors to .safetensors files next to it; copy it again"
            )
        lacking = sorted(name for name in names if not (part / name).is_file())
        if lacking:
            raise UserError(
                f"the text encoder in {str(part)!r} lacks the shard {lacking[0]!r}; copy it again"
            )
        return config, [part / name for name in sorted(names)]
    pickled = sorted(path.name for pattern in _PICKLES for path in part.glob(pattern))
    if pickled:
        raise UserError(
            f"the text encoder in {str(part)!r} is pickled ({pickled[0]}), which can run code when read; "
            f"turn it into safetensors with `ea models convert {model_folder}`"
        )
    raise UserError(
        f"the text encoder in {str(part)!r} has no weights; expected model.safetensors or its shards"
    )
