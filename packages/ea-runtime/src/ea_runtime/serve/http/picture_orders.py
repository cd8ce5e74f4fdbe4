"""Orders that may start from pictures: files of a form, or those of another job."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from ea_runtime.errors import UserError
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.service import Service, client_of, service_of
from ea_runtime.serve.jobs import Job
from ea_runtime.serve.orders import PICTURES, make_order
from ea_runtime.serve.state import JOB_ID


async def place_picture_order(
    request: Request, fields: Mapping[str, Any], *, remixed_from: str | None = None
) -> Job:
    """The job that was added for these fields. Raises ApiError, Refused and QueueFull.

    Besides the fields of an order: the files of PICTURES, and `image_of`, a job whose pictures are used again where no
    file is given. The order is checked first, so that the pictures of a wrong one are never decoded.
    """
    service = service_of(request)
    given = {name: value for name, value in fields.items() if value is not None}
    files = _take_files(given)
    source = await _take_source(service, given)
    again = [name for name in source.request.get("pictures", ()) if name not in files] if source else []
    order = await service.call(make_order, given, service.catalogue, service.limits, [*files, *again])
    client, store = client_of(request), service.store
    if not order["pictures"]:
        return await service.call(store.add, order, client, remixed_from=remixed_from)
    reader = request.app.state.pictures
    async with reader.folder(service) as folder:
        for name, file in files.items():
            await reader.read(service, file, PICTURES[name], folder / f"{name}.png")
        if source is not None and again:
            await service.call(_use_again, service, source, again, folder)
        return await service.call(store.add, order, client, remixed_from=remixed_from, pictures=folder)


def _take_files(given: dict[str, Any]) -> dict[str, UploadFile]:
    """Takes the pictures out of the fields. Raises ApiError and UserError for what is no file, and for other files."""
    found: dict[str, UploadFile] = {}
    for name, field in PICTURES.items():
        value = given.pop(field, None)
        if isinstance(value, UploadFile):
            found[name] = value
        elif value is not None:
            raise ApiError(
                400,
                f"`{field}` must be a file in a form (multipart/form-data); no address is fetched",
                code="unsupported_parameter",
                param=field,
            )
    others = [name for name, value in given.items() if isinstance(value, UploadFile)]
    if others:
        raise UserError(f"`{others[0][:60]}` must be text, got a file")
    return found


async def _take_source(service: Service, given: dict[str, Any]) -> Job | None:
    """Takes `image_of` out of the fields. Raises ApiError."""
    value = given.pop("image_of", None)
    if value is None:
        return None
    if not isinstance(value, str) or not JOB_ID.fullmatch(value):
        raise ApiError(
            400, "`image_of` must be the id of a job with pictures", code="invalid_value", param="image_of"
        )
    job = await service.call(service.store.get, value)
    if job is None:
        raise ApiError(400, f"there is no job {value!r}", code="invalid_value", param="image_of")
    return job


def _use_again(service: Service, source: Job, names: list[str], folder: Path) -> None:
    """Puts another job's pictures into a folder. Raises ApiError if the job was deleted meanwhile."""
    try:
        for name in names:
            shutil.copyfile(service.state.pictures(source.id) / f"{name}.png", folder / f"{name}.png")
    except FileNotFoundError:
        raise ApiError(
            400, f"the pictures of {source.id} are gone", code="invalid_value", param="image_of"
        ) from None
