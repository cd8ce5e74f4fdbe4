"""One video from a request to its files: denoised, decoded as a stream, written, marked, recorded.

What `ea generate` and every other program that makes files calls.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import NotFiniteError, UserError
from ea_runtime.files.atomic import remove_partials_of
from ea_runtime.files.hashes import content_hash, file_hash
from ea_runtime.generation.inputs import input_hashes
from ea_runtime.generation.recipe import marks_of
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.run_key import run_key
from ea_runtime.generation.sidecar import versions, write_sidecar
from ea_runtime.generation.spread import world_size
from ea_runtime.generation.windows import recorded_settings, windows_of
from ea_runtime.models.hash import model_hash
from ea_runtime.models.quantize import parse_quantize
from ea_runtime.video.credentials import SigningKey, sign
from ea_runtime.video.marks import Marks
from ea_runtime.video.output import Output
from ea_runtime.video.overlap import overlapped

if TYPE_CHECKING:
    import numpy as np

    from ea_runtime.generation.pipeline import VideoPipeline
    from ea_runtime.generation.result import OnPreview, OnStep, VideoOutput
    from ea_runtime.generation.run_state import RunState
    from ea_runtime.video.measures import JoinMeter


@dataclass(frozen=True, slots=True)
class Made:
    """A video that was made.

    path: the file, or folder of frames. sidecar: the file of its record. sha256: of the output, before it was signed
    if it was. record: what the sidecar holds. timings: seconds by phase. notes: lines for the user.
    """

    path: Path
    sidecar: Path
    sha256: str
    record: dict[str, Any]
    timings: dict[str, float]
    notes: list[str]


def make_video(
    pipe: VideoPipeline,
    request: ModelRequest,
    output: Output,
    sidecar: Path,
    *,
    model_sha256: Callable[[], str],
    adapters: Sequence[Mapping[str, Any]] = (),
    has_recipe: bool = True,
    signing: SigningKey | None = None,
    timings: Mapping[str, float] | None = None,
    on_step: OnStep | None = None,
    on_preview: OnPreview | None = None,
    run: RunState | None = None,
) -> Made:
    """Make one video, its file and the sidecar, each of which appears whole or not at all.

    Args:
        request: one that is complete (`resolve`), with its prompt and seed.
        output: from `plan_output`. sidecar: from `plan_sidecar`.
        model_sha256: gives the hash of the model (`ModelHash`); asked for after denoising, or when the run's place is
            first saved.
        adapters: what `describe_adapters` says of those that are on the pipeline.
        has_recipe: the file says how it was made. signing: the key that signs it.
        timings: seconds of what came before, for the record.
        on_step: progress; phases "text", "denoising", "decoding". An exception raised in it stops the run. In it
            `run.save()` saves the place reached.
        on_preview: is shown the clean latents that each network pass leads to.
        run: where the run's place is saved, and what it is resumed from; removed once all files are there, and if the
            result is not finite.

    Raises UserError, OutOfMemoryError and what `on_step` raises.
    """
    settings = request.settings
    count = settings["num_frames"]
    step = on_step or (lambda phase, done, total: None)
    spent = dict(timings or {})
    if run is not None:
        record = record_of(pipe, request, "", adapters)
        run.bind(
            run_key(pipe, record, versions(), model_sha256), lambda: getattr(model_sha256, "is_ready", True)
        )
        run.begin(count * settings["height"] * settings["width"] * 3)
    try:
        result = pipe(**settings, output="latents", on_step=step, on_preview=on_preview, run=run)
        spent |= result.timings | {"decoding": 0.0, "writing": 0.0}
        record = record_of(pipe, request, model_sha256(), adapters)
        marks = marks_of(record) if has_recipe else Marks()
        meter = _meter(pipe, result)
        _write(_frames(pipe, result, run), count, output, request.fps, marks, spent, step, run, meter)
    except NotFiniteError:
        if run is not None:
            run.remove()
        raise
    digest = content_hash(output.path)
    written = {
        "file": output.path.name,
        "kind": output.kind,
        "sha256": digest,
        "frames": count,
        "width": settings["width"],
        "height": settings["height"],
    }
    record |= {
        "versions": versions(),
        "output": written,
        "timings": {name: round(seconds, 3) for name, seconds in spent.items()},
        "notes": result.notes,
    }
    if meter is not None:
        record["joins"] = meter.measured()
    write_sidecar(sidecar, record)
    if signing is not None:
        sign(output.path, output.kind, signing)
        written |= {"sha256": content_hash(output.path), "unsigned_sha256": digest}
        write_sidecar(sidecar, record)
    if run is not None:
        if run.is_open:
            for path in (output.path, sidecar):
                remove_partials_of(path)  # of attempts that were killed
        run.remove()
    return Made(output.path, sidecar, digest, record, spent, result.notes)


def _meter(pipe: VideoPipeline, result: VideoOutput) -> JoinMeter | None:
    """A meter of the joins of a video, if it has some."""
    from ea_runtime.video.measures import JoinMeter

    windows = windows_of(result.settings, pipe.geometry)
    return JoinMeter(windows.joins, windows.num_frames) if windows.joins else None


def _frames(pipe: VideoPipeline, result: VideoOutput, run: RunState | None) -> Iterator[np.ndarray]:
    """The frames of a video, those of a resumed run read and not decoded again where they are saved."""
    settings = result.settings
    count, height, width = (settings[name] for name in ("num_frames", "height", "width"))

    def decoded(start: int, is_tiled: bool = False) -> Iterator[np.ndarray]:
        from ea_runtime.generation.decoding import frames_of

        return frames_of(pipe, result, start=start, is_tiled=is_tiled)

    if run is None:
        yield from decoded(0)
        return
    saved = run.saved_frames(height, width)
    done, is_tiled = 0, False
    if saved is not None and saved.stop:
        if saved.first:  # decoded before the run was long enough to be saved
            yield from islice(decoded(0), saved.first)
        yield from saved.read()
        done, is_tiled = saved.stop, saved.is_tiled
    if done == count:
        return
    for number, frame in enumerate(decoded(done, is_tiled), done):
        is_tiled = is_tiled or getattr(pipe.vae, "use_tiling", False)
        run.keep_frame(number, count, frame, is_tiled)
        yield frame


def _write(
    frames: Iterator[np.ndarray],
    count: int,
    output: Output,
    fps: float,
    marks: Marks,
    spent: dict[str, float],
    step: OnStep,
    run: RunState | None,
    meter: JoinMeter | None,
) -> None:
    """Writes and measures frames while the next ones are decoded, and counts the seconds of both."""
    with (
        timed("writing", spent),
        output.writer(fps, count, marks) as write,
        overlapped(write if meter is None else meter.watched(write)) as hand_in,
    ):
        step("decoding", 0, count)
        done = 0
        while True:
            with timed("decoding", spent):
                frame = next(frames, None)
            if frame is None:
                break
            hand_in(frame)
            done += 1
            step("decoding", done, count)
        if run is not None:
            run.mark_writing()
    spent["writing"] -= spent["decoding"]  # decoding ran inside: what is left is waiting for the writer


def record_of(
    pipe: VideoPipeline,
    request: ModelRequest,
    model_sha256: str,
    adapters: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The record that makes a video again, as its sidecar and the file itself have it."""
    import torch

    from ea_runtime.machine.device import dtype_name

    return {
        "settings": recorded_settings(request.settings),
        "fps": request.fps,
        "model": {"name": model_name(request), "sha256": model_sha256},
        "device": {
            "device": str(pipe.device),
            "name": device_name(pipe),
            "dtype": dtype_name(pipe.dtype),
            "threads": torch.get_num_threads(),
            **_unusual(request),
        },
        **_engine_record(request),
        **({"inputs": hashes} if (hashes := input_hashes(request.settings)) else {}),
        **({"loras": list(adapters)} if adapters else {}),
    }


def model_name(request: ModelRequest) -> str:
    """The model as a record has it: a folder by its whole path."""
    is_path = os.sep in request.model or Path(request.model).is_dir()
    return os.path.abspath(request.model) if is_path else request.model


def device_name(pipe: VideoPipeline) -> str:
    """Device, or what the sessions of an engine really run on."""
    from ea_runtime.machine.device import describe

    return pipe.engine.describe() if pipe.engine is not None else describe(pipe.device)


class ModelHash:
    """The model's hash when it is called, counted meanwhile in a thread: a published text encoder has 20 GB."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._found: list[str] = []
        # daemon: Ctrl-C does not wait for it
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """True if a call does not wait."""
        return not self._thread.is_alive()

    def __call__(self) -> str:
        """64 hex digits. Raises UserError for a model that is no longer there."""
        self._thread.join()
        return self._found[0] if self._found else model_hash(self._model)

    def _count(self) -> None:
        with suppress(OSError, UserError):  # a call counts again, and raises what is wrong
            self._found.append(model_hash(self._model))


@contextmanager
def timed(name: str, timings: dict[str, float]) -> Iterator[None]:
    """Adds the seconds spent inside to `timings`."""
    start = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - start


def _unusual(request: ModelRequest) -> dict[str, Any]:
    """Unusual settings that change the last bits, besides device and threads."""
    rewrites = os.environ.get("EA_VAE_REWRITES") or "rule"
    given = {
        "processes": (world_size(), 1),
        "compiled": (request.compile, False),
        "cuda_graphs": (request.cuda_graphs, False),
        "vae_rewrites": (rewrites, "rule"),
        "quantize": (request.quantize, None),
        "attention": (None if request.attention == "native" else request.attention, None),
    }
    forms = parse_quantize(request.quantize)
    if forms is not None and forms.gguf is not None:
        given["gguf_sha256"] = (file_hash(forms.gguf), None)
    return {name: value for name, (value, usual) in given.items() if value != usual}


def _engine_record(request: ModelRequest) -> dict[str, Any]:
    """The record's entry for an engine other than torch."""
    if request.engine == "torch":
        return {}
    bundle = {} if request.bundle is None else {"bundle": os.path.abspath(request.bundle)}
    return {"engine": {"name": request.engine, **bundle}}
