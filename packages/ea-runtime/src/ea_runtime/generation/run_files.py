"""The files of a saved run: written whole or not at all, checked by their hashes when they are read, never a pickle.

FOLDER/state.json             which run it is, how far it is, the hash of the file below; what is in that file
FOLDER/NAME.safetensors       latents, the sampler's history, generators, the step cache; after denoising: latents
FOLDER/frames.raw, .jsonl     decoded frames (saved_frames.py)
FOLDER/writing                all frames are done: the file in the output's place may be this run's
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError
from ea_runtime.files.atomic import atomic_file, remove_partials, shortened, write_atomic
from ea_runtime.files.hashes import file_hash
from ea_runtime.files.safe import plain

if TYPE_CHECKING:
    import torch

VERSION = 1
STATE = "state.json"
MAX_STATE_BYTES = 16 << 20
_WRITING = "writing"
_OTHERS = (_WRITING, "frames.raw", "frames.jsonl")


@dataclass(frozen=True, slots=True)
class Found:
    """A state that a folder holds. phase: "denoising" or "denoised". done, total: network passes. key: of its run."""

    phase: str
    done: int
    total: int
    key: dict[str, Any]
    tree: Any
    tensors: Path

    @property
    def summary(self) -> str:
        """The place in words: "step 12 of 30" or "denoised"."""
        return f"step {self.done} of {self.total}" if self.phase == "denoising" else "denoised"


def state_folder(output: Path) -> Path:
    """The place for the state of the run that makes `output`: `.out.mp4.ea-run` next to out.mp4."""
    return output.with_name(f".{shortened(output.name)}.ea-run")


def write_state(
    folder: Path, key: Mapping[str, Any], phase: str, done: int, total: int, state: Mapping[str, Any]
) -> None:
    """Save a state in place of the one before. Raises OSError; UnpackableError before anything is written."""
    from safetensors.torch import save

    from ea_runtime.generation.packing import pack

    tensors: dict[str, torch.Tensor] = {}
    tree = pack(state, tensors)
    file = folder / f"{phase}-{done}-{secrets.token_hex(4)}.safetensors"
    data = save(tensors)
    with atomic_file(file, durable=True) as partial:
        partial.write_bytes(data)
    body = {
        "ea_run": VERSION,
        "key": key,
        "phase": phase,
        "done": done,
        "total": total,
        "file": file.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "tree": tree,
    }
    with atomic_file(folder / STATE, durable=True) as partial:
        partial.write_text(json.dumps({**body, "check": _check_sum(body)}), encoding="utf-8")
    for old in folder.glob("*.safetensors"):
        if old != file:
            old.unlink(missing_ok=True)
    remove_partials(folder)


def load_state(found: Found, device: torch.device) -> dict[str, Any]:
    """The saved state, its tensors on `device`. Raises UserError."""
    from safetensors.torch import load_file

    from ea_runtime.generation.packing import unpack

    try:
        return unpack(found.tree, load_file(found.tensors), device)
    except Exception as error:  # safetensors raises its own error types
        raise UserError(f"the saved run in {found.tensors.parent} cannot be read ({plain(error)})") from error


def mark_writing(folder: Path) -> None:
    """From here on a file in the output's place may be this run's own, whole."""
    with suppress(OSError):
        write_atomic(folder / _WRITING, "")


def is_writing(folder: Path) -> bool:
    """True if the run of this state had all its frames: a whole file in the output's place may then be its own."""
    return (folder / _WRITING).is_file() and (folder / STATE).is_file()


def read_state(folder: Path) -> Found | None:
    """The state in `folder`, its hashes checked; None without one. Raises UserError for one that is damaged."""
    path = folder / STATE
    where = f"the saved run in {folder}"
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > MAX_STATE_BYTES:
            raise UserError(f"{where} is damaged: {STATE} has more than {MAX_STATE_BYTES:,} bytes")
        body = json.loads(path.read_text(encoding="utf-8"))
        check = body.pop("check")
        if body["ea_run"] != VERSION:
            raise UserError(f"{where} is of another version of this program")
        if check != _check_sum(body):
            raise UserError(f"{where} is damaged: {STATE} is not what was written")
        tensors = folder / Path(body["file"]).name
        if not tensors.is_file() or file_hash(tensors) != body["sha256"]:
            raise UserError(f"{where} is damaged: {tensors.name} is not what was written")
        return Found(body["phase"], body["done"], body["total"], body["key"], body["tree"], tensors)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where} is damaged: {STATE} is none ({plain(error)})") from error


def remove_state(folder: Path, keep_folder: bool = False) -> None:
    """Remove a saved run, and its folder if nothing else is in it."""
    if not folder.is_dir():
        return
    with suppress(OSError):
        # state.json first: without it the others are nothing
        for path in (folder / STATE, *folder.glob("*.safetensors"), *map(folder.joinpath, _OTHERS)):
            path.unlink(missing_ok=True)
        remove_partials(folder)
        if not keep_folder:
            folder.rmdir()


def _check_sum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], limit: int = 4) -> str:
    """The values that differ, as "settings.seed 1 -> 2"; empty if none does."""
    before, after = _flat(old), _flat(new)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    told = [f"{name} {_short(before.get(name))} -> {_short(after.get(name))}" for name in names[:limit]]
    return "; ".join(told + [f"{len(names) - limit} more"] * (len(names) > limit))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, one in value.items():
        found |= _flat(one, f"{name}.{key}" if name else str(key))
    return found


def _short(value: Any) -> str:
    return "nothing" if value is None else plain(json.dumps(value, ensure_ascii=False), 40)
