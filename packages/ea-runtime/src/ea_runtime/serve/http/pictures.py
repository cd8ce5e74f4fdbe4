"""Pictures that a video starts from: read by a child with limits, kept as upright RGB PNG."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from starlette.datastructures import UploadFile

from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.service import Service
from ea_runtime.serve.http.upload_child import MAX_PICTURE_PIXELS
from ea_runtime.serve.http.uploads import kept, run_child
from ea_runtime.serve.state import JOB_ID

#: children at once, seconds for each: the largest picture takes 4 to 8
_CHILDREN, _SECONDS = 2, 30.0
#: three bytes a pixel, and PNG's own
_MAX_PNG = 4 * MAX_PICTURE_PIXELS
_HEAD, _PIECE = 64, 1 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
#: first bytes of the kinds that ea_runtime.video.pictures reads
_SIGNS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP|BM|GIF8[79]a|II[*+]\0|MM\0[*+]|....ftypavi[fs]", re.DOTALL
)


class PictureReader:
    """Reads pictures, a few at once. folder: where they are kept; what a killed server left there is removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places = asyncio.Semaphore(_CHILDREN)
        for path in folder.iterdir():
            if JOB_ID.fullmatch(path.name):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @asynccontextmanager
    async def folder(self, service: Service) -> AsyncGenerator[Path, None]:
        """An empty folder for the pictures of one job, gone at the end: moved to the job, or removed."""
        place = self._folder / secrets.token_hex(16)
        await service.call(place.mkdir, 0o700)
        try:
            yield place
        finally:
            await service.call(shutil.rmtree, place, True)

    async def read(self, service: Service, file: UploadFile, param: str, target: Path) -> None:
        """Writes the picture in an upload to `target`. Raises ApiError."""
        if not _SIGNS.match(await file.read(_HEAD)):
            raise _refused(
                param,
                "the file must be a picture of one of these kinds: PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF",
            )
        await file.seek(0)
        async with self._places:
            await service.call(self._read, file.file, param, target)

    def _read(self, source: BinaryIO, param: str, target: Path) -> None:
        with (
            kept(self._folder, source, "picture") as place,
            run_child(place, "picture", _SECONDS) as (output, child),
        ):
            head = output.read(len(_PNG))
            size = len(head)
            if head == _PNG:
                with target.open("xb") as file:
                    file.write(head)
                    while size <= _MAX_PNG and (piece := output.read(_PIECE)):
                        file.write(piece)
                        size += len(piece)
            else:
                head += output.read(_PIECE)
            if size > _MAX_PNG:
                child.kill()
        if child.returncode == 0 and size <= _MAX_PNG and target.exists():
            return
        raise _refused(param, _reason(head) if child.returncode == 0 else None)


def _reason(printed: bytes) -> str | None:
    """The line of the child's error, or None."""
    try:
        return str(json.loads(printed)["error"])[:300]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None


def _refused(param: str, reason: str | None) -> ApiError:
    line = reason or "the picture cannot be read: its reader was stopped or ended early"
    return ApiError(400, f"`{param}`: {line}", code="invalid_value", param=param)
