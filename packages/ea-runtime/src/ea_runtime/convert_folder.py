"""`ea models convert`: pickled weights of a folder (or one file) become safetensors, originals kept.

Every pickle is read in a child process of its own (convert_weights.py). A target appears whole or not at
all: it is written under a temporary name beside its place, checked, and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ea_runtime.errors import UserError
from ea_runtime.folder_layout import PARTS, resolve_folder
from ea_runtime.safe_files import MAX_INDEX_BYTES, inside, is_file, quote, read_json
from ea_runtime.safe_weights import MAX_SHARDS, STEMS, is_pickle, read_header

_MAX_OUTPUT = 1 << 20


@dataclass(frozen=True, slots=True)
class Converted:
    """One file that was written. `skipped`: names in the source that hold no tensor."""

    source: Path
    target: Path
    num_tensors: int
    num_bytes: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Job:
    """The pickles of one part and the names of their targets; an index where there are shards."""

    folder: str
    files: tuple[tuple[str, str], ...]
    index: tuple[str, dict[str, str]] | None = None


def convert_folder(model: str | os.PathLike[str], out: Path | None = None) -> list[Converted]:
    """Convert every pickled part of a model folder.

    out: a new folder that gets a complete copy, with safetensors in place of pickles; None writes the
        safetensors beside their originals. Parts that have safetensors already are left alone.

    Returns what was written; empty where nothing was pickled. On an error (UserError) nothing stays behind.
    """
    folder = resolve_folder(model)
    jobs = [job for name in _part_folders(folder) if (job := _plan(folder, name)) is not None]
    if out is not None:
        return _convert_copy(folder, jobs, out)
    written: list[Converted] = []
    try:
        for job in jobs:
            written += _convert_part(folder, folder, job)
    except BaseException:
        for item in written:  # parts done before the one that failed: all or nothing
            item.target.unlink(missing_ok=True)
        raise
    return written


def convert_file(source: Path, out: Path | None = None) -> Converted:
    """Convert one pickled checkpoint, such as a single file that holds a whole transformer.

    out: a `.safetensors` file, or a folder that gets `diffusion_pytorch_model.safetensors`; None writes
    beside `source`.
    """
    if not is_file(source):
        raise UserError(
            f"there is no file {quote(str(source))}; give a model folder or a pickled weight file"
        )
    if not is_pickle(source.name):
        raise UserError(
            f"{quote(str(source))} must be a pickled weight file (.bin, .pt, .pth, .ckpt); nothing to convert"
        )
    if out is None:
        target = source.with_suffix(".safetensors")
    elif out.suffix == ".safetensors":
        target = out
    else:
        target = out / f"{STEMS[0]}.safetensors"
    if target.exists():
        raise UserError(f"{quote(str(target))} exists already; remove it or give another --output")
    target.parent.mkdir(parents=True, exist_ok=True)
    return _convert_one(source, target)


def _part_folders(folder: Path) -> list[str]:
    known = [spec.folder for spec in PARTS.values()]
    return [name for name in known if inside(folder, name).is_dir()]


def _plan(folder: Path, part: str) -> _Job | None:
    """What to convert in a part, or None where it has safetensors or no weights."""
    names = sorted(entry.name for entry in inside(folder, part).iterdir())
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return None
    stem = STEMS[part.startswith("text")]
    indices = [name for name in names if name.endswith(".bin.index.json")]
    if len(indices) == 1:
        return _plan_shards(folder, part, indices[0], stem)
    pickles = [name for name in names if is_pickle(name) and is_file(inside(folder, f"{part}/{name}"))]
    usual = [name for name in pickles if name in (f"{STEMS[0]}.bin", "pytorch_model.bin")]
    chosen = usual or pickles
    if len(indices) > 1 or len(chosen) > 1:
        raise UserError(
            f"{part} of model folder {quote(str(folder))} has several weight files "
            f"({', '.join(map(quote, chosen[:3]))}); "
            "convert the right one by itself: `ea models convert FILE -o FOLDER`"
        )
    return _Job(part, ((chosen[0], f"{stem}.safetensors"),)) if chosen else None


def _plan_shards(folder: Path, part: str, index_name: str, stem: str) -> _Job:
    weight_map = read_json(folder, f"{part}/{index_name}", MAX_INDEX_BYTES).get("weight_map")
    where = f"{part}/{index_name} in model folder {quote(str(folder))}"
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{where} must have a `weight_map` from tensor names to files; download it again")
    shards = sorted({str(name) for name in weight_map.values()})
    for name in shards:
        if (
            "/" in name
            or "\\" in name
            or not is_pickle(name)
            or not is_file(inside(folder, f"{part}/{name}"))
        ):
            raise UserError(
                f"{where} must name weight files that lie beside it, got {quote(name)}; download it again"
            )
    if len(shards) > MAX_SHARDS:
        raise UserError(f"{where} names {len(shards):,} files, more than the {MAX_SHARDS:,} it may name")
    count = len(shards)
    targets = {name: f"{stem}-{number:05}-of-{count:05}.safetensors" for number, name in enumerate(shards, 1)}
    index = (f"{stem}.safetensors.index.json", {key: targets[name] for key, name in weight_map.items()})
    return _Job(part, tuple(targets.items()), index)


def _convert_copy(folder: Path, jobs: list[_Job], out: Path) -> list[Converted]:
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"`--output` must be a new or empty folder, got {quote(str(out))}")
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"`--output` must lie outside the model folder, got {quote(str(out))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(out) as temporary:
        _copy_rest(folder, temporary)
        written = [item for job in jobs for item in _convert_part(folder, temporary, job)]
        if out.is_dir():
            out.rmdir()
        os.replace(temporary, out)
    return [
        Converted(
            item.source,
            out / item.target.relative_to(temporary),
            item.num_tensors,
            item.num_bytes,
            item.skipped,
        )
        for item in written
    ]


def _copy_rest(folder: Path, target: Path) -> None:
    """Copies what is no pickle: configs, tokenizer, safetensors. Links that leave the folder are refused."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if is_pickle(name) or name.endswith(".bin.index.json") or path.is_dir():
            continue
        real = inside(folder, name)
        if is_file(real):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(real, target / name)


def _convert_part(folder: Path, out: Path, job: _Job) -> list[Converted]:
    directory = out / job.folder if out != folder else inside(folder, job.folder)
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Converted] = []
    try:
        for source, target in job.files:
            written.append(_convert_one(inside(folder, f"{job.folder}/{source}"), directory / target))
        if job.index is not None:
            _write_index(directory, job.index, written)
    except BaseException:
        for item in written:
            item.target.unlink(missing_ok=True)
        raise
    return written


def _write_index(directory: Path, index: tuple[str, dict[str, str]], written: list[Converted]) -> None:
    name, weight_map = index
    held = {item.target.name: set(read_header(item.target).tensors) for item in written}
    absent = [key for key, file in weight_map.items() if key not in held[file]]
    if absent:
        raise UserError(
            f"the index names {len(absent)} tensors that its files do not hold, first "
            f"{quote(absent[0])}; download it again"
        )
    content = {"metadata": {"total_size": sum(item.num_bytes for item in written)}, "weight_map": weight_map}
    with _temporary_file(directory / name) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, directory / name)


def _convert_one(source: Path, target: Path) -> Converted:
    with _temporary_file(target) as temporary:
        report = _run_child(source, temporary)
        header = read_header(temporary, target.name)  # the child's word is not taken for it
        os.replace(temporary, target)
    skipped = tuple(str(name) for name in report.get("skipped", ()))
    return Converted(source, target, len(header.tensors), header.num_bytes, skipped)


def _run_child(source: Path, target: Path) -> dict:
    """Runs convert_weights. Raises UserError with its one line, or what became of it."""
    size = source.stat().st_size
    timeout = 120 + size / (5 << 20)
    # -P: the working folder is not on the import path, so a torch.py that lies there stays unread
    command = [
        sys.executable,
        "-P",
        "-m",
        "ea_runtime.convert_weights",
        str(source.resolve()),
        str(target.resolve()),
    ]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "",
    }
    where = quote(str(source))
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"converting {where} took more than {timeout:.0f} s and was stopped; nothing was written"
        ) from error
    lines = done.stdout[-_MAX_OUTPUT:].decode("utf-8", "replace").strip().splitlines()
    try:
        report = json.loads(lines[-1]) if lines else {}
    except (ValueError, RecursionError):
        report = {}
    if done.returncode == 0 and isinstance(report, dict) and target.exists():
        return report
    reason = report.get("error") if isinstance(report, dict) else None
    if not reason:
        tail = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = f"the process that read it ended with code {done.returncode}" + (
            f" ({quote(tail[-1], 160)})" if tail else ""
        )
    raise UserError(f"{where} was not converted: {reason}; get the weights as safetensors from their author")


@contextmanager
def _temporary_file(target: Path) -> Iterator[Path]:
    """A name beside `target` that no one else uses; whatever lies there afterwards is removed."""
    folder = Path(tempfile.mkdtemp(prefix=".convert-", dir=target.parent))
    try:
        yield folder / target.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _temporary_folder(out: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
