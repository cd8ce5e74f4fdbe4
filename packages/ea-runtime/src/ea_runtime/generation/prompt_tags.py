"""LoRAs that a prompt names, `<lora:NAME:WEIGHT>`, as Automatic1111's web UI has them. Imports no torch.

NAME is a file's name without .safetensors, or a folder of peft's, in one folder that the user allows; WEIGHT is 1 if
left out. The tags are taken out of the prompt, and nothing else of it changes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote, quote_path
from ea_runtime.generation.adapters import AdapterChoice, check_weight

logger = logging.getLogger("ea")

_TAG = re.compile(r"<lora:([^<>]+)>")
#: what may be meant for one: capitals, spaces, no end, no name
_NEARLY = re.compile(r"<\s*lora\s*:[^<>]{0,60}>?", re.IGNORECASE)
_SUFFIX = ".safetensors"
#: the file in a folder that peft saves
_PEFT = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Tag:
    """A LoRA that a prompt names, and its strength."""

    name: str
    weight: float


def split_tags(prompt: str) -> tuple[str, list[Tag]]:
    """A prompt without its tags, and the tags in order; warns of what looks like one.

    Raises UserError for a tag without a usable name or weight.
    """
    text = _TAG.sub("", prompt)
    for nearly in _NEARLY.finditer(text):
        logger.warning("%s in the prompt is read as text; <lora:NAME:WEIGHT> names a LoRA", quote(nearly[0]))
    return text, [_tag(found[0], found[1]) for found in _TAG.finditer(prompt)]


def refuse_tags(text: str, name: str) -> None:
    """Raises UserError if a text that is no prompt names a LoRA."""
    found = _TAG.search(text)
    if found is not None:
        raise UserError(f"`{name}` holds {quote(found[0])}; name LoRAs in the prompt, where they act on both")


def find_tagged(tags: Sequence[Tag], folder: str | None) -> list[AdapterChoice]:
    """The files of the tags. folder: the one that is allowed, `--lora-dir`.

    Raises UserError: no folder, a name that is not in it.
    """
    if not tags:
        return []
    if folder is None:
        raise UserError(
            f"the prompt names the LoRA {quote(tags[0].name)}; give the folder that holds it with --lora-dir, or the "
            "file with --lora"
        )
    files = _files_in(Path(folder))
    return [AdapterChoice(_file_of(tag, files, folder), tag.weight) for tag in tags]


def _tag(whole: str, inside: str) -> Tag:
    name, *weights = inside.split(":")
    if len(weights) > 1 or any("=" in weight for weight in weights):
        raise UserError(
            f"{quote(whole)} in the prompt has weights for several networks; one weight is read: <lora:NAME:0.8>"
        )
    if not name.strip() or "/" in name or "\\" in name or name.strip() in (".", "..") or "\0" in name:
        raise UserError(
            f"{quote(whole)} in the prompt must name a file in --lora-dir by its name alone, such as <lora:style:0.8>"
        )
    try:
        weight = float(weights[0]) if weights else 1.0
    except ValueError:
        raise UserError(
            f"{quote(whole)} in the prompt: the weight must be a number, got {quote(weights[0])}; 1 is as trained"
        ) from None
    return Tag(name, check_weight(weight))


def _files_in(folder: Path) -> dict[str, str]:
    """The LoRAs in a folder by name."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"`--lora-dir` {quote_path(folder)} cannot be read: {error.strerror or error}; give a folder of LoRA files"
        ) from error
    files = {path.name: str(path) for path in found if (path / _PEFT).is_file()}
    return files | {
        path.stem: str(path) for path in found if path.suffix.lower() == _SUFFIX and path.is_file()
    }


def _file_of(tag: Tag, files: Mapping[str, str], folder: str) -> str:
    if tag.name not in files:
        close = get_close_matches(tag.name.strip().removesuffix(_SUFFIX), list(files), n=3, cutoff=0.5)
        shown = ", ".join(map(quote, close or sorted(files)[:3]))
        has = f"did you mean {shown}?" if close else f"it holds {shown or 'none'}"
        more = f" and {len(files) - 3} more" if not close and len(files) > 3 else ""
        raise UserError(f"there is no LoRA {quote(tag.name)} in --lora-dir {quote_path(folder)}; {has}{more}")
    return files[tag.name]
