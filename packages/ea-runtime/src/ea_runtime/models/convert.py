"""`ea models convert`: pickled weights of a folder (or one file) become safetensors, originals kept.

Pickles are read in a child process (convert_child.py). Targets appear whole or not at all: they are written
into a temporary folder next to their place, checked, and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from ea_runtime.errors import UserError
from ea_runtime.files.atomic import new_folder, temporary_folder
from ea_runtime.files.safe import inside, is_file, quote, quote_path
from ea_runtime.models.layout import IMAGE_ENCODER, PARTS, resolve_folder
from ea_runtime.models.weights import STEMS, is_pickle, read_header, read_weight_map

_MAX_OUTPUT = 1 << 20


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """One file that was written. `skipped`: names in the source that hold no tensor."""

    source: Path
    target: Path
    num_tensors: int
    num_bytes: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _PartFiles:
    """The pickles of one part and the names of their targets; index: of shards."""

    part: str
    files: tuple[tuple[str, str], ...]
    index: tuple[str, dict[str, str]] | None = None


def convert_folder(model: str | os.PathLike[str], out: Path | None = None) -> list[ConvertedFile]:
    """Convert every pickled part of a model folder.

    out: a new folder that gets a complete copy, with safetensors in place of pickles; None writes the
        safetensors next to their originals. Parts that already have safetensors are left alone.

    Returns what was written, an empty list if nothing was pickled. An error (UserError) leaves nothing behind.
    """
    folder = resolve_folder(model)
    parts = [*(spec.folder for spec in PARTS.values()), IMAGE_ENCODER]
    jobs = [
        job for name in parts if inside(folder, name).is_dir() and (job := _plan(folder, name)) is not None
    ]
    if out is not None:
        with new_folder(out, "--output", outside=folder) as staged:
            copy_rest(folder, staged)
            written = _convert_jobs(folder, staged, jobs)
    elif jobs:
        with temporary_folder(folder / "convert") as staged:
            written = _convert_jobs(folder, staged, jobs)
            _move_in(staged, folder)
    else:
        return []
    return [replace(item, target=(out or folder) / item.target.relative_to(staged)) for item in written]


def convert_file(source: Path, out: Path | None = None) -> ConvertedFile:
    """Convert one pickled checkpoint, such as a single file that holds a whole transformer.

    out: a `.safetensors` file, or a folder that gets `diffusion_pytorch_model.safetensors`; None writes
    next to `source`.
    """
    if not is_file(source):
        raise UserError(
            f"there is no file {quote_path(source)}; give a model folder or a pickled weight file"
        )
    if not is_pickle(source.name):
        raise UserError(
            f"{quote_path(source)} must be a pickled weight file (.bin, .pt, .pth, .ckpt); nothing to convert"
        )
    if out is None:
        target = source.with_suffix(".safetensors")
    elif out.suffix == ".safetensors":
        target = out
    else:
        target = out / f"{STEMS[0]}.safetensors"
    if target.exists():
        raise UserError(f"{quote_path(target)} exists already; remove it or give another --output")
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(target) as staged:
        item = _convert_files([(source, staged / target.name)])[0]
        os.replace(item.target, target)
    return replace(item, target=target)


def _plan(folder: Path, part: str) -> _PartFiles | None:
    """The files to convert in a part, or None if it has safetensors or no weights."""
    names = sorted(entry.name for entry in inside(folder, part).iterdir())
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return None
    stem = STEMS[part in (PARTS["text"].folder, IMAGE_ENCODER)]  # as transformers names its files
    indices = [name for name in names if name.endswith(".bin.index.json")]
    if len(indices) == 1:
        return _plan_shards(folder, part, indices[0], stem)
    pickles = [name for name in names if is_pickle(name) and is_file(inside(folder, f"{part}/{name}"))]
    usual = [name for name in pickles if name in (f"{STEMS[0]}.bin", "pytorch_model.bin")]
    chosen = usual or pickles
    if len(indices) > 1 or len(chosen) > 1:
        raise UserError(
            f"{part} of model folder {quote_path(folder)} has several weight files "
            f"({', '.join(map(quote, chosen[:3]))}); "
            "convert the right one alone: `ea models convert FILE -o FOLDER`"
        )
    return _PartFiles(part, ((chosen[0], f"{stem}.safetensors"),)) if chosen else None


def _plan_shards(folder: Path, part: str, index_name: str, stem: str) -> _PartFiles:
    weight_map, where = read_weight_map(folder, part, index_name)
    shards = sorted(set(weight_map.values()))
    for name in shards:
        if not is_pickle(name) or not is_file(inside(folder, f"{part}/{name}")):
            raise UserError(
                f"{where} must name weight files next to it, got {quote(name)}; download it again"
            )
    count = len(shards)
    targets = {name: f"{stem}-{number:05}-of-{count:05}.safetensors" for number, name in enumerate(shards, 1)}
    index = (f"{stem}.safetensors.index.json", {key: targets[name] for key, name in weight_map.items()})
    return _PartFiles(part, tuple(targets.items()), index)


def copy_rest(folder: Path, target: Path) -> None:
    """Copies everything but pickles: configs, tokenizer, safetensors. Links that leave the folder are refused."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if is_pickle(name) or name.endswith(".bin.index.json"):
            continue
        real = inside(folder, name)
        if is_file(real):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(real, target / name)


def _convert_jobs(folder: Path, out: Path, jobs: list[_PartFiles]) -> list[ConvertedFile]:
    """Writes the targets of all jobs beneath `out`, in part folders."""
    pairs = []
    for job in jobs:
        (out / job.part).mkdir(exist_ok=True)
        pairs += [(inside(folder, f"{job.part}/{old}"), out / job.part / new) for old, new in job.files]
    written = _convert_files(pairs) if pairs else []
    for job in jobs:
        if job.index is not None:
            _write_index(out / job.part, job.index)
    return written


def _write_index(directory: Path, index: tuple[str, dict[str, str]]) -> None:
    name, weight_map = index
    headers = {file: read_header(directory / file) for file in set(weight_map.values())}
    absent = [key for key, file in weight_map.items() if key not in headers[file].tensors]
    if absent:
        raise UserError(
            f"the index of {directory.name} names {len(absent)} tensors that its files do not hold, first "
            f"{quote(absent[0])}; download it again"
        )
    total = sum(header.num_bytes for header in headers.values())
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _move_in(staged: Path, folder: Path) -> None:
    """Renames every staged file to its place; if one fails, the others are removed again."""
    moved: list[Path] = []
    try:
        for path in sorted(path for path in staged.rglob("*") if path.is_file()):
            target = folder / path.relative_to(staged)
            os.replace(path, target)
            moved.append(target)
    except BaseException:
        for target in moved:
            target.unlink(missing_ok=True)
        raise


def _convert_files(pairs: list[tuple[Path, Path]]) -> list[ConvertedFile]:
    reports = _run_child(pairs)
    written = []
    for (source, target), report in zip(pairs, reports, strict=True):
        header = read_header(target)  # the child is not trusted
        skipped = report.get("skipped")
        skipped = tuple(str(name) for name in skipped) if isinstance(skipped, list) else ()
        written.append(ConvertedFile(source, target, len(header.tensors), header.num_bytes, skipped))
    return written


def _run_child(pairs: list[tuple[Path, Path]]) -> list[dict]:
    """Runs convert_child over (source, target) pairs and returns its report of each.

    Raises UserError with its line about the first file that failed, or with how the process ended.
    """
    timeout = 120 + sum(source.stat().st_size for source, _ in pairs) / (5 << 20)
    # -P: the working folder is not on the import path, so a torch.py in it stays unread
    command = [sys.executable, "-P", "-m", "ea_runtime.models.convert_child"]
    command += [str(path.resolve()) for pair in pairs for path in pair]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
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
            f"converting {quote_path(pairs[0][0])} took more than {timeout:.0f} s and was stopped; nothing "
            "was written"
        ) from error
    reports = _reports(done.stdout)
    good = [report for report in reports if "error" not in report][: len(pairs)]
    if done.returncode == 0 and len(good) == len(pairs) and all(target.exists() for _, target in pairs):
        return good
    reason = next((str(report["error"]) for report in reports if "error" in report), None)
    if reason is None:
        tail = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        reason = f"the process that read it ended with code {done.returncode}"
        reason += f" ({quote(tail[0], 160)})" if tail else ""
    failed = pairs[min(len(good), len(pairs) - 1)][0]
    raise UserError(
        f"{quote_path(failed)} was not converted: {reason}; get the weights as safetensors from their author"
    )


def _reports(output: bytes) -> list[dict]:
    found = []
    for line in output[:_MAX_OUTPUT].decode("utf-8", "replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
