"""500 hostile requests: none gets a byte of a canary, a job, a deletion or a 5xx, and none makes the server call out.

Each family has a twin: the same requests against a server whose check was taken out, which must be caught.
"""

from __future__ import annotations

import http.server
import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from ea_runtime.serve.http import page
from ea_runtime.serve.http.access import Access
from ea_runtime.serve.http.page import StaticFile

CANARY = b"CANARY-7f3a9c"
GOOD_HOST = "localhost"


@dataclass
class Hit:
    """A request and what must come: an error (4xx), or at least nothing bad."""

    family: str
    request: bytes
    must_refuse: bool = True
    seconds: float = 5.0


@dataclass
class Outside:
    """A server that nobody may call; it would give a canary."""

    port: int
    calls: list[str] = field(default_factory=list)


@pytest.fixture
def outside() -> Iterator[Outside]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.calls.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CANARY)

        do_HEAD = do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Outside(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def request(
    method: str, target: str, body: bytes = b"", host: str | None = GOOD_HOST, **headers: str
) -> bytes:
    """The bytes of a request that closes its connection."""
    lines = [f"{method} {target} HTTP/1.1", "Connection: close"]
    lines += [f"Host: {host}"] if host is not None else []
    lines += [f"Content-Length: {len(body)}"] if body or method == "POST" else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def ask(fields: Any, target: str = "/v1/videos", **options: Any) -> bytes:
    return request("POST", target, json.dumps(fields).encode(), Content_Type="application/json", **options)


def form(name: str, file: bytes, target: str = "/api/recipe", filename: str = "a.mp4") -> bytes:
    body = (
        f'--xx\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n'
        "Content-Type: video/mp4\r\n\r\n"
    ).encode()
    return request(
        "POST", target, body + file + b"\r\n--xx--\r\n", Content_Type="multipart/form-data; boundary=xx"
    )


def traversals(folder: Path) -> list[Hit]:
    """Paths that lead to the canaries, in many spellings."""
    up = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..\\", "%252e%252e%252f", "..%c0%af", "....//"]
    ends = ["canary.txt", "state/canary.txt", "state/jobs.sqlite", "etc/passwd"]
    starts = ["/static/", "/v1/videos/", "/api/jobs/", "/v1/models/"]
    found = [f"{start}{step * 3}{end}" for start in starts for step in up for end in ends]
    full = str(folder / "canary.txt")
    found += [f"{start}{quote(full, safe='')}" for start in starts]
    found += [f"/static/{full}", f"/static//{full}", f"/static/index.html%00{full}", f"/static/file://{full}"]
    job = "video_" + "0" * 32
    found += [f"/v1/videos/{job}/content?variant={quote(full)}", f"/v1/videos/{job}/content?variant=../{job}"]
    found += [f"/v1/videos/{job}%2f..%2f..%2fcanary.txt/content", f"/api/jobs/{job}/..%2fpreview"]
    found += ["/static/page.py", "/static/__init__.py", "/static/.", "/static/..", "/static/"]
    return [Hit("traversal", request("GET", target)) for target in found]


def calls_out(outside: Outside, folder: Path) -> list[Hit]:
    """Everything that might make a server fetch an address, or open a file by its name."""
    places = [
        f"http://127.0.0.1:{outside.port}/a",
        f"http://localhost:{outside.port}/a.safetensors",
        f"//127.0.0.1:{outside.port}/a",
        f"file://{folder}/canary.txt",
        f"{folder}/canary.txt",
        f"concat:{folder}/canary.txt",
        "../../canary.txt",
        "ftp://127.0.0.1/a",
        f"\\\\127.0.0.1\\{outside.port}",
        "http://169.254.169.254/latest/meta-data/",
    ]
    found: list[Hit] = []
    for place in places:
        for fields in (
            {"model": place},
            {"loras": [{"name": place}]},
            {"input_reference": place},
            {"input_reference": {"image_url": place}},
            {"sampler": place},
            {"step_cache": place},
        ):
            found.append(Hit("call", ask({"prompt": "x", **fields})))
        found.append(
            Hit(
                "call",
                ask({"diffusion_transformer_path": place}, "/easyanimate/update_diffusion_transformer"),
                False,
            )
        )
        found.append(
            Hit(
                "call",
                ask({"prompt_textbox": "x", "lora_model_path": place}, "/easyanimate/infer_forward"),
                False,
            )
        )
    record = {
        "ea_sidecar": 1,
        "settings": {"prompt": "x", "negative_prompt": "", "num_frames": 9, "height": 64, "width": 64}
        | {"num_inference_steps": 1, "guidance_scale": 1.0, "sampler": "euler", "seed": 1, "smooth": True},
        "fps": 8,
        "model": {"name": f"{folder}/canary.txt", "sha256": "0"},
        "device": {"device": "cpu", "dtype": "float32"},
        "versions": {},
        "output": {"file": f"{folder}/canary.txt", "kind": "mp4", "sha256": "0"},
    }
    address = f"http://127.0.0.1:{outside.port}/a"
    for body in (
        f"#EXTM3U\n#EXTINF:1,\n{address}\n".encode(),
        f"#EXTM3U\n#EXTINF:1,\nfile://{folder}/canary.txt\n".encode(),
        f"ffconcat version 1.0\nfile '{folder}/canary.txt'\n".encode(),
        f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{address}"/></svg>'.encode(),
        f'<?xml version="1.0"?><MPD><BaseURL>{address}</BaseURL></MPD>'.encode(),
        b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + f"#EXTM3U\n{address}\n".encode(),
    ):
        found.append(Hit("call", form("file", body)))
    found.append(Hit("call", form("file", json.dumps(record).encode()), must_refuse=False))
    return found


def forgeries(job: str) -> list[Hit]:
    """What a page from elsewhere can make a browser send."""
    origins = ["http://evil.example", "null", "http://localhost.evil.example", "https://localhost:1"]
    origins += ["http://localhost@evil.example", "http://127.0.0.1:9", "file://", "chrome-extension://abc"]
    found: list[bytes] = []
    for origin in origins:
        found += [
            ask({"prompt": "x"}, target, Origin=origin)
            for target in ("/v1/videos", "/api/jobs", f"/v1/videos/{job}/remix")
        ]
        found.append(ask({"prompt_textbox": "x"}, "/easyanimate/infer_forward", Origin=origin))
        found.append(request("DELETE", f"/v1/videos/{job}", Origin=origin))
        found.append(request("POST", f"/api/jobs/{job}/cancel", Origin=origin))
        found.append(request("GET", "/api/jobs", Origin=origin))
        found.append(request("OPTIONS", "/v1/videos", Origin=origin, Access_Control_Request_Method="POST"))
    for site in ("cross-site", "same-site"):
        found.append(ask({"prompt": "x"}, Sec_Fetch_Site=site))
        found.append(
            request("GET", f"/v1/videos/{job}/content", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors")
        )
        found.append(request("DELETE", f"/api/jobs/{job}", Sec_Fetch_Site=site))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "text/plain; application/json", ""):
        found.append(request("POST", "/api/jobs", b'{"prompt": "x"}', Content_Type=kind))
        found.append(request("POST", "/v1/videos", b'{"prompt": "x"}', Content_Type=kind))
    return [Hit("forgery", one) for one in found]


def strangers(job: str) -> list[Hit]:
    """Names that are not this server's, as after DNS rebinding."""
    names = [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "169.254.1.1",
    ]
    names += ["0.0.0.0", "127.0.0.2", "[::ffff:7f00:1]", "localhost@evil.example", "evil.example#localhost"]
    names += [
        "localhost evil.example",
        "localhost,evil.example",
        "2130706433",
        "0x7f.1",
        "",
        "localhost:99999999",
    ]
    found: list[bytes] = []
    for name in names:
        for method, target in (
            ("GET", "/api/jobs"),
            ("GET", f"/v1/videos/{job}"),
            ("DELETE", f"/v1/videos/{job}"),
        ):
            found.append(request(method, target, host=name))
        found.append(ask({"prompt": "x"}, host=name, Origin=f"http://{name}"))
    found.append(request("GET", "/api/jobs", host="evil.example", X_Forwarded_Host="localhost"))
    found.append(request("GET", "/api/jobs", host="evil.example", Forwarded="host=localhost"))
    found.append(request("GET", "http://localhost/api/jobs", host="evil.example"))
    found.append(request("GET", "/api/jobs", host=None))
    found.append(
        b"GET /api/jobs HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    )
    return [Hit("stranger", one) for one in found]


def smuggled(job: str) -> list[Hit]:
    """Requests about whose end two programs may disagree, with a deletion behind them."""
    inner = f"DELETE /v1/videos/{job} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    start = "POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    size = len(inner)
    found = [
        f"{start}Content-Length: {size + 5}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
        f"{start}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{inner}",
        f"{start}Content-Length: 0\r\nContent-Length: {size}\r\n\r\n{inner}",
        f"{start}Content-Length: {size}\r\nContent-Length: {size}\r\n\r\n{inner}",
        f"{start}Transfer-Encoding: xchunked\r\n\r\n{inner}",
        f"{start}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}",
        f"{start}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{inner}",
        f"{start}Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n{inner}",
        f"{start}X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: -1\r\n\r\n{inner}",
        f"{start}Content-Length: +0\r\n\r\n{inner}",
        f"{start}Content-Length: 0x10\r\n\r\n{inner}",
        f"{start}Content-Length: 0, {size}\r\n\r\n{inner}",
        f"{start}Content-Length: {'9' * 40}\r\n\r\n{inner}",
        f"{start}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{inner}",
        f"{start}Transfer-Encoding: chunked\r\n\r\n-1\r\n{inner}",
        f"GET /api/jobs\r\n\r\n{inner}",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        f"GET /{'a' * 200_000} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        f"GET /api/jobs HTTP/1.1\r\nHost: localhost\r\nX: {'a' * 200_000}\r\n\r\n",
        "GET /api/events HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\nOrigin: http://evil.example\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ]
    return [Hit("smuggling", one.encode("latin-1"), seconds=0.5) for one in found]


def bombs() -> list[Hit]:
    """Bodies that cost much to read, and values of every wrong type."""
    plain = [b"[" * 100_000, b'{"a":' * 50_000, b'{"prompt": "x", "seed": ' + b"9" * 100_000 + b"}"]
    plain += [b'{"prompt": NaN}', b'{"prompt": "x", "fps": 1e999}', b'{"prompt": "\\ud800"}', b"\xff\xfe{}"]
    plain += [b'{"prompt": "x", "prompt": "y"}', b"", b"null", b"[]", b'"x"', b"{", b'{"prompt": "x"}x']
    plain += [b'{"prompt": "' + b"a" * 200_000 + b'"}', b'{"a": 1, ' + b'"b": [' * 30 + b"]" * 30 + b"}"]
    found = [
        request("POST", target, body, Content_Type="application/json")
        for target in ("/api/jobs", "/v1/videos")
        for body in plain
    ]
    values = [None, True, -1, 1.5, "", "x", [], {}, [1], {"a": 1}, "9" * 400, "\0", "1e9", -(2**70)]
    for name in ("prompt", "size", "num_frames", "loras", "seconds"):
        for value in values:
            fields = {"prompt": "x", "model": "none such", name: value}
            found.append(ask(fields, "/api/jobs"))
    parts = b"".join(
        b'--xx\r\nContent-Disposition: form-data; name="a%d"\r\n\r\nb\r\n' % i for i in range(500)
    )
    many = "multipart/form-data; boundary=xx"
    found += [
        request("POST", "/v1/videos", parts + b"--xx--\r\n", Content_Type=many),
        request("POST", "/v1/videos", b"--xx\r\n" + b"A: b\r\n" * 20_000, Content_Type=many),
        request("POST", "/v1/videos", b"no form", Content_Type="multipart/form-data"),
        request("POST", "/v1/videos", b"no form", Content_Type="multipart/form-data; boundary=" + "x" * 4000),
        form("file", b"\x89PNG\r\n\x1a\n" + b"\0" * 100),
        form("file", b"\0\0\0\x18ftypisom" + b"\xff" * 1000),
        form("file", b"\x1aE\xdf\xa3" + b"\xff" * 1000),
        form("file", b"GIF89a" + b"\xff" * 1000),
        form("file", b'{"ea_sidecar": ' + b"[" * 5000),
        form("other", b"\x89PNG\r\n\x1a\n"),
    ]
    return [Hit("bomb", one) for one in found]


def fire(server: Any, hits: list[Hit]) -> list[str]:
    """Sends them all; what is wrong about the answers, one line each."""
    wrong = []
    for hit in hits:
        answer = server.raw(hit.request, hit.seconds)
        status = re.match(rb"HTTP/1\.1 (\d\d\d)", answer)
        label = f"{hit.family}: {hit.request[:150]!r}"
        if CANARY in answer:
            wrong.append(f"canary out by {label}")
        if status is None:
            if hit.family != "smuggling":
                wrong.append(f"no answer to {label}")
            continue
        if status[1].startswith(b"5"):
            wrong.append(f"{status[1].decode()} by {label}: {answer[-300:]!r}")
        elif hit.must_refuse and not status[1].startswith(b"4"):
            wrong.append(f"{status[1].decode()} for {label}: {answer[-300:]!r}")
        if b"access-control-allow" in answer.lower():
            wrong.append(f"CORS in the answer to {label}")
    return wrong


@pytest.fixture
def target(serving: Callable[..., Any], tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """A server without a worker, one waiting job on it, and canaries around."""
    (tmp_path / "canary.txt").write_bytes(CANARY)
    with serving(worker=False, store={"max_queued": 5000, "max_per_client": 5000}) as server:
        (tmp_path / "state" / "canary.txt").write_bytes(CANARY)
        yield server, server.ask("the only job")["id"]


def test_500_hostile_requests(target: tuple[Any, str], outside: Outside, tmp_path: Path) -> None:
    server, job = target
    hits = [
        *traversals(tmp_path),
        *calls_out(outside, tmp_path),
        *forgeries(job),
        *strangers(job),
        *smuggled(job),
        *bombs(),
    ]
    random.Random(43).shuffle(hits)
    assert len(hits) >= 500
    assert fire(server, hits) == []
    assert outside.calls == []
    assert server.store.counts() == {
        "queued": 1,
        "in_progress": 0,
        "completed": 0,
        "failed": 0,
        "cancelled": 0,
    }
    assert server.store.get(job).request["settings"]["prompt"] == "the only job"
    assert not any((tmp_path / "state" / "uploads").iterdir())
    with server.client() as client:
        assert client.get("/healthz").status_code == 200


def test_a_server_that_takes_any_host_is_caught(
    target: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, job = target
    monkeypatch.setattr(Access, "check_host", lambda self, headers, local: headers.get("host", ""))
    wrong = fire(server, strangers(job))
    assert sum("200 for stranger" in line for line in wrong) > 20


def test_a_server_that_takes_any_origin_is_caught(
    target: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, job = target
    monkeypatch.setattr(Access, "check_page", lambda self, method, path, headers, host: None)
    hits = [hit for hit in forgeries(job) if b"easyanimate" not in hit.request]
    assert len(fire(server, hits)) > 20
    assert server.store.get(job) is None  # deleted


def test_a_server_that_joins_paths_is_caught(
    target: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Joined(dict[str, StaticFile]):
        def get(self, name: str, default: Any = None) -> Any:
            place = tmp_path / "a" / "b" / "c" / name
            return StaticFile(place.read_bytes(), "text/plain", "0") if place.is_file() else None

    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    answer = page._answer
    monkeypatch.setattr(page, "_answer", lambda request, name: answer(_With(request, Joined()), name))
    server, _ = target
    assert any("canary out" in line for line in fire(server, traversals(tmp_path)))


class _With:
    """A request whose app has other files."""

    def __init__(self, request: Any, files: Any) -> None:
        self._request = request
        self.app = type("App", (), {"state": type("State", (), {"page": files})})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)
