"""Server-sent events: order, resumption, one job alone, deletions, and the end of the server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from ea_runtime.serve.http import events, hub


def read(lines: Iterator[str]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(event, id, data) of a stream."""
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if not line and "data" in found:
            yield found["event"], int(found["id"]), json.loads(found["data"])
            found = {}
        elif name:
            found[name] = value


def listen(server: Any, until: Callable[[str, dict[str, Any]], bool], **options: Any) -> list[Any]:
    """Events until one fits."""
    found = []
    with server.client() as client, client.stream("GET", "/api/events", **options) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        for event in read(stream.iter_lines()):
            found.append(event)
            if until(event[0], event[2]):
                return found
    return found


def is_completed(event: str, data: dict[str, Any]) -> bool:
    return event == "job" and data["state"] == "completed"


def test_a_job_is_followed_from_queue_to_result(serving: Callable[..., Any]) -> None:
    with serving() as server:
        server.worker.gate.clear()
        job = server.ask()
        threading.Timer(0.8, server.worker.gate.set).start()
        found = listen(server, is_completed)
        states = [data["state"] for _, _, data in found]
        assert states[0] in ("queued", "in_progress")  # what is at work comes first
        assert states[-1] == "completed"
        assert [i for _, i, _ in found] == sorted(i for _, i, _ in found)
        steps = [data["done"] for _, _, data in found if data["phase"] == "denoising"]
        assert steps == sorted(steps)
        assert any(data["preview"] for _, _, data in found)
        last = found[-1][2]
        with server.client() as client:
            assert last == client.get(f"/api/jobs/{job['id']}").json()
            assert client.get(last["result"]["video"]).content == server.video
            assert client.get(last["result"]["recipe"]).json()["model"]["name"] == job["id"]  # no folder


def test_one_job_alone_and_deletions(serving: Callable[..., Any]) -> None:
    with serving(worker=False) as server:
        first, second = server.ask("first"), server.ask("second")

        def delete() -> None:
            with server.client() as client:
                client.delete(f"/api/jobs/{second['id']}")
                client.delete(f"/api/jobs/{first['id']}")

        threading.Timer(0.5, delete).start()
        found = listen(server, lambda event, data: event == "deleted", params={"job": first["id"]})
        assert {data["id"] for _, _, data in found} == {first["id"]}
        with server.client() as client:
            assert client.get("/api/events", params={"job": "video_" + "0" * 32}).status_code == 404


def test_a_client_that_was_away_misses_nothing(serving: Callable[..., Any]) -> None:
    with serving() as server:
        server.ask("first")
        seen = listen(server, is_completed)[-1][1]
        second = server.ask("second")
        server.until(second["id"], "completed")
        with server.client() as client:
            third = server.ask("third")
            client.delete(f"/api/jobs/{third['id']}")
        for since in (str(seen), "garbage", str(10**15)):
            found = listen(
                server,
                lambda event, data: event == "job" and data["id"] == second["id"],
                headers={"Last-Event-ID": since},
            )
            assert found[-1][2]["state"] == "completed"
        gone = listen(server, lambda event, data: event == "deleted", headers={"Last-Event-ID": str(seen)})
        assert gone[-1][2] == {"id": third["id"]}


def test_slow_clients_get_the_latest_and_take_no_memory() -> None:
    listener = hub.Listener(None)
    for version in range(10_000):
        listener.put([hub.Change(f"job {version % 3}", None, version)])
    assert [change.version for change in listener._waiting.values()] == [9997, 9998, 9999]


def test_silence_is_broken_by_comments_and_the_end_of_the_server_ends_it(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BEAT", 0.1)
    lines: list[str] = []

    def follow(url: str) -> None:
        with httpx.stream("GET", f"{url}/api/events", timeout=20, trust_env=False) as stream:
            lines.extend(stream.iter_lines())

    with serving(worker=False) as server:
        thread = threading.Thread(target=follow, args=(server.url,))
        thread.start()
        time.sleep(0.6)
    thread.join(5)
    assert not thread.is_alive()
    assert lines[0] == "retry: 2000"
    assert lines.count(": still here") >= 3


def test_too_many_listeners(serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_LISTENERS", 1)
    with (
        serving(worker=False) as server,
        server.client() as client,
        client.stream("GET", "/api/events") as one,
    ):
        server.ask()
        lines = one.iter_lines()
        assert next(line for line in lines if line.startswith("data"))  # the first one listens
        with server.client(headers={"Connection": "close"}) as other:
            answer = other.get("/api/events", timeout=5)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_listeners")


def test_a_missed_change_is_caught(serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: a hub that forgets changes never shows the end of a job."""
    monkeypatch.setattr(hub.Listener, "put", lambda self, changes: None)
    with serving() as server:
        server.worker.gate.clear()
        server.ask()
        threading.Timer(0.5, server.worker.gate.set).start()
        with pytest.raises(httpx.ReadTimeout):
            listen(server, is_completed, timeout=2.0)
