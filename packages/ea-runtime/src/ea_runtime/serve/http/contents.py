"""Files as answers: whole or a range, with an ETag. A video element asks for ranges when one jumps in it."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.service import Service

_PIECE = 256 << 10
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
_ETAG = re.compile(r'(?:W/)?"[^"]*"')


async def file_answer(
    request: Request, service: Service, place: Path, media_type: str, *, tag: str, name: str | None = None
) -> Response:
    """The file at `place`, or the one range of it that the request asks for; 304 if the client has it.

    tag: changes whenever the file does. name: under which browsers save it. Raises ApiError (404, 416).
    """
    try:
        # opened before the first byte: a deletion meanwhile takes nothing away
        file = await service.call(place.open, "rb")
    except OSError:
        raise ApiError(404, "this file is gone", code="gone") from None
    etag = f'"{tag}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    if name is not None:
        headers["Content-Disposition"] = f'inline; filename="{name}"'
    known = _ETAG.findall(request.headers.get("if-none-match", ""))
    if etag in [one.removeprefix("W/") for one in known]:
        file.close()
        return Response(status_code=304, headers=headers)
    size = os.fstat(file.fileno()).st_size
    try:
        start, end, status = _range(request, size, etag)
    except ApiError:
        file.close()
        raise
    if status == 206:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        file.close()
        return Response(status_code=status, headers=headers, media_type=media_type)

    async def pieces() -> AsyncIterator[bytes]:
        left = end - start
        try:
            file.seek(start)
            while left > 0:
                piece = await service.call(file.read, min(_PIECE, left))
                if not piece:
                    return  # cut meanwhile: the client sees that bytes are missing
                left -= len(piece)
                yield piece
        finally:
            file.close()

    return StreamingResponse(pieces(), status, headers, media_type)


def _range(request: Request, size: int, etag: str) -> tuple[int, int, int]:
    """(first byte, the one after the last, status). Several ranges, and what is no range, give the whole file."""
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    condition = request.headers.get("if-range")
    if match is None or match.groups() == ("", "") or condition not in (None, etag):
        return 0, size, 200
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return 0, size, 200
    if start >= end:
        raise ApiError(
            416,
            f"the file has {size} bytes",
            code="range_not_satisfiable",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end, 206
