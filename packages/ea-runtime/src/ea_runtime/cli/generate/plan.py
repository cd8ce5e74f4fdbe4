"""The plan of `ea generate`, settled and checked before torch is imported."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ea_runtime.cli.generate.resume import settle
from ea_runtime.errors import UserError
from ea_runtime.export.bundle import read_size
from ea_runtime.files.texts import lines_of, read_text
from ea_runtime.generation.adapters import AdapterChoice, check_adapters, plan_adapters
from ea_runtime.generation.prompt_tags import find_tagged, refuse_tags, split_tags
from ea_runtime.generation.requests import ModelRequest, check_prompts, check_seeds
from ea_runtime.generation.resolve import resolve
from ea_runtime.generation.run_files import is_writing, state_folder
from ea_runtime.generation.sidecar import describes, plan_sidecar, read_recorded
from ea_runtime.generation.spread import world_size
from ea_runtime.text.cleaning import check_prompt
from ea_runtime.video.credentials import MEDIA_TYPES, SigningKey, read_signing_key
from ea_runtime.video.limits import check_limits
from ea_runtime.video.output import KINDS, Output, plan_output

MAX_PROMPT_FILE = 16 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """One video: the arguments of the pipeline's call, where it goes, and LoRA files to put on the model, in order.

    is_finished: it is there already, and `--resume` keeps it.
    """

    settings: dict[str, Any]
    output: Output
    sidecar: Path
    adapters: list[AdapterChoice] = field(default_factory=list)
    is_finished: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be done.

    request: what all jobs share, nothing left out. recorded: the record that is repeated, if any. classes: kind of
    record -> class of the model's networks. has_recipe: outputs say how they were made. signing: the key that signs
    them, if any. resume: ended runs are continued. num_windows: of each video. is_forced: memory is not foretold.
    """

    request: ModelRequest
    jobs: list[Job]
    recorded: dict[str, Any] | None = None
    classes: dict[str, str] = field(default_factory=dict)
    has_recipe: bool = True
    signing: SigningKey | None = None
    resume: bool = False
    num_windows: int = 1
    is_forced: bool = False

    @property
    def repeats_adapters(self) -> bool:
        """True if the LoRAs are those of the sidecar, not others that the user named."""
        return all(choice.sha256 is not None for job in self.jobs for choice in job.adapters)


def make_plan(
    request: ModelRequest,
    *,
    size: str | None = None,
    prompts: str | None = None,
    lora_dir: str | None = None,
    sidecar: str | None = None,
    target: str | None = None,
    overwrite: bool = False,
    metadata: bool = True,
    sign: str | None = None,
    resume: bool = False,
    force: bool = False,
) -> Plan:
    """Check everything that can be checked without the weights.

    size: WIDTHxHEIGHT. prompts: a file of them. lora_dir: the folder of LoRAs that prompts may name. sidecar: the one
    to repeat, or an output. target: the output; None: named after the prompt. metadata: outputs say how they were
    made. sign: file of the key that signs them. resume: continue what was ended. force: try what memory seems too
    small for. Raises UserError.
    """
    if resume and world_size() > 1:
        raise UserError(
            f"`--resume` continues a run of one process, and {world_size()} were started; start one"
        )
    if request.cuda_graphs and request.compile is False:
        raise UserError("`--cuda-graphs` replays compiled blocks; leave --no-compile out")
    recorded = None if sidecar is None else read_recorded(sidecar)
    request = request.with_first_prompt()
    for _, text in request.prompts_at or ():
        refuse_tags(text, "--prompts-at")
    texts = _prompts(request.prompt, prompts, recorded)
    texts, tagged = _without_tags(texts, lora_dir, given=request.prompt is not None or prompts is not None)
    resolved = resolve(request, size=size, recorded=recorded, read_bundle_size=read_size)
    asked = resolved.request
    if request.negative_prompt is not None:
        refuse_tags(str(asked.negative_prompt), "--negative")
    seeds = check_seeds(asked.seed, len(texts))
    kind = recorded["output"]["kind"] if recorded else "png" if asked.num_frames == 1 else "mp4"
    outputs = _outputs(texts, target, kind, prompts is not None, overwrite, resume)
    for one in {output.kind for output in outputs}:
        check_limits(one, asked.width, asked.height, asked.fps)
    signing = None if sign is None else _signing_key(sign, outputs)
    shared = plan_adapters(request.lora, _recorded_loras(recorded, lora_dir))
    jobs = [
        _job(
            replace(asked, prompt=text, seed=seed), output, check_adapters([*shared, *own]), overwrite, resume
        )
        for text, seed, output, own in zip(texts, seeds, outputs, tagged, strict=True)
    ]
    if asked.compile and any(job.adapters != jobs[0].adapters for job in jobs):
        raise UserError(
            "`--compile` keeps the LoRAs of the first prompt; give all prompts the same ones, or leave it out"
        )
    return Plan(
        asked,
        jobs,
        recorded,
        classes=resolved.classes,
        has_recipe=metadata,
        signing=signing,
        resume=resume,
        num_windows=len(asked.windows(resolved.geometry)),
        is_forced=force,
    )


def _job(
    request: ModelRequest, output: Output, adapters: list[AdapterChoice], overwrite: bool, resume: bool
) -> Job:
    if not resume:
        return Job(request.settings, output, plan_sidecar(output), adapters)
    output, sidecar, is_finished = settle(output, overwrite, request, adapters)
    return Job(request.settings, output, sidecar, adapters, is_finished)


def _signing_key(path: str, outputs: Sequence[Output]) -> SigningKey:
    """The key that signs the outputs. Raises UserError, also for a kind of output that cannot hold a signature."""
    wrong = next((output.path for output in outputs if output.kind not in MEDIA_TYPES), None)
    if wrong is not None:
        kinds = ", ".join(f".{kind}" for kind in MEDIA_TYPES)
        raise UserError(f"`--sign` signs {kinds}, not {wrong.name!r}; give one of these with -o")
    return read_signing_key(path)


def _recorded_loras(recorded: dict[str, Any] | None, folder: str | None) -> list[dict[str, Any]]:
    """The LoRAs of a record, each in `folder` if it is not in its old place but there."""
    loras: list[dict[str, Any]] = list(recorded.get("loras", ())) if recorded else []
    for number, one in enumerate(loras):
        moved = Path(folder or "", Path(one["file"]).name)
        if folder is not None and not os.path.lexists(one["file"]) and moved.is_file():
            loras[number] = {**one, "file": str(moved)}
    return loras


def _without_tags(
    prompts: Sequence[str], folder: str | None, *, given: bool
) -> tuple[list[str], list[list[AdapterChoice]]]:
    """Prompts without the LoRAs that they name, and these. given: False for a sidecar's prompt, which has none."""
    if folder is not None and not Path(folder).is_dir():
        raise UserError(
            f"`--lora-dir` must be a folder of LoRA files, got {folder!r}; give one, or leave it out"
        )
    split = [split_tags(prompt) if given else (prompt, []) for prompt in prompts]
    return [text for text, _ in split], [find_tagged(tags, folder) for _, tags in split]


def slug(text: str, limit: int = 60) -> str:
    """A file name from a prompt: "A red circle!" -> "a-red-circle"; "video" if nothing is left."""
    words = re.findall(r"[a-z0-9]+", text[:1000].lower())
    name = ""
    for word in words:
        longer = f"{name}-{word}" if name else word[:limit]
        if len(longer) > limit:
            break
        name = longer
    return name or "video"


def _prompts(prompt: Any, file: str | None, recorded: dict[str, Any] | None) -> list[str]:
    if file is not None:
        if prompt is not None:
            raise UserError("give either a prompt or --prompts FILE, not both")
        if recorded is not None:
            raise UserError("give either --prompts FILE or --from, not both")
        return _read_prompts(Path(file))
    if prompt is None and recorded is None:
        raise UserError(
            'a prompt is needed, for example: ea generate "a red circle moves right"; one that starts with "-" comes '
            'after "--"'
        )
    return check_prompts(recorded["settings"]["prompt"] if prompt is None and recorded else prompt)


def _read_prompts(path: Path) -> list[str]:
    name = repr(str(path))
    try:
        if not path.exists():
            raise UserError(f"there is no prompts file {name}; give a text file with one prompt per line")
        if not path.is_file():
            raise UserError(
                f"prompts file {name} is no regular file; give a text file with one prompt per line"
            )
        if path.stat().st_size > MAX_PROMPT_FILE:
            raise UserError(f"prompts file {name} has more than {MAX_PROMPT_FILE:,} bytes; split it")
        lines = lines_of(read_text(path))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"prompts file {name}, one prompt per line: {error}") from error
    except OSError as error:
        raise UserError(f"prompts file {name} cannot be read: {error.strerror or error}") from error
    prompts = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
    for number, prompt in prompts.items():
        check_prompt(prompt, name=f"line {number} of {path.name}")
        if _is_json(prompt):
            raise UserError(
                f"line {number} of prompts file {name} is JSON, got {prompt[:40]!r}; write prompts alone, one per line"
            )
    if not prompts:
        raise UserError(f"prompts file {name} holds no prompt; write one per line")
    return list(prompts.values())


def _is_json(line: str) -> bool:
    """True for an object or a list, whose keys and brackets would be read as words."""
    try:
        return line[0] in "{[" and bool(json.loads(line))
    except (ValueError, RecursionError):
        return False


def _outputs(
    prompts: Sequence[str], wish: str | None, kind: str, many: bool, overwrite: bool, resume: bool
) -> list[Output]:
    """One output for each prompt. Raises UserError if one cannot be written.

    resume: those that are there are settled later.
    """
    suffix = next((s for s, k in KINDS.items() if k == kind), "/")
    if not many:
        return [
            _default_output(slug(prompts[0]), suffix, resume)
            if wish is None
            else plan_output(wish, overwrite or resume)
        ]
    digits = max(3, len(str(len(prompts))))
    if wish is None or wish.endswith(("/", os.sep)) or Path(wish).is_dir():
        folder = Path(wish or ".")
        names = [str(folder / f"{i:0{digits}}-{slug(p)}{suffix}") for i, p in enumerate(prompts, 1)]
    else:
        stem = Path(wish)
        names = [
            str(stem.with_name(f"{stem.stem}-{i:0{digits}}{stem.suffix}")) for i in range(1, len(prompts) + 1)
        ]
    return [plan_output(name, overwrite or resume) for name in names]


def _default_output(name: str, suffix: str, resume: bool) -> Output:
    """The first free name here: nothing is replaced that the user did not name. resume: or an ended run's."""
    for number in range(1, 10_000):
        stem = name if number == 1 else f"{name}-{number}"
        path = Path(stem if suffix == "/" else f"{stem}{suffix}")
        sidecar = Path(f"{stem}.json")
        if resume and is_writing(state_folder(path)):
            return plan_output(f"{path}/" if suffix == "/" else path, overwrite=True)
        if not path.exists() and (not sidecar.exists() or describes(sidecar) not in (None, path.name)):
            return plan_output(f"{path}/" if suffix == "/" else path)
    raise UserError(f"10,000 files called {name!r} are here already; give a name with -o")
