"""Models and LoRAs that clients may name: those in folders that whoever starts the server allows. Imports no torch.

A name is the name of a folder or file, never a path. The folders are read again when they are asked about, so what is
added or removed counts without a restart.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ea_runtime.errors import UserError, nearest
from ea_runtime.files.safe import inside, is_file, plain, quote, read_json
from ea_runtime.models.geometry import Geometry
from ea_runtime.models.layout import BUNDLED, PARTS, GenerationDefaults, bundled_folder, read_defaults
from ea_runtime.models.weights import read_header

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
#: files that say what a model is; its entry is made again when one of them changes
_FACTS = (
    "ea.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    *(f"{spec.folder}/config.json" for spec in PARTS.values()),
)
_PEFT = "adapter_model.safetensors"
#: seconds for which what was found is taken as it is
_FRESH = 0.5
_WORDS, _CHARACTERS = 32, 200
Entry = TypeVar("Entry")


class UnknownName(UserError):
    """No model or LoRA has this name."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model. folder: "tiny" for the bundled one, else its absolute path; what `VideoPipeline.from_pretrained` takes.

    problem: one line about why it cannot be used; None if its settings can be read.
    """

    name: str
    folder: str
    defaults: GenerationDefaults
    geometry: Geometry
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class LoraEntry:
    """A LoRA. path: its file or folder. model: the model that it was trained on, as its file says; "" if it does not.

    trigger_words: words in a prompt that call its style. problem: as of a model.
    """

    name: str
    path: str
    model: str = ""
    trigger_words: tuple[str, ...] = ()
    summary: str = ""
    problem: str | None = None


class Catalogue:
    """The models and LoRAs of some folders.

    Args:
        models: folders of models, or of several of them. The bundled models are always there.
        loras: folders of LoRA files, or of folders as peft saves them.

    Where two have one name, the first counts. Raises UserError for a folder that does not exist.
    """

    def __init__(
        self, models: Iterable[str | os.PathLike[str]] = (), loras: Iterable[str | os.PathLike[str]] = ()
    ) -> None:
        self._model_folders = [_folder(one, "models") for one in models]
        self._lora_folders = [_folder(one, "loras") for one in loras]
        self._known: dict[str, tuple[Any, Any]] = {}
        self._found: dict[str, tuple[float, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def models(self) -> dict[str, ModelEntry]:
        """All models by name, the bundled ones first."""
        return self._fresh("models", self._find_models)

    def loras(self) -> dict[str, LoraEntry]:
        """All LoRAs by name."""
        return self._fresh("loras", self._find_loras)

    def model(self, name: Any) -> ModelEntry:
        """A model by its name. Raises UnknownName; UserError for one that cannot be used."""
        return _by_name(self.models(), name, "model")

    def default(self) -> str:
        """The model of a request that names none: the first of the allowed folders, else the bundled one."""
        usable = [name for name, entry in self.models().items() if entry.problem is None]
        return next((name for name in usable if name not in BUNDLED), BUNDLED[0])

    def lora(self, name: Any) -> LoraEntry:
        """A LoRA by its name. Raises UnknownName; UserError for one that cannot be used."""
        return _by_name(self.loras(), name, "LoRA")

    def _fresh(self, kind: str, find: Callable[[], dict[str, Entry]]) -> dict[str, Entry]:
        with self._lock:
            when, found = self._found.get(kind, (0.0, {}))
            if time.monotonic() - when > _FRESH or not when:
                found = find()
                self._found[kind] = time.monotonic(), found
            return found

    def _find_models(self) -> dict[str, ModelEntry]:
        places = [(name, name, bundled_folder(name)) for name in BUNDLED]
        for folder in self._model_folders:
            several = [folder] if _is_model(folder) else [one for one in _entries(folder) if _is_model(one)]
            places += [(one.name, str(one), one) for one in several]
        found: dict[str, ModelEntry] = {}
        for name, where, folder in places:
            if name not in found and _NAME.fullmatch(name):
                stamp = _stamp(folder / fact for fact in _FACTS)
                found[name] = self._remembered(where, stamp, lambda: _read_model(name, where, folder))  # noqa: B023
        return found

    def _find_loras(self) -> dict[str, LoraEntry]:
        found: dict[str, LoraEntry] = {}
        for folder in self._lora_folders:
            for path in _entries(folder):
                is_folder = is_file(path / _PEFT)
                if not is_folder and not (path.suffix.lower() == ".safetensors" and is_file(path)):
                    continue
                name = path.name if is_folder else path.stem
                if name in found or not _NAME.fullmatch(name):
                    continue
                file = path / _PEFT if is_folder else path
                found[name] = self._remembered(
                    str(path),
                    _stamp([file]),
                    lambda: _read_lora(name, path, file),  # noqa: B023
                )
        return found

    def _remembered(self, place: str, stamp: Any, read: Callable[[], Entry]) -> Entry:
        """The entry read when the files of a place had this stamp, else what they hold now."""
        before, entry = self._known.get(place, (None, None))
        if entry is None or before != stamp:
            entry = read()
            self._known[place] = stamp, entry
        return entry


def _folder(path: str | os.PathLike[str], option: str) -> Path:
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"`--{option}` must be a folder, got {quote(str(path), 400)}; give one that exists")
    return folder


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # removed, or not readable any more: nothing is in it
        return []


def _is_model(folder: Path) -> bool:
    return any(is_file(folder / fact) for fact in ("model_index.json", *_FACTS[-len(PARTS) :]))


def _stamp(paths: Iterable[Path]) -> list[Any]:
    """Sizes and times of files."""
    found: list[Any] = []
    for path in paths:
        try:
            stat = path.stat()
            found.append((stat.st_size, stat.st_mtime_ns, stat.st_ino))
        except OSError:
            found.append(None)
    return found


def _read_model(name: str, where: str, folder: Path) -> ModelEntry:
    try:
        _, defaults = read_defaults(where)
        configs = [_config(folder, PARTS[part].folder) for part in ("vae", "denoiser")]
        return ModelEntry(name, where, defaults, Geometry.from_configs(*configs))
    except UserError as error:
        return ModelEntry(
            name, where, GenerationDefaults(), Geometry(), str(error).replace(str(folder), name)
        )


def _config(folder: Path, part: str) -> dict[str, Any] | None:
    name = f"{part}/config.json"
    return read_json(folder, name) if is_file(inside(folder, name)) else None


def _read_lora(name: str, path: Path, file: Path) -> LoraEntry:
    try:
        weights = read_header(file)
    except UserError as error:
        return LoraEntry(name, str(path), problem=str(error))
    facts = weights.metadata
    words = [
        plain(word.strip(), _CHARACTERS) for word in facts.get("modelspec.trigger_phrase", "").split(",")
    ]
    rank = plain(facts.get("ss_network_dim", ""), 20)
    title = facts.get("modelspec.description") or facts.get("modelspec.title") or ""
    return LoraEntry(
        name,
        str(path),
        model=plain(facts.get("ss_sd_model_name", ""), _CHARACTERS),
        trigger_words=tuple(word for word in words if word)[:_WORDS],
        summary=", ".join(
            part for part in (plain(title, _CHARACTERS), f"rank {rank}" if rank else "") if part
        ),
    )


def _by_name(entries: Mapping[str, Any], name: Any, kind: str) -> Any:
    entry = entries.get(name) if isinstance(name, str) else None
    if entry is None:
        known = [one for one, entry in entries.items() if entry.problem is None]
        there = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "") or "none"
        hint = nearest(name[:128], known) if isinstance(name, str) else ""
        raise UnknownName(f"no {kind} is called {quote(name)}; there are: {there}{hint}")
    if entry.problem is not None:
        raise UserError(f"the {kind} {name!r} cannot be used: {entry.problem}")
    return entry
