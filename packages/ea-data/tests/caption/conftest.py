"""A real HTTP server in a separate process, which can fail, limit, hang and drip."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SERVER = """
import json, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

script, log = json.loads(sys.argv[1]), sys.argv[2]
lock, state = threading.Lock(), {"at": 0, "now": 0}

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            step = script[min(state["at"], len(script) - 1)]
            state["at"] += 1
            state["now"] += 1
            seen = {"time": time.time(), "path": self.path, "auth": self.headers.get("Authorization"),
                    "at_once": state["now"], "body": body}
            with open(log, "a") as file:
                file.write(json.dumps(seen) + "\\n")
        try:
            self.answer(step)
        finally:
            with lock:
                state["now"] -= 1

    def answer(self, step):
        time.sleep(step.get("sleep", 0))
        if step.get("close"):
            self.close_connection = True
            return self.connection.close()
        text = step.get("raw")
        if text is None:
            content = step.get("content", "A red circle moves right.")
            text = json.dumps({"choices": [{"message": {"content": content}}],
                               "usage": {"total_tokens": step.get("tokens", 100)}})
        data = text.encode() * step.get("times", 1)
        self.send_response(step.get("status", 200))
        for name, value in step.get("headers", {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if "drip" in step:
            for number in range(len(data)):
                self.wfile.write(data[number : number + 1])
                self.wfile.flush()
                time.sleep(step["drip"])
        else:
            self.wfile.write(data)

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Server:
    """url: of its API. seen(): the requests so far, in order."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log

    def seen(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    """Starts a server that answers by a script: one dict per request, the last one repeatedly."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    running: list[subprocess.Popen[str]] = []

    def start(*script: dict[str, Any]) -> Server:
        log = tmp_path / f"server-{len(running)}.jsonl"
        command = [sys.executable, "-c", SERVER, json.dumps(script or ({},)), str(log)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        running.append(process)
        assert process.stdout is not None
        return Server(f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log)

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
