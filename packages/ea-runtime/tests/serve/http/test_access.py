"""Tokens, names and pages that may write; headers of every answer."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from starlette.datastructures import Headers

from ea_runtime.errors import UserError
from ea_runtime.serve.http.access import (
    Access,
    allowed_hosts,
    check_token_text,
    host_name,
    is_loopback,
    is_wildcard,
)
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.guard import CSP

TOKEN = "a-token-of-some-length"


def refusal(access: Access, method: str = "GET", path: str = "/api/jobs", **headers: str) -> str | None:
    """The code of the error that a request gets, or None."""
    given = {"host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        access.check(method, path, Headers(given), None, "192.168.1.5")
    except ApiError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:7860",
        "localhost.",
        "127.0.0.1:80",
        "[::1]:7860",
        "192.168.1.5:7860",
        "gpu.lan",
    ],
)
def test_names_of_the_server(host: str) -> None:
    assert refusal(Access(hosts=allowed_hosts("0.0.0.0", ["GPU.lan"])), host=host) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "192.168.1.6", "0.0.0.0", "gpu", "gpu.lan.evil.example", "127.1"]
)
def test_names_of_others(host: str) -> None:
    assert refusal(Access(hosts=allowed_hosts("0.0.0.0", ["gpu.lan"])), host=host) == "host_not_allowed"


@pytest.mark.parametrize(
    "host", ["", "a b", "localhost@evil", "localhost:1:2", "[::1", "localhost/", "localhost:"]
)
def test_names_that_are_none(host: str) -> None:
    assert refusal(Access(), host=host) == "bad_host"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"origin": "http://localhost:7860"}, None),
        ({"origin": "http://localhost"}, "origin_not_allowed"),
        ({"origin": "http://127.0.0.1:7860"}, "origin_not_allowed"),
        ({"origin": "null"}, "origin_not_allowed"),
        ({"sec_fetch_site": "same-origin"}, None),
        ({"sec_fetch_site": "none"}, None),
        ({"sec_fetch_site": "same-site"}, "origin_not_allowed"),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, "origin_not_allowed"),
        ({}, None),
    ],
)
def test_pages_that_may_write(headers: dict[str, str], code: str | None) -> None:
    assert refusal(Access(), "POST", host="localhost:7860", **headers) == code


def test_a_link_on_another_page_leads_to_the_page_alone() -> None:
    visit = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert refusal(Access(), path="/", **visit) is None
    assert refusal(Access(), path="/v1/videos/x/content", **visit) == "origin_not_allowed"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_token"),
        ({"authorization": f"Bearer {TOKEN}"}, None),
        ({"authorization": f"bearer {TOKEN} "}, None),
        ({"authorization": f"Basic {TOKEN}"}, "missing_token"),
        ({"authorization": f"Bearer {TOKEN}x"}, "invalid_token"),
        ({"authorization": "Bearer "}, "invalid_token"),
        ({"authorization": "Bearer \xff"}, "invalid_token"),
        ({"cookie": f"a=b; ea_token={TOKEN}"}, None),
        ({"cookie": "ea_token="}, "invalid_token"),
        ({"cookie": "ea_token"}, "missing_token"),
    ],
)
def test_the_token(headers: dict[str, str], code: str | None) -> None:
    assert refusal(Access(TOKEN), **headers) == code
    assert refusal(Access(TOKEN), path="/healthz", **headers) is None
    assert refusal(Access(TOKEN), path="/healthz/", **headers) == code


def test_a_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(
        "ea_runtime.serve.http.access.hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b
    )
    assert refusal(Access(TOKEN), authorization=f"Bearer {TOKEN}") is None
    assert compared == [(TOKEN.encode(), TOKEN.encode())]


@pytest.mark.parametrize("token", ["", "short", "a" * 15, "with space and more", "x" * 300, "ümlaut" * 4])
def test_tokens_that_can_be_guessed_or_sent_by_nobody(token: str) -> None:
    with pytest.raises(UserError, match=r"`token`.*16"):
        check_token_text(token)
    assert check_token_text(TOKEN) == TOKEN


def test_addresses() -> None:
    assert host_name("::1") == "[::1]"
    assert host_name("::ffff:127.0.0.1") == "127.0.0.1"
    assert host_name("GPU") == "gpu"
    assert [is_loopback(one) for one in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "gpu")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip
    assert [is_wildcard(one) for one in ("0.0.0.0", "::", "127.0.0.1", "gpu")] == [True, True, False, False]
    assert allowed_hosts("0.0.0.0", []) == frozenset()
    assert allowed_hosts("10.0.0.1", ["b.lan:80"]) == {"10.0.0.1", "b.lan"}
    with pytest.raises(UserError, match=r"`allowed-host`.*got 'http://b'"):
        allowed_hosts("10.0.0.1", ["http://b"])


def test_a_server_with_a_token(serving: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    from openai import AuthenticationError, OpenAI

    caplog.set_level(logging.INFO, "ea.serve.access")
    with serving(access=Access(TOKEN)) as server, server.client() as client:
        assert client.get("/healthz").status_code == 200
        for path in ("/", "/static/app.js", "/api/about", "/metrics", "/openapi.json", "/v1/models"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["www-authenticate"][:6]) == (401, "Bearer"), path
        assert client.get("/", params={"token": TOKEN + "x"}).status_code == 401
        assert client.get("/api/jobs", params={"token": TOKEN}).status_code == 401
        first = client.get("/", params={"token": TOKEN})
        assert (first.status_code, first.headers["location"]) == (303, "/")
        cookie = first.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
        assert client.get("/api/jobs").status_code == 200  # the client kept the cookie
        with OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0) as ours:
            assert ours.models.list().data[0].id == "tiny"
        with (
            OpenAI(base_url=f"{server.url}/v1", api_key="x" * 20, max_retries=0) as theirs,
            pytest.raises(AuthenticationError),
        ):
            theirs.models.list()
        server.raw(b"GET /a%0d%0ab HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert "GET / 303" in caplog.text
    assert TOKEN not in caplog.text
    assert "/a%0d%0ab 401" in caplog.text


def test_headers_of_every_answer(server: Any) -> None:
    with server.client() as client:
        for method, path in (("GET", "/"), ("GET", "/api/jobs"), ("GET", "/nope"), ("PUT", "/v1/videos")):
            found = client.request(method, path).headers
            assert found["content-security-policy"] == CSP
            assert found["x-content-type-options"] == "nosniff"
            assert found["referrer-policy"] == "no-referrer"
            assert (
                found["cross-origin-opener-policy"] == found["cross-origin-resource-policy"] == "same-origin"
            )
            assert "server" not in found
            assert not [name for name in found if name.startswith("access-control")]
        refused = client.get("/api/jobs", headers={"Host": "evil.example"})
        assert refused.status_code == 403
        assert refused.headers["content-security-policy"] == CSP
        assert "inline" not in CSP
        assert "*" not in CSP


def test_errors_have_one_shape(server: Any) -> None:
    kind = {"Content-Type": "application/json"}
    with server.client() as client:
        for answer, status, code in (
            (client.get("/nope"), 404, "not_found"),
            (client.put("/v1/videos"), 405, "method_not_allowed"),
            (client.post("/v1/videos", content=b"x", headers={"Content-Type": "text/plain"}), 415, None),
            (client.post("/v1/videos", content=b"x" * (300 << 10), headers=kind), 413, "too_large"),
            (client.post("/v1/videos", content=b"{", headers=kind), 400, "invalid_json"),
            (client.get("/v1/videos", params={"limit": 0}), 400, "invalid_value"),
            (client.get("/v1/videos", params={"limt": 1}), 400, "unknown_parameter"),
            (client.get("/v1/videos?limit=1&limit=2"), 400, "invalid_value"),
            (client.get("/v1/videos", params={"after": "video_" + "0" * 32}), 400, "invalid_value"),
            (client.get("/v1/videos/video_" + "0" * 32), 404, "job_not_found"),
        ):
            assert answer.status_code == status
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == (code or "unsupported_media_type")
            assert "\n" not in error["message"]


def test_what_is_no_http_gets_the_same_shape(server: Any) -> None:
    head, _, body = server.raw(b"no http\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "bad_request"


def test_a_fault_shows_nothing_of_the_inside(
    server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*args: Any) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(server.store, "get", breaks)
    with server.client() as client:
        answer = client.get("/v1/videos/video_" + "0" * 32)
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    assert "a secret of the inside" in caplog.text


def test_a_full_disk_is_one_line(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from ea_runtime.serve.jobs import StoreError

    errors = [
        StoreError("the jobs cannot be written: database or disk is full; free"),
        OSError(errno.ENOSPC, "x"),
    ]
    for error in errors:

        def breaks(*args: Any, error: Exception = error, **options: Any) -> None:
            raise error

        monkeypatch.setattr(server.store, "add", breaks)
        with server.client() as client:
            answer = client.post("/api/jobs", json={"prompt": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")
