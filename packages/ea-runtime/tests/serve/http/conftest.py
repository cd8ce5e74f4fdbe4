"""Fixtures: a server in a thread on a free port, and a worker that makes small files instead of videos."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from ea_runtime.serve.catalogue import Catalogue
from ea_runtime.serve.http.app import App
from ea_runtime.serve.http.server import make_server, open_socket
from ea_runtime.serve.http.service import Service
from ea_runtime.serve.jobs import Job, JobStore
from ea_runtime.serve.state import StateFolder

#: a prompt with this in it fails
FAILS = "please fail"
VIDEO = bytes(range(256)) * 40


@dataclass
class FakeWorker:
    """Claims jobs and finishes them through the store, as a worker does. gate: clear it and jobs stay at work."""

    store: JobStore
    gate: threading.Event = field(default_factory=threading.Event)
    _end: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._end.is_set():
            job = self.store.claim("fake")
            if job is None:
                time.sleep(0.02)
            else:
                self._make(job)

    def stop(self) -> None:
        self._end.set()

    def _make(self, job: Job) -> None:
        step, is_open = 0, False
        while step < 4 or not is_open:
            step += 1
            is_open = self.gate.is_set()  # read first: the report then sees every earlier cancel
            if not self.store.report(job.id, "denoising", min(step, 4), 4):
                self.store.end_cancelled(job.id)
                return
            self.store.state.preview(job.id).write_bytes(b"RIFF\0\0\0\0WEBP")
            if self._end.is_set():
                self.store.hand_back(job.id)
                return
            if not is_open:
                time.sleep(0.02)
        if FAILS in job.request["settings"]["prompt"]:
            self.store.fail(job.id, "out_of_memory", "the machine has no memory left; ask for fewer frames")
            return
        folder = self.store.state.result(job.id)
        folder.mkdir()
        main = "picture.png" if job.request["kind"] == "png" else "video.mp4"
        record = {"output": {"file": main}, "model": {"name": str(folder), "sha256": "0"}}
        for name, body in {
            main: VIDEO,
            "thumbnail.webp": b"thumbnail",
            "spritesheet.jpg": b"sprites",
            "video.json": json.dumps(record).encode(),
        }.items():
            (folder / name).write_bytes(body)
        files = {"video": main, "thumbnail": "thumbnail.webp", "spritesheet": "spritesheet.jpg"}
        self.store.finish(
            job.id,
            {
                "files": {**files, "sidecar": "video.json"},
                "sha256": hashlib.sha256(VIDEO).hexdigest(),
                "timings": {"denoising": 0.1},
                "frames": job.request["settings"]["num_frames"],
                "width": job.request["settings"]["width"],
                "height": job.request["settings"]["height"],
                "notes": [],
            },
        )


@dataclass
class Running:
    """A server that answers at `url`."""

    url: str
    port: int
    service: Service
    worker: FakeWorker | None
    video: bytes = VIDEO

    @property
    def store(self) -> JobStore:
        return self.service.store

    def client(self, **options: Any) -> httpx.Client:
        """A plain client of it."""
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, **options)

    def raw(self, request: bytes, seconds: float = 5.0) -> bytes:
        """What it answers to these bytes until it closes the connection."""
        found = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(request)
            try:
                while piece := connection.recv(65536):
                    found += piece
            except (TimeoutError, ConnectionResetError):
                pass
        return found

    def ask(self, prompt: str = "a red circle", **fields: Any) -> dict[str, Any]:
        """A new job."""
        with self.client() as client:
            answer = client.post("/api/jobs", json={"prompt": prompt, **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def until(self, job_id: str, *states: str, seconds: float = 20.0) -> dict[str, Any]:
        """The job once it is in one of these states."""
        end = time.monotonic() + seconds
        with self.client() as client:
            while True:
                job = client.get(f"/api/jobs/{job_id}").json()
                if job["state"] in states:
                    return job
                assert time.monotonic() < end, job
                time.sleep(0.02)


@contextmanager
def running(
    root: Path,
    *,
    worker: bool = True,
    catalogue: Catalogue | None = None,
    store: dict[str, int] | None = None,
    **options: Any,
) -> Iterator[Running]:
    """A server over a state folder. store: options of JobStore; options: of Service."""
    state = StateFolder(root)
    jobs = JobStore(state, **(store or {}))
    service = Service(jobs, state, catalogue or Catalogue(), **options)
    ready = threading.Event()
    server = make_server(App(service), ready.set)
    bound = open_socket("127.0.0.1", 0)
    port = bound.getsockname()[1]
    threads = [threading.Thread(target=server.run, kwargs={"sockets": [bound]})]
    fake = FakeWorker(jobs) if worker else None
    if fake is not None:
        fake.gate.set()
        threads.append(threading.Thread(target=fake.run))
    for thread in threads:
        thread.start()
    try:
        assert ready.wait(10)
        yield Running(f"http://127.0.0.1:{port}", port, service, fake)
    finally:
        server.should_exit = True
        if fake is not None:
            fake.gate.set()
            fake.stop()
        for thread in threads:
            thread.join(15)
        assert not any(thread.is_alive() for thread in threads)


@pytest.fixture
def serving(tmp_path: Path) -> Callable[..., Any]:
    """`with serving(options of running) as server:`"""
    return lambda **options: running(tmp_path / "state", **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a fake worker for the tests of one file, without token."""
    with running(
        tmp_path_factory.mktemp("state"), store={"max_queued": 1000, "max_per_client": 1000}
    ) as found:
        yield found
