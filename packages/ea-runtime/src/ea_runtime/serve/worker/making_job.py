"""One job, from its request to its products; whatever goes wrong ends the job and not the worker."""

from __future__ import annotations

import errno
import logging
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.files.safe import plain
from ea_runtime.generation.adapters import AdapterChoice
from ea_runtime.generation.making import Made, make_video
from ea_runtime.generation.out_of_memory import OutOfMemoryError
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.run_state import RunState
from ea_runtime.generation.sidecar import plan_sidecar
from ea_runtime.generation.windows import with_recorded_window
from ea_runtime.machine.memory import free_memory, is_out_of_memory
from ea_runtime.serve.catalogue import Catalogue, ModelEntry, UnknownName
from ea_runtime.serve.jobs import Job, StoreError
from ea_runtime.serve.worker.link import Link, Places
from ea_runtime.serve.worker.models import LoadedModel, Models
from ea_runtime.serve.worker.products import make_products
from ea_runtime.serve.worker.stopping import Stop
from ea_runtime.video.output import plan_output

logger = logging.getLogger("ea.serve")

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: what CUDA says once it can do nothing more in this process
_LOST = ("CUDA error", "device-side assert", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")
_INSIST_EVERY = 0.5


class Cancelled(Exception):
    """Nobody wants the job any more."""


class Drained(Exception):
    """The worker is to end; the job's place is saved."""


class DeviceLost(Exception):
    """The device is unusable in this process; the worker must end, so that another one starts."""


@dataclass(frozen=True, slots=True)
class Saving:
    """Seconds of a run before its place is saved for the first time, and between two saves."""

    first_after: float = 30.0
    every: float = 30.0


class JobMaker:
    """Makes jobs one after the other with the models of one device."""

    def __init__(
        self,
        link: Link,
        models: Models,
        catalogue: Catalogue,
        stop: Stop,
        saving: Saving | None = None,
    ) -> None:
        self.link = link
        self.models = models
        self.catalogue = catalogue
        self.stop = stop
        self.saving = saving or Saving()
        self._places: Places | None = None

    def __call__(self, job: Job) -> None:
        """Makes a job that was claimed, and ends it in one of the ways that the link has. Raises DeviceLost."""
        self._places = None
        try:
            result = self._make(job)
        except Cancelled:
            self._insist(lambda: self.link.end_cancelled(job))
        except Drained:
            self._insist(lambda: self.link.hand_back(job))
        except Exception as error:
            code, message = explain(error)
            message = self._without_places(message)
            if code == "internal_error":
                logger.error("job %s failed:\n%s", job.id, traceback.format_exc())
            traceback.clear_frames(error.__traceback__)  # they hold the failed run's tensors
            free_memory_quietly()
            self._insist(lambda: self.link.fail(job, code, message))
            if any(sign in str(error) for sign in _LOST):
                raise DeviceLost(message) from error
        else:
            self._insist(lambda: self.link.finish(job, result))

    def _make(self, job: Job) -> dict[str, Any]:
        self._check(job, "loading", 0, 1)
        entry = self.catalogue.model(job.request["model"])
        choices = [
            AdapterChoice(self.catalogue.lora(one["name"]).path, one["scale"]) for one in job.request["loras"]
        ]
        self._places = places = self.link.open(job)
        request = request_of_job(job, entry, places, self.models.loading.quantize)
        shutil.rmtree(places.result, ignore_errors=True)
        places.result.mkdir(mode=0o700)
        try:
            return self._attempt(job, entry, request, choices, places)
        except Exception as error:
            if not (isinstance(error, OutOfMemoryError) or is_out_of_memory(error)):
                raise
            traceback.clear_frames(error.__traceback__)
            if not self.models.drop_others(entry):
                raise
        logger.warning("job %s ran out of memory; it is tried again without the other models", job.id)
        return self._attempt(job, entry, request, choices, places)

    def _attempt(
        self, job: Job, entry: ModelEntry, request: ModelRequest, choices: list[AdapterChoice], places: Places
    ) -> dict[str, Any]:
        model, seconds = self._load(job, entry, request, choices)
        adapters = model.loras.put(choices)
        self._check(job, "loading", 1, 1)
        run = RunState(
            places.run,
            first_after=self.saving.first_after,
            every=self.saving.every,
            note=lambda line: logger.info("job %s: %s", job.id, line),
        )

        def on_step(phase: str, done: int, total: int) -> None:
            self._check(job, phase, done, total, run)

        output = plan_output(places.result / f"{_name_of(job)}.{job.request['kind']}", overwrite=True)
        made = make_video(
            model.pipe,
            request,
            output,
            plan_sidecar(output),
            model_sha256=model.sha256,
            adapters=adapters,
            timings={"loading": seconds} if seconds else None,
            on_step=on_step,
            on_preview=model.previewer.watch(lambda picture: self._show(job, picture)),
            run=run,
        )
        return self._result(made, request)

    def _load(
        self, job: Job, entry: ModelEntry, request: ModelRequest, choices: list[AdapterChoice]
    ) -> tuple[LoadedModel, float]:
        try:
            return self.models.get(entry, request, choices)
        except UserError as error:
            self.models.drop(entry.folder)
            if isinstance(error, OutOfMemoryError):
                raise
            raise _Failed("model_unusable", f"the model {entry.name!r} cannot be loaded: {error}") from error

    def _result(self, made: Made, request: ModelRequest) -> dict[str, Any]:
        files = {"video": made.path.name, "sidecar": made.sidecar.name}
        files |= make_products(made.path, request.num_frames)
        return {
            "files": files,
            "sha256": made.sha256,
            "bytes": made.path.stat().st_size,
            "timings": {name: round(seconds, 3) for name, seconds in made.timings.items()},
            "frames": request.num_frames,
            "width": request.width,
            "height": request.height,
            "notes": list(made.notes),
        }

    def _check(self, job: Job, phase: str, done: int, total: int, run: RunState | None = None) -> None:
        """Reports progress. Raises Cancelled and Drained; before the latter the run's place is saved."""
        try:
            is_wanted = self.link.report(job, phase, done, total)
        except StoreError as error:
            logger.warning("progress of job %s is not noted: %s", job.id, error)
            is_wanted = True
        if not is_wanted:
            raise Cancelled
        if self.stop.is_set:
            if run is not None:
                run.save()
            raise Drained

    def _show(self, job: Job, picture: bytes) -> None:
        self.link.show(job, picture)

    def _insist(self, end: Callable[[], None]) -> None:
        """Ends a job, again and again while the store cannot be written: a full disk may be emptied.

        A worker that is to end gives up: the next one recovers the job.
        """
        while True:
            try:
                end()
                return
            except StoreError as error:
                logger.error("%s", error)
                if self.stop.wait(_INSIST_EVERY):
                    return

    def _without_places(self, message: str) -> str:
        """A message for clients, which are not to know the places of this machine."""
        known = [(entry.folder, entry.name) for entry in self.catalogue.models().values()]
        known += [(entry.path, entry.name) for entry in self.catalogue.loras().values()]
        if self._places is not None:
            places = self._places
            known += [(str(places.result), "the result"), (str(places.run), "the saved state")]
            known += [(str(places.pictures), "the pictures")]
        for place, name in sorted(known, key=lambda one: -len(one[0])):
            if "/" in place or "\\" in place:
                message = message.replace(place, name)
        return message


class _Failed(UserError):
    """A failure whose code is known."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def request_of_job(job: Job, entry: ModelEntry, places: Places, quantize: str | None = None) -> ModelRequest:
    """The request as `ea generate` would have it for the same settings. quantize: the form of the weights."""
    # a job of an older state folder has no entry of pictures
    pictures: dict[str, Any] = {
        name: str(places.pictures / f"{name}.png") for name in job.request.get("pictures", ())
    }
    return ModelRequest(
        **with_recorded_window(job.request["settings"]),
        **pictures,
        model=entry.folder,
        fps=job.request["fps"],
        engine="torch",
        compile=False,
        cuda_graphs=False,
        quantize=quantize,
    )


def explain(error: BaseException) -> tuple[str, str]:
    """(code, one line) of a job's failure."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(one, OSError) and one.errno in _FULL for one in causes):
        return "disk_full", "the server's disk is full; free some space there, then ask again"
    if isinstance(error, OutOfMemoryError):
        return "out_of_memory", str(error)
    if is_out_of_memory(error):
        return (
            "out_of_memory",
            "memory ran out while the model was loaded; ask for a smaller model, or free memory",
        )
    if isinstance(error, UnknownName):
        return ("lora_not_found" if "no LoRA" in str(error) else "model_not_found"), str(error)
    if isinstance(error, _Failed):
        return error.code, str(error)
    if isinstance(error, UserError):
        return "invalid_request", str(error)
    return "internal_error", f"the worker failed with {type(error).__name__}: {plain(error, 200)}"


def free_memory_quietly() -> None:
    """Frees memory; on a device that is lost that fails as well."""
    try:
        free_memory()
    except RuntimeError as error:
        logger.warning("memory cannot be freed: %s", plain(error, 200))


def _name_of(job: Job) -> str:
    return "picture" if job.request["kind"] == "png" else "video"
