"""Server with canned jobs that speaks the API of the page: every state of the page can be held still and looked at.

Standard library only. Jobs that are sent run by a script of phases, without a model, or wait until a test moves them.
The tests with the real server are in test_page_real.py.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import ea_runtime

PAGE = Path(ea_runtime.__file__).parent / "serve" / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
TINY = {
    "name": "tiny",
    "defaults": {
        "width": 64,
        "height": 64,
        "num_frames": 18,
        "steps": 20,
        "guidance": 2.0,
        "sampler": "dpm++",
        "fps": 12,
        "negative_prompt": "",
    },
    "frames": [1, 9, 18, 27, 36, 72],
    "size_multiple": 16,
    "max_pixels": 65536,
    "max_steps": 100,
}
OTHER = {
    "name": "easyanimate-v2",
    "defaults": TINY["defaults"]
    | {
        "width": 672,
        "height": 384,
        "num_frames": 144,
        "steps": 50,
        "guidance": 6.0,
        "fps": 24,
        "negative_prompt": "blurry, low quality",
    },
    "frames": [1, *range(9, 145, 9)],
    "size_multiple": 16,
    "max_pixels": 1 << 20,
    "max_steps": 100,
}
ABOUT = {
    "version": "0.2.0",
    "models": [TINY, OTHER],
    "samplers": [{"name": name, "summary": ""} for name in ("dpm++", "euler", "euler-a", "unipc")],
    "loras": [
        {"name": "inkline", "model": "tiny", "trigger_words": ["inkline"], "summary": "white outlines"},
        {"name": "pastel", "model": None, "trigger_words": [], "summary": ""},
    ],
    "limits": {},
    "step_caches": ["none", "teacache"],
}


class CannedServer:
    """Jobs, newest last, and a server that shows them; `files` are name -> bytes of video, thumbnail and preview."""

    def __init__(self, files: dict[str, bytes], *, port: int = 0, csp: str = CSP) -> None:
        self.files = files
        self.csp = csp
        self.jobs: dict[str, dict[str, Any]] = {}
        self.version = 0
        self.changes: list[tuple[int, str]] = []
        self.changed = threading.Condition()
        self.requests: list[tuple[str, str, dict[str, Any] | None]] = []
        self.refusal: tuple[int, dict[str, Any]] | None = None  # answer to the next job that is sent
        self.recipe: tuple[int, dict[str, Any]] = (400, {})
        self.about = ABOUT
        self.workers = [{"name": "cpu", "device": "cpu", "state": "ready"}]
        self.pictures: dict[str, bytes] = {}  # by address
        self.is_running_jobs = True
        self.seconds_per_step = 0.02
        self.is_open = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                server.answer(self, "GET")

            def do_POST(self) -> None:
                server.answer(self, "POST")

            def do_DELETE(self) -> None:
                server.answer(self, "DELETE")

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Ends the server and all its streams."""
        self.is_open = False
        with self.changed:
            self.changed.notify_all()
        self.http.shutdown()
        self.http.server_close()

    # ---- jobs

    def add(self, prompt: str = "a red circle moves right", **changes: Any) -> dict[str, Any]:
        """A job as the API gives it; `changes` go into the job or, with names of settings, into its request."""
        defaults = {key: value for key, value in TINY["defaults"].items() if key != "negative_prompt"}
        request = {"prompt": prompt, "negative_prompt": "", "model": "tiny", "seed": 43, "loras": []}
        request |= defaults | {"step_cache": None, "smooth": True}
        request |= {"image": None, "image_end": None, "strength": None, "fit": None}
        request |= dict.fromkeys(("prompts_at", "window", "loop", "join"))
        request |= {key: changes.pop(key) for key in list(changes) if key in request}
        job = {
            "id": f"video_{secrets.token_hex(16)}",
            "state": "queued",
            "phase": "",
            "done": 0,
            "total": 0,
            "progress": 0,
            "position": None,
            "created_at": int(time.time()),
            "started_at": None,
            "completed_at": None,
            "seconds_left": None,
            "request": request,
            "error": None,
            "result": None,
            "remixed_from": None,
            "preview": None,
        }
        job |= changes
        if job["state"] == "completed":
            self.complete(job)
        self.set(job)
        return job

    def complete(self, job: dict[str, Any]) -> None:
        content = f"/v1/videos/{job['id']}/content"
        kind = "png" if job["request"]["num_frames"] == 1 else "mp4"
        name = job["request"].get("file", "video.mp4")
        job |= {"state": "completed", "phase": "", "progress": 100, "position": None, "preview": None}
        job |= {"started_at": job["created_at"], "completed_at": job["created_at"] + 4, "seconds_left": None}
        job["result"] = {
            "video": content,
            "thumbnail": f"{content}?variant=thumbnail",
            "spritesheet": f"{content}?variant=spritesheet",
            "recipe": f"/api/jobs/{job['id']}/recipe",
            "kind": kind,
            "bytes": len(self.files[name]),
            "sha256": "0" * 64,
            "timings": {"denoising": 1.5},
            "notes": [],
        }

    def set(self, job: dict[str, Any]) -> None:
        """Stores a job and reports it to all streams."""
        with self.changed:
            self.version += 1
            self.jobs[job["id"]] = job
            self.changes.append((self.version, job["id"]))
            self.changed.notify_all()

    def take(self, fields: dict[str, Any]) -> dict[str, Any]:
        """A job from what a client sent."""
        width, height = map(int, fields["size"].split("x"))
        others = ("size", "image_of", "input_reference", "input_reference_end")
        settings = {name: value for name, value in fields.items() if name not in others}
        settings.setdefault("seed", secrets.randbits(32))
        id = f"video_{secrets.token_hex(16)}"
        for name, file in (("image", "input_reference"), ("image_end", "input_reference_end")):
            source = self.jobs[fields["image_of"]]["request"][name] if "image_of" in fields else None
            content = self.pictures[source] if source else fields.get(file)
            if content is not None:
                settings[name] = f"/api/jobs/{id}/{name}"
                self.pictures[settings[name]] = content
        job = self.add(**settings, id=id, width=width, height=height)
        if self.is_running_jobs:
            threading.Thread(target=self.run, args=(job,), daemon=True).start()
        return job

    def run(self, job: dict[str, Any]) -> None:
        """The phases of a job, in about a second."""
        script = [("loading", 0, 0), ("text", 0, 0)]
        script += [("denoising", i + 1, job["request"]["steps"]) for i in range(job["request"]["steps"])]
        script += [("decoding", i + 9, 18) for i in (0, 9)]
        for at, (phase, done, total) in enumerate(script):
            time.sleep(self.seconds_per_step)
            if job["id"] not in self.jobs or job["state"] == "cancelled":
                return
            job |= {"state": "in_progress", "phase": phase, "done": done, "total": total, "position": None}
            job |= {"progress": 100 * at // len(script), "seconds_left": len(script) - at}
            job["started_at"] = job["started_at"] or int(time.time())
            if phase != "loading":
                job["preview"] = f"/api/jobs/{job['id']}/preview?v={at}"
            self.set(job)
        self.complete(job)
        self.set(job)

    # ---- answers

    def answer(self, handler: BaseHTTPRequestHandler, method: str) -> None:
        if not self.is_open:  # a connection from before: as dead as the server
            handler.close_connection = True
            return
        url = urlsplit(handler.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        kind = handler.headers.get("Content-Type", "")
        fields = json.loads(body) if kind == "application/json" and body else None
        if kind.startswith("multipart/form-data") and url.path == "/api/jobs":
            fields = fields_of_form(kind, body)
        self.requests.append((method, handler.path, fields))
        with suppress(BrokenPipeError, ConnectionResetError):  # the browser has turned away
            self.route(handler, method, [part for part in url.path.split("/") if part], query, fields)

    def route(
        self,
        handler: BaseHTTPRequestHandler,
        method: str,
        parts: list[str],
        query: dict[str, str],
        fields: dict[str, Any] | None,
    ) -> None:
        match [method, *parts]:
            case ["GET"]:
                self.send_file(handler, "index.html")
            case ["GET", "static", name] if (PAGE / name).is_file():
                self.send_file(handler, name)
            case ["GET", "api", "about"]:
                self.send(handler, 200, self.about)
            case ["GET", "healthz"]:
                self.send(handler, 200, {"status": "ok", "workers": self.workers, "queued": 0})
            case ["GET", "api", "jobs"]:
                jobs = list(reversed(self.jobs.values()))
                ids = [job["id"] for job in jobs]
                start = ids.index(query["after"]) + 1 if "after" in query else 0
                end = start + int(query.get("limit", 20))
                self.send(handler, 200, {"jobs": jobs[start:end], "has_more": len(jobs) > end})
            case ["POST", "api", "jobs"]:
                if self.refusal:
                    (status, error), self.refusal = self.refusal, None
                    self.send(handler, status, {"error": error})
                else:
                    self.send(handler, 201, self.take(fields or {}))
            case ["POST", "api", "jobs", id, "cancel"]:
                job = self.jobs[id]
                job |= {"state": "cancelled", "error": {"code": "cancelled", "message": "cancelled"}}
                self.set(job)
                self.send(handler, 200, job)
            case ["DELETE", "api", "jobs", id]:
                del self.jobs[id]
                with self.changed:
                    self.version += 1
                    self.changes.append((self.version, id))
                    self.changed.notify_all()
                self.send(handler, 200, {"id": id, "deleted": True})
            case ["GET", "api", "jobs", id] if id in self.jobs:
                self.send(handler, 200, self.jobs[id])
            case ["GET", "api", "jobs", _, "image" | "image_end"] if handler.path in self.pictures:
                self.send_bytes(handler, 200, self.pictures[handler.path], "image/png")
            case ["GET", "api", "jobs", _, "preview"]:
                self.send_bytes(handler, 200, self.files["preview.webp"], "image/webp")
            case ["GET", "api", "jobs", _, "recipe"]:
                self.send(handler, 200, {"ea_sidecar": 1})
            case ["GET", "v1", "videos", id, "content"] if id in self.jobs:
                self.send_content(handler, self.jobs[id], query)
            case ["GET", "api", "events"]:
                self.send_events(handler)
            case ["POST", "api", "recipe"]:
                status, answer = self.recipe
                self.send(handler, status, answer)
            case _:
                error = {
                    "message": "no such address",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": None,
                }
                self.send(handler, 404, {"error": error})

    def send(self, handler: BaseHTTPRequestHandler, status: int, answer: Any) -> None:
        self.send_bytes(handler, status, json.dumps(answer).encode(), "application/json")

    def send_file(self, handler: BaseHTTPRequestHandler, name: str) -> None:
        path = PAGE / name
        self.send_bytes(handler, 200, path.read_bytes(), TYPES[path.suffix])

    def send_content(
        self, handler: BaseHTTPRequestHandler, job: dict[str, Any], query: dict[str, str]
    ) -> None:
        """A result or its thumbnail; a part of it if the browser asks for that, since it seeks with such requests."""
        if "variant" in query or job["result"]["kind"] == "png":
            name = job["request"].get("thumbnail", "thumbnail.webp")
            return self.send_bytes(handler, 200, self.files[name], "image/webp")
        content = self.files[job["request"].get("file", "video.mp4")]
        wanted = handler.headers.get("Range", "").removeprefix("bytes=")
        if not wanted:
            return self.send_bytes(handler, 200, content, "video/mp4", {"Accept-Ranges": "bytes"})
        first, _, last = wanted.partition("-")
        start, end = int(first), int(last or len(content) - 1)
        headers = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {start}-{end}/{len(content)}"}
        return self.send_bytes(handler, 206, content[start : end + 1], "video/mp4", headers)

    def send_bytes(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        content: bytes,
        kind: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        handler.send_response(status)
        headers = {"Content-Type": kind, "Content-Security-Policy": self.csp} | (headers or {})
        if status == 429:
            headers["Retry-After"] = "7"
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    def send_events(self, handler: BaseHTTPRequestHandler) -> None:
        seen = self.version  # before the page may ask for what was earlier
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        first = [job for job in self.jobs.values() if job["state"] in ("queued", "in_progress")]
        for job in first:
            handler.wfile.write(f"event: job\ndata: {json.dumps(job)}\n\n".encode())
        while self.is_open:
            with self.changed:
                if self.version == seen:
                    self.changed.wait(0.5)
                ids = dict.fromkeys(id for version, id in self.changes if version > seen)
                seen = self.version
            for id in ids:
                job = self.jobs.get(id)
                kind, data = ("job", job) if job else ("deleted", {"id": id})
                handler.wfile.write(f"id: {seen}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode())
            handler.wfile.flush()


def fields_of_form(kind: str, body: bytes) -> dict[str, Any]:
    """Fields of a multipart form with the types of JSON; files are bytes."""
    fields: dict[str, Any] = {}
    for part in BytesParser().parsebytes(f"Content-Type: {kind}\r\n\r\n".encode() + body).walk():
        name = part.get_param("name", header="content-disposition")
        if name is None:
            continue
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        if part.get_filename() is not None:
            fields[str(name)] = content
        else:
            text = content.decode()
            is_text = name in ("prompt", "negative_prompt", "model", "size", "sampler", "step_cache", "fit")
            fields[str(name)] = text if is_text else json.loads(text)
    return fields


@contextmanager
def canned_server(files: dict[str, bytes], **options: Any) -> Iterator[CannedServer]:
    """A running server that ends with the block."""
    server = CannedServer(files, **options)
    try:
        yield server
    finally:
        server.close()
