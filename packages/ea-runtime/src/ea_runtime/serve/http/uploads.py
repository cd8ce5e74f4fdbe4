"""POST /api/recipe: the request that made a file, from what is written in it.

The file's name and type as the client gives them are not used: its first bytes decide, and a child process reads it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from ea_runtime.generation.inputs import INPUTS
from ea_runtime.serve.http import shapes
from ea_runtime.serve.http.bodies import MAX_UPLOAD, parse_object, read_form
from ea_runtime.serve.http.endpoints import Endpoint, answer
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.ids import check_query
from ea_runtime.serve.http.service import Service, service_of

#: children at once, seconds for each, bytes of its answer
_CHILDREN, _SECONDS, _ANSWER = 2, 15.0, 1 << 20
_HEAD = 64


class UploadReader:
    """Reads uploads, a few at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places = asyncio.Semaphore(_CHILDREN)

    async def record(self, service: Service, file: UploadFile) -> dict[str, Any]:
        """The record of how a file was made. Raises ApiError."""
        kind = sniff(await file.read(_HEAD))
        await file.seek(0)
        async with self._places:
            return await service.call(self._read, file.file, kind)

    def _read(self, source: BinaryIO, kind: str) -> dict[str, Any]:
        with kept(self._folder, source, kind) as place:
            found = parse_object(_run_child(place, kind))
        if "record" not in found:
            raise ApiError(
                400, str(found.get("error", "the file cannot be read")), code="no_recipe", param="file"
            )
        return found["record"]


@contextmanager
def kept(folder: Path, source: BinaryIO, kind: str) -> Iterator[Path]:
    """The place of a copy of an upload, under a name of ours; removed at the end."""
    place = folder / f"{secrets.token_hex(16)}.{kind}"
    try:
        with place.open("xb") as target:
            shutil.copyfileobj(source, target)
        yield place
    finally:
        place.unlink(missing_ok=True)


async def recipe(request: Request) -> Response:
    """The request that made a file of ours."""
    service = service_of(request)
    check_query(request, ())
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise ApiError(415, "the Content-Type must be multipart/form-data, with the file in `file`")
    async with read_form(request, MAX_UPLOAD) as items:
        if len(items) != 1 or items[0][0] != "file" or not isinstance(items[0][1], UploadFile):
            raise ApiError(
                400, "the form must have one file, called `file`", code="invalid_form", param="file"
            )
        record = await request.app.state.uploads.record(service, items[0][1])
    return answer(await service.call(_request_of, record, service))


def sniff(head: bytes) -> str:
    """The kind of a file by its first bytes. Raises ApiError (415) for what ea does not write."""
    if head[4:8] == b"ftyp":
        return "mov" if head[8:12] == b"qt  " else "mp4"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "webm"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
        return "json"
    raise ApiError(
        415, "the file must be a video or picture that ea wrote, or the .json next to it", param="file"
    )


def _run_child(place: Path, kind: str) -> bytes:
    """The child's output. Raises ApiError if it was stopped or died."""
    with run_child(place, kind, _SECONDS) as (output, child):
        printed = output.read(_ANSWER + 1)
        if len(printed) > _ANSWER:
            child.kill()
    if child.returncode != 0 or len(printed) > _ANSWER:
        raise ApiError(
            400,
            "the file cannot be read: its reader was stopped or ended early",
            code="no_recipe",
            param="file",
        )
    return printed


@contextmanager
def run_child(place: Path, kind: str, seconds: float) -> Iterator[tuple[IO[bytes], subprocess.Popen[bytes]]]:
    """The child's output and the child, which is killed after `seconds` and has ended after the block."""
    # the child knows a name and no path, so no error of a library can show one
    # -P: the folder that it works in is not on the import path
    command = [sys.executable, "-P", "-m", "ea_runtime.serve.http.upload_child", place.name, kind]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command,
        cwd=place.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as child:
        timer = threading.Timer(seconds, child.kill)
        timer.start()
        try:
            assert child.stdout is not None
            yield child.stdout, child
        except BaseException:
            child.kill()
            raise
        finally:
            child.wait()
            timer.cancel()


def _request_of(record: dict[str, Any], service: Service) -> shapes.Recipe:
    """The request in a record, and what of it is not here. Raises ApiError."""
    settings = record["settings"]
    loras = [{"name": Path(one["file"]).stem, "scale": one["weight"]} for one in record.get("loras", ())]
    model = record["model"]["name"]
    unknown = [model] if model not in service.catalogue.models() else []
    known = service.catalogue.loras()
    unknown += [one["name"] for one in loras if one["name"] not in known]
    unknown += [Path(str(settings[name])).name for name in INPUTS if settings.get(name)]
    try:
        return shapes.Recipe(
            prompt=settings["prompt"],
            negative_prompt=settings["negative_prompt"],
            model=model,
            width=settings["width"],
            height=settings["height"],
            num_frames=settings["num_frames"],
            fps=record["fps"],
            seed=settings["seed"],
            steps=settings["num_inference_steps"],
            guidance=settings["guidance_scale"],
            sampler=settings["sampler"],
            loras=[shapes.LoraUse(**one) for one in loras],
            step_cache=settings.get("step_cache"),
            smooth=settings["smooth"],
            image=None,
            image_end=None,
            strength=settings.get("strength"),
            fit=settings.get("fit"),
            prompts_at=settings.get("prompts_at"),
            window=settings.get("window") or _one_piece(settings["num_frames"], model, service),
            loop=settings.get("loop"),
            join=settings.get("join"),
            unknown=unknown,
        )
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ApiError(
            400, f"the file's recipe has a value that cannot be: {where[:80]}", code="no_recipe", param="file"
        ) from None


def _one_piece(num_frames: int, model: str, service: Service) -> int | None:
    """The window that repeats a record without one: all frames, where the model would make several windows of them."""
    entry = service.catalogue.models().get(model)
    return None if entry is None or num_frames <= entry.defaults.num_frames else num_frames


ENDPOINTS = (
    Endpoint(
        "POST",
        "/api/recipe",
        recipe,
        "Read from a file of ea how it was made",
        {200: shapes.Recipe},
        forms="only",
        errors=(400, 413, 415),
    ),
)
