"""The networks of a model folder that LoRA can adapt: with their weights, or names and shapes alone."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import nn

from ea_lora.keys import Part
from ea_runtime.files.safe import inside, is_file
from ea_runtime.models.layout import PARTS as FOLDERS
from ea_runtime.models.layout import class_name
from ea_runtime.models.loading import build_t5, load_part, load_parts, plan_part, read_part_config
from ea_runtime.models.meta import build_shapes


def load_networks(
    folder: Path, parts: Collection[str], *, with_weights: bool = False
) -> dict[Part, nn.Module | None]:
    """The networks of a model folder; None for those not in `parts` and for a missing text encoder.

    with_weights: False gives modules and shapes on the meta device. A text encoder that is no T5 is always
    loaded: only its builder knows its modules.
    """
    networks: dict[Part, nn.Module | None] = {"denoiser": None, "text": None}
    if "denoiser" in parts:
        plan = plan_part(folder, FOLDERS["denoiser"])
        networks["denoiser"] = load_part(plan, device="cpu" if with_weights else "meta")
    if "text" in parts and is_file(inside(folder, f"{FOLDERS['text'].folder}/config.json")):
        shapes = None if with_weights else t5_shapes(folder)
        text = load_parts(folder, parts=("text",)).text if shapes is None else shapes
        found = text if isinstance(text, nn.Module) else getattr(text, "model", None)
        networks["text"] = found if isinstance(found, nn.Module) else None
    return networks


def t5_shapes(folder: Path) -> nn.Module | None:
    """The T5 of a model folder without its weights, from its config alone; None if it is another kind.

    Raises UserError for a config that fits no T5.
    """
    config = read_part_config(folder, FOLDERS["text"])
    if class_name(config, FOLDERS["text"]) != "T5EncoderModel":
        return None
    return build_shapes(lambda: build_t5(config))
