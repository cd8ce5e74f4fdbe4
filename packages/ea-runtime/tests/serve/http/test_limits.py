"""Too much of everything: bodies, clients, connections, and clients that are slow on purpose."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from starlette.responses import PlainTextResponse

from ea_runtime.serve.http import bodies, protocol
from ea_runtime.serve.http.access import Access
from ea_runtime.serve.http.guard import Guard

#: a server alone in its process, so that its memory can be measured
_PROGRAM = """
import sys
from ea_runtime.serve.catalogue import Catalogue
from ea_runtime.serve.http.app import App
from ea_runtime.serve.http.server import make_server, open_socket
from ea_runtime.serve.http.service import Service
from ea_runtime.serve.jobs import JobStore
from ea_runtime.serve.state import StateFolder
state = StateFolder(sys.argv[1])
bound = open_socket("127.0.0.1", 0)
print(bound.getsockname()[1], flush=True)
make_server(App(Service(JobStore(state), state, Catalogue()))).run(sockets=[bound])
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[psutil.Process, int]]:
    """A server's process and port."""
    folder = tmp_path_factory.mktemp("state")
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            while True:
                try:
                    client.get("/api/about")
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
        yield psutil.Process(child.pid), port
        child.terminate()
        assert child.wait(20) == 0


def big(port: int, kind: str, said: int | None, sent: int, target: str) -> tuple[int, float]:
    """(status, seconds until it came) of a request that says it has `said` bytes (None: chunked) and sends `sent`."""
    length = f"Content-Length: {said}" if said is not None else "Transfer-Encoding: chunked"
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{length}\r\n\r\n".encode()
    piece = b"a" * 65536
    if said is None:
        piece = b"10000\r\n" + piece + b"\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head)
        over = time.perf_counter()
        try:
            for i in range(sent // 65536):
                connection.sendall(piece)
                if i < 6:  # 384 KiB: the cap of JSON is passed
                    over = time.perf_counter()
        except (BrokenPipeError, ConnectionResetError):
            pass
        answer = connection.recv(4096)
        seconds = time.perf_counter() - over
    status = re.match(rb"HTTP/1.1 (\d\d\d)", answer)
    return int(status[1]) if status else 0, seconds


def test_oversized_requests_are_refused_at_once_and_take_no_memory(
    process: tuple[psutil.Process, int],
) -> None:
    server, port = process
    before = server.memory_info().rss
    took, statuses = [], Counter[int]()
    form = "multipart/form-data; boundary=xx"
    for _ in range(50):
        for kind, said, sent, target in (
            ("application/json", 10 << 30, 0, "/v1/videos"),
            ("application/json", 1 << 20, 1 << 20, "/api/jobs"),
            (form, 10 << 30, 0, "/api/recipe"),
            ("application/json", None, 1 << 20, "/api/jobs"),
        ):
            status, seconds = big(port, kind, said, sent, target)
            statuses[status] += 1
            took.append(seconds)
    assert statuses == {413: 200}
    assert sorted(took)[int(len(took) * 0.98)] < 0.1, sorted(took)[-5:]
    for body in (b"[" * 250_000, b'{"a":' * 40_000, b'{"prompt": "' + b"<b>" * 80_000 + b'"}') * 7:
        start = time.perf_counter()
        answer = httpx.post(
            f"http://127.0.0.1:{port}/api/jobs", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400
        took.append(time.perf_counter() - start)
    assert server.memory_info().rss - before < 200 << 20


def test_a_body_that_is_read_whole_is_caught(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "_check_length", lambda request, limit: None)
    head = b"POST /v1/videos HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with (
        serving(worker=False) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=0.5) as connection,
    ):
        connection.sendall(head + b"Content-Length: 10000000000\r\n\r\n")
        with pytest.raises(TimeoutError):  # it waits for what never comes
            connection.recv(100)


def test_100_clients_get_exactly_the_places_there_are(serving: Callable[..., Any]) -> None:
    with serving(worker=False, store={"max_queued": 60, "max_per_client": 2}) as server:
        answers: Counter[int] = Counter()
        waits: list[int] = []

        def client(number: int) -> None:
            with server.client(headers={"X-EA-Client": f"client-{number}"}) as http:
                for _ in range(3):
                    answer = http.post("/api/jobs", json={"prompt": f"of {number}"})
                    answers[answer.status_code] += 1
                    if answer.status_code == 429:
                        waits.append(int(answer.headers["retry-after"]))
                        assert answer.json()["error"]["code"] == "queue_full"

        with ThreadPoolExecutor(100) as pool:
            list(pool.map(client, range(100)))
        assert answers == {201: 60, 429: 240}
        assert min(waits) >= 1
        assert server.store.counts()["queued"] == 60
        own = Counter(job.client for job in server.store.list(100)[0])
        assert max(own.values()) <= 2


def test_clients_that_send_nothing_or_slowly_are_cut_off(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 1.5)
    monkeypatch.setattr(protocol, "_LOOK", 0.1)
    monkeypatch.setattr(bodies, "PATIENCE", 1.0)
    with serving(worker=False) as server:

        def slow(first: bytes, drip: bytes) -> float:
            start = time.monotonic()
            with socket.create_connection(("127.0.0.1", server.port), timeout=0.1) as connection:
                connection.sendall(first)
                while time.monotonic() - start < 20:
                    try:
                        connection.sendall(drip)
                        if connection.recv(4096) == b"":
                            break
                    except TimeoutError:
                        continue
                    except OSError:
                        break
            return time.monotonic() - start

        assert slow(b"", b"") < 12
        assert slow(b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n") < 12
        post = b"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        assert slow(post + b"Content-Length: 1000\r\n\r\n", b"a") < 12
        # a client that asks again and again is not idle
        with server.client() as client:
            start = time.monotonic()
            while time.monotonic() - start < 3:
                assert client.get("/healthz").status_code == 200


def test_a_client_that_reads_nothing_is_cut_off(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "_LOOK", 0.1)
    with serving() as server:
        job = server.ask()
        server.until(job["id"], "completed")
        (server.service.state.result(job["id"]) / "video.mp4").write_bytes(b"\0" * (64 << 20))
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(
                f"GET /v1/videos/{job['id']}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            end = time.monotonic() + 5
            while time.monotonic() < end and psutil.Process().net_connections("tcp"):
                if not _is_open(server.port, connection.getsockname()[1]):
                    break
                time.sleep(0.1)
            assert not _is_open(server.port, connection.getsockname()[1])


def _is_open(port: int, peer: int) -> bool:
    return any(
        one.laddr.port == port and one.raddr and one.raddr.port == peer and one.status == "ESTABLISHED"
        for one in psutil.Process().net_connections("tcp")
    )


def test_more_requests_at_once_than_places_are_told_so() -> None:
    async def main() -> None:
        may_end = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await may_end.wait()
            await PlainTextResponse("done")(scope, receive, send)

        guard = Guard(app, Access(), lambda *_: None, max_requests=3)
        transport = httpx.ASGITransport(guard, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            waiting = [asyncio.create_task(client.get("/")) for _ in range(3)]
            while guard.running < 3:
                await asyncio.sleep(0.01)
            answer = await client.get("/")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"]["code"] == "busy"
            may_end.set()
            assert [one.status_code for one in await asyncio.gather(*waiting)] == [200] * 3
            assert (await client.get("/")).status_code == 200

    asyncio.run(main())


def test_the_state_folder_is_its_owners_alone(serving: Callable[..., Any], tmp_path: Path) -> None:
    with serving(worker=False):
        assert (tmp_path / "state").stat().st_mode & 0o77 == 0
