"""The recipe in an output: what of its sidecar makes it again, without places on this disk.

    {"ea_recipe": 1, "settings": {...}, "fps": 24, "model": {"name", "sha256"}, "device": {"device", "dtype"},
     "loras": [{"file", "sha256", "weight"}, ...], "engine": {"name"}}

`device` also has "quantize", "gguf_sha256" and "attention" where they were asked for.

Nothing in it depends on when or how fast the file was made, so the same request gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.files.hashes import content_hash
from ea_runtime.generation.inputs import INPUTS
from ea_runtime.generation.record import VERSION, check_record
from ea_runtime.models.quantize import parse_quantize
from ea_runtime.video.marks import CREATOR, Marks, is_signed, read_recipe

#: of a record's device, what the bits depend on and repeating asks for
_DEVICE = ("device", "dtype", "quantize", "gguf_sha256", "attention")
#: Our samplers by the names that Automatic1111's web UI has for them.
_SAMPLERS = {
    "euler": "Euler",
    "euler-a": "Euler a",
    "dpm++": "DPM++ 2M",
    "ddim": "DDIM",
    "pndm": "PLMS",
    "unipc": "UniPC",
}


def marks_of(record: Mapping[str, Any]) -> Marks:
    """The marks that an output of this record has."""
    settings, device = record["settings"], record["device"]
    recipe: dict[str, Any] = {
        "ea_recipe": VERSION,
        "settings": {
            **settings,
            **{name: Path(settings[name]).name for name in INPUTS if settings.get(name)},
        },
        "fps": record["fps"],
        "model": {**record["model"], "name": Path(record["model"]["name"]).name},
        "device": {name: device[name] for name in _DEVICE if name in device},
    }
    forms = parse_quantize(device.get("quantize"))
    if forms is not None:
        recipe["device"]["quantize"] = forms.without_place.text
    loras = [
        {**{name: one[name] for name in ("sha256", "weight")}, "file": Path(one["file"]).name}
        for one in record.get("loras", ())
    ]
    if loras:
        recipe["loras"] = loras
    if "inputs" in record:
        recipe["inputs"] = record["inputs"]
    if "engine" in record:
        recipe["engine"] = {"name": record["engine"]["name"]}
    prompt = " ".join(settings["prompt"].split())
    return Marks(json.dumps(recipe), _parameters(recipe), f"Made by AI with {CREATOR}: {prompt}")


def read_embedded(place: Path, kind: str) -> dict[str, Any]:
    """The record of what an output says of its making. Raises UserError if it says nothing, or cannot be read."""
    name = repr(str(place))
    try:
        text = read_recipe(place, kind)
        if text is None:
            raise UserError(
                f"{name} does not say how it was made; give the .json next to it, or an output that `ea generate` "
                "wrote without --no-metadata"
            )
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("ea_recipe") != VERSION:
            raise UserError(f"{name} has a recipe of another version; update ea-runtime")
        # signing changes the bytes each time, so there is nothing to compare
        digest = "" if kind != "folder" and is_signed(place) else content_hash(place)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or str(error)[:100]
        raise UserError(f"{name} cannot be read: {reason}; give an output of `ea generate`") from error
    output = {"file": place.name, "kind": kind, "sha256": digest}
    record = {**found, "ea_sidecar": VERSION, "versions": {}, "output": output}
    del record["ea_recipe"]
    check_record(record, name)
    return record


def _parameters(recipe: Mapping[str, Any]) -> str:
    """The recipe as Automatic1111's web UI writes it: the prompt, then the negative one, then a line of settings."""
    s, model = recipe["settings"], recipe["model"]
    loras = recipe.get("loras", ())
    tags = "".join(f" <lora:{Path(one['file']).stem}:{one['weight']:g}>" for one in loras)
    named = {
        "Steps": s["num_inference_steps"],
        "Sampler": _SAMPLERS.get(s["sampler"], s["sampler"]),
        "CFG scale": f"{s['guidance_scale']:g}",
        "Seed": s["seed"],
        "Size": f"{s['width']}x{s['height']}",
        "Model hash": model["sha256"][:10],
        "Model": model["name"],
        "Frames": s["num_frames"],
        "FPS": f"{recipe['fps']:g}",
        "Lora hashes": ", ".join(f"{Path(one['file']).stem}: {one['sha256'][:10]}" for one in loras),
        "Version": CREATOR,
    }
    line = ", ".join(f"{name}: {_quoted(value)}" for name, value in named.items() if value != "")
    negative = [f"Negative prompt: {s['negative_prompt']}"] if s["negative_prompt"] else []
    return "\n".join([s["prompt"] + tags, *negative, line])


def _quoted(value: Any) -> str:
    """A value with characters that separate values is written as a JSON string."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text
