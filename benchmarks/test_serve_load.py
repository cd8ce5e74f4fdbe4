"""`ea serve` under load: sixteen clients for two minutes, against the same jobs made without a queue.

Reports the queue's overhead (seconds per job next to those of bare generation, which runs before and after), the memory
of worker and server, the server's share of a core, and that no client got another's video. All compute with one thread,
so that server and clients have a core of their own.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

CLIENTS, SECONDS, BARE = 16, float(os.environ.get("EA_SECONDS", "120")), 8
COLOURS = ("red", "green", "blue", "yellow", "white")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

#: makes jobs as a worker does, but without a queue; prints seconds and hash of each
_BARE = """
import json, sys, time
from pathlib import Path
from ea_runtime.machine.allocator import tune_allocator
tune_allocator()
from ea_runtime.generation.making import ModelHash, make_video
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.resolve import resolve
from ea_runtime.generation.sidecar import plan_sidecar
from ea_runtime.video.output import plan_output
pipe = VideoPipeline.from_pretrained("tiny", device="cpu")
digest = ModelHash("tiny")
digest()
for number, (prompt, seed) in enumerate(json.loads(sys.argv[2])):
    output = plan_output(str(Path(sys.argv[1]) / f"{number}.mp4"), True)
    began = time.monotonic()
    request = resolve(ModelRequest(prompt=prompt, seed=seed)).request
    made = make_video(pipe, request, output, plan_sidecar(output), model_sha256=digest)
    print(json.dumps([time.monotonic() - began, made.sha256]), flush=True)
"""


def prompt_of(client: int, number: int) -> tuple[str, int]:
    """Ten jobs that all clients share, each at another time, and ones of their own."""
    if number % 3 == 0:
        shared = (client + number) % 10
        return f"a {COLOURS[shared % 5]} circle moves right", shared
    return f"a {COLOURS[(client + number) % 5]} square moves down", 1000 * client + number


def bare(folder: Path, jobs: list[tuple[str, int]]) -> list[tuple[float, str]]:
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-c", _BARE, str(folder), json.dumps(jobs)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return [(seconds, digest) for seconds, digest in map(json.loads, done.stdout.splitlines())]


@contextmanager
def served(state: Path) -> Iterator[tuple[str, psutil.Process]]:
    words = [
        sys.executable,
        "-m",
        "ea_runtime.cli.main",
        "serve",
        "--no-browser",
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [*words, "--state", str(state)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://[\d.:]+", process.stdout.readline())
        assert found is not None
        while httpx.get(f"{found[0]}/healthz").json()["workers"][0]["state"] == "starting":
            time.sleep(0.2)
        yield found[0], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def be_client(address: str, client: int, until: float, made: list[dict[str, Any]]) -> None:
    """Asks for one video after the other, follows it, and reads it."""
    with httpx.Client(base_url=address, headers={"X-EA-Client": f"client-{client}"}, timeout=60) as http:
        number = 0
        while time.monotonic() < until:
            prompt, seed = prompt_of(client, number)
            answer = http.post("/api/jobs", json={"prompt": prompt, "seed": seed})
            answer.raise_for_status()
            job = answer.json()
            status = "queued"
            while status in ("queued", "in_progress"):  # as often as OpenAI's client looks
                answer = http.get(f"/v1/videos/{job['id']}")
                status = answer.json()["status"]
                time.sleep(int(answer.headers["openai-poll-after-ms"]) / 1000)
            job = http.get(f"/api/jobs/{job['id']}").json()
            assert job["state"] == "completed", job
            recipe = http.get(job["result"]["recipe"]).json()
            video = http.get(job["result"]["video"])
            assert (recipe["settings"]["prompt"], recipe["settings"]["seed"]) == (prompt, seed)
            assert len(video.content) == job["result"]["bytes"]
            made.append(
                {"asked": (prompt, seed), "sha256": job["result"]["sha256"], "ended": job["completed_at"]}
            )
            number += 1


@pytest.mark.slow
def test_sixteen_clients(tmp_path: Path, report: Any) -> None:
    jobs = [prompt_of(0, 3 * number) for number in range(BARE)]
    before = bare(tmp_path / "bare", jobs)
    made: list[dict[str, Any]] = []
    errors: list[BaseException] = []

    def run(client: int, address: str, until: float) -> None:
        try:
            be_client(address, client, until, made)
        except BaseException as error:
            errors.append(error)

    with served(tmp_path / "state") as (address, server):
        (worker,) = (one for one in server.children() if "ea_runtime.serve.worker" in one.cmdline())
        began = time.monotonic()
        until = began + SECONDS
        threads = [threading.Thread(target=run, args=(client, address, until)) for client in range(CLIENTS)]
        for thread in threads:
            thread.start()
        memory: list[tuple[float, float, float]] = []
        used = server.cpu_times()
        while time.monotonic() < until:
            time.sleep(1)
            memory.append(
                (time.monotonic() - began, *(one.memory_info().rss / 2**20 for one in (worker, server)))
            )
        wall, now = time.monotonic() - began, server.cpu_times()
        share = (now.user + now.system - used.user - used.system) / wall
        for thread in threads:
            thread.join()
        text = httpx.get(f"{address}/metrics").text
    after = bare(tmp_path / "bare", jobs)
    assert not errors, errors[:1]
    assert "ea_jobs" in text
    digests: dict[Any, set[str]] = {}
    for one in made:
        digests.setdefault(one["asked"], set()).add(one["sha256"])
    assert all(len(found) == 1 for found in digests.values())
    solo = dict(zip(jobs, (digest for _, digest in before), strict=True))
    compared = [asked for asked in digests if asked in solo]
    assert compared
    assert all(digests[asked] == {solo[asked]} for asked in compared)
    # the first job waits for the model
    alone = statistics.median(seconds for seconds, _ in before[1:] + after[1:])
    ended = sorted(one["ended"] for one in made)
    queued = (ended[-1] - ended[1]) / (len(ended) - 2)
    late = [row for row in memory if row[0] > SECONDS / 4]
    flat = [
        100 * (max(values) - min(values)) / statistics.mean(values)
        for values in list(zip(*late, strict=True))[1:]
    ]
    report(
        "serve_load",
        {
            "clients": CLIENTS,
            "jobs": len(made),
            "compared with a solo run": len(compared),
            "seconds per job": round(queued, 3),
            "bare": round(alone, 3),
            "ratio": round(queued / alone, 3),
            "server's share of a core": round(share, 4),
            "worker MB": round(late[-1][1]),
            "server MB": round(late[-1][2]),
            "worker's memory, spread %": round(flat[0], 2),
            "server's memory, spread %": round(flat[1], 2),
        },
    )
