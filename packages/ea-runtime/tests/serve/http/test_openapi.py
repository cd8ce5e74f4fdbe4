"""The OpenAPI document, and schemathesis' requests made from it: no 5xx, no answer that it does not describe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ea_runtime.serve.http import openai_models, shapes
from ea_runtime.serve.http.app import ENDPOINTS
from ea_runtime.serve.http.openapi import document
from ea_runtime.serve.orders import FIELDS

FULL = os.environ.get("EA_FULL") == "1"
#: a body that is too large is refused too
_CONFIG = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 415, 422, 429]
"""


def try_all(server: Any, folder: Path, *more: str) -> tuple[int, str]:
    """Exit code and report of schemathesis over the server's document, seeded, a few examples for each operation."""
    (folder / "schemathesis.toml").write_text(_CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--seed", "43"]
    command += [
        "--max-examples",
        "4" if FULL else "2",
        "--generation-database",
        "none",
        "--request-timeout",
        "20",
        "--no-color",
    ]
    # a stream of events does not end; a document cannot say which sizes a model of this server takes; a job's video and
    # recipe are there only once it is completed
    command += [
        "--exclude-path",
        "/api/events",
        "--checks",
        "all",
        "--exclude-checks",
        "positive_data_acceptance,ensure_resource_availability",
    ]
    done = subprocess.run(
        [*command, *more],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        env=os.environ | {"NO_PROXY": "127.0.0.1"},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_schemathesis_finds_nothing(serving: Callable[..., Any], tmp_path: Path) -> None:
    with serving(store={"max_queued": 100_000, "max_per_client": 100_000}) as server:
        code, report = try_all(server, tmp_path)
        assert code == 0, report[-3000:]
        found = re.search(r"(\d+) generated", report)
        assert found, report[-3000:]
        assert int(found[1]) > 500
        statuses = server.client().get("/metrics").text
        assert not re.search(r'status="5\d\d"', statuses)


async def _raises(request: Request) -> Response:
    raise RuntimeError("a fault")


async def _in_another_shape(request: Request) -> Response:
    return JSONResponse({"data": "no list"})


@pytest.mark.parametrize(
    ("handler", "finding"),
    [(_raises, "Server error"), (_in_another_shape, "Response violates schema")],
    ids=["5xx", "shape"],
)
def test_a_handler_with_a_fault_is_caught(
    serving: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    handler: Any,
    finding: str,
) -> None:
    listed = next(one for one in openai_models.ENDPOINTS if one.path == "/v1/models")
    broken = [
        type(one)(one.method, one.path, handler, one.summary, one.gives, errors=one.errors)
        if one is listed
        else one
        for one in ENDPOINTS
    ]
    monkeypatch.setattr("ea_runtime.serve.http.app.ENDPOINTS", broken)
    with serving(worker=False) as server:
        code, report = try_all(server, tmp_path, "--include-path", "/v1/models")
        assert code == 1
        assert finding in report, report[-2000:]


def test_the_document_names_every_field_of_an_order() -> None:
    assert set(shapes.JobOrder.model_fields) == {*FIELDS, "image_of"}
    assert set(shapes.VideoOrder.model_fields) == {*FIELDS, "image_of"}


def test_forms_name_their_files() -> None:
    paths = document(ENDPOINTS, has_token=False)["paths"]
    for path in ("/v1/videos", "/v1/videos/{id}/remix", "/api/jobs"):
        content = paths[path]["post"]["requestBody"]["content"]
        fields = content["multipart/form-data"]["schema"]["properties"]
        assert {"prompt", "input_reference", "input_reference_end", "image_of", "strength"} <= fields.keys()
        assert "$ref" in content["application/json"]["schema"]


def test_every_operation_lists_its_errors() -> None:
    found = document(ENDPOINTS, has_token=True)
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            assert {"400", "401", "403", "500"} <= operation["responses"].keys(), (method, path)
            assert operation.get("security") == (None if path == "/healthz" else [{"token": []}])
    names = [one["operationId"] for operations in found["paths"].values() for one in operations.values()]
    assert len(names) == len(set(names))
