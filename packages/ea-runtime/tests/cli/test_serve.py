"""`ea serve` as a program: how fast it answers, what it imports, how it ends, and one line for each wrong start."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ea_runtime.cli import serve as command
from ea_runtime.cli.main import run
from ea_runtime.serve.state import StateFolder


@contextmanager
def started(*words: str, until: str = "/healthz") -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """(process, address, CPU seconds from its start to its first answer) of `ea serve` on a free port."""
    code = "from ea_runtime.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--port", "0", "--device", "cpu", "--no-browser", *words],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        try:
            address = found[0].partition("?")[0].rstrip("/")
            with httpx.Client(trust_env=False) as client:
                assert client.get(address + until).status_code == 200
            used = psutil.Process(process.pid).cpu_times()
            yield process, found[0], used.user + used.system
        finally:
            process.terminate()
            process.wait(90)


def test_the_server_answers_before_torch_is_imported_anywhere(tmp_path: Path) -> None:
    with started("--state", str(tmp_path)) as (process, _, seconds):
        maps = Path(f"/proc/{process.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0
    # CPU seconds, since other tests share the cores; alone on them it takes about as long
    assert seconds < 1.5


def test_the_modules_of_the_server_import_no_torch() -> None:
    program = (
        "import sys; import ea_runtime.cli.serve, ea_runtime.serve.http.app, ea_runtime.serve.http.server; "
        "import ea_runtime.serve.supervisor, ea_runtime.serve.catalogue, ea_runtime.plugins.host as host; "
        "from ea_runtime.serve.orders import make_order; "
        "make_order({'prompt': 'x', 'sampler': 'euler'}, ea_runtime.serve.catalogue.Catalogue()); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    twin = subprocess.run(
        [sys.executable, "-c", program.replace("import sys;", "import sys, torch;", 1)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert twin.stdout.strip() == "True"


@pytest.mark.slow
def test_the_openai_client_makes_a_video_with_a_real_worker(tmp_path: Path) -> None:
    import av
    from openai import OpenAI

    warnings.simplefilter("ignore", DeprecationWarning)
    small = {"steps": 2, "num_frames": 9, "seed": 1}
    with started("--state", str(tmp_path)) as (process, url, _):
        base = url.rstrip("/")
        with OpenAI(base_url=f"{base}/v1", api_key="x", max_retries=0, timeout=120) as client:
            video = client.videos.create_and_poll(prompt="a red circle moves right", extra_body=small)
            assert video.status == "completed", video.error
            (tmp_path / "a.mp4").write_bytes(client.videos.download_content(video.id).read())
            with av.open(str(tmp_path / "a.mp4")) as made:
                assert sum(1 for _ in made.decode(video=0)) == 9
            assert client.videos.download_content(video.id, variant="thumbnail").read()[8:12] == b"WEBP"
            assert client.videos.download_content(video.id, variant="spritesheet").read()[:2] == b"\xff\xd8"
            again = client.videos.remix(video.id, prompt="a red circle moves right")
            again = client.videos.poll(again.id)
            same = client.videos.download_content(again.id).read()
            assert same == (tmp_path / "a.mp4").read_bytes()
            picture = client.images.generate(prompt="a blue square", extra_body={"steps": 2, "seed": 1})
            assert picture.data
            # one at work is deleted, and the worker takes the next
            long = client.videos.create(prompt="a green star", extra_body={"steps": 200, "num_frames": 90})
            while client.videos.retrieve(long.id).status == "queued":
                time.sleep(0.05)
            assert client.videos.delete(long.id).deleted
            last = client.videos.create_and_poll(prompt="a red circle moves right", extra_body=small)
            assert client.videos.download_content(last.id).read() == same
        with httpx.Client(base_url=base, trust_env=False) as plain:
            answer = plain.post("/api/recipe", files={"file": ("any.txt", same)})
            assert (answer.json()["prompt"], answer.json()["seed"]) == ("a red circle moves right", 1)
            assert answer.json()["unknown"] == []
            recipe = plain.get(f"/api/jobs/{video.id}/recipe")
            assert str(tmp_path) not in recipe.text
            assert "phase" in plain.get("/metrics").text
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 0


def test_a_public_address_makes_a_token_and_prints_the_link(tmp_path: Path) -> None:
    with started("--state", str(tmp_path), "--host", "0.0.0.0") as (_, url, _seconds):
        match = re.fullmatch(r"(http://[0-9.]+:\d+)/\?token=([A-Za-z0-9_-]{43})", url)
        assert match
        with httpx.Client(base_url=match[1], trust_env=False) as client:
            assert client.get("/api/jobs").status_code == 401
            bearer = {"Authorization": f"Bearer {match[2]}"}
            assert client.get("/api/jobs", headers=bearer).status_code == 200
            assert client.get("/api/jobs", headers={**bearer, "Host": "evil.example"}).status_code == 403


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which `ea serve` refuses these words."""
    assert run(["serve", "--no-browser", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_port_in_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(capsys, "--state", str(tmp_path), "--port", str(port))
    assert f"`port` {port} is in use" in line
    assert f"--port {port + 1}" in line


def test_a_state_folder_in_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program = (
        "import sys; from ea_runtime.serve.state import StateFolder\n"
        "with StateFolder(sys.argv[1]).server_lock(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert "another `ea serve` uses the state folder" in refused(
            capsys, "--state", str(tmp_path), "--port", "0"
        )
        holder.communicate("")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--models", "/no/such/folder"], r"`--models` must be a folder, got '/no/such/folder'"),
        (["--loras", "/no/such/folder"], r"`--loras` must be a folder"),
        (["--host", "192.0.2.1"], r"192.0.2.1:0 cannot be used: .*--host"),
        (
            ["--host", "no such name"],
            r"`host` must be an address or name of this machine, got 'no such name'",
        ),
        (["--token", "short"], r"`token` must be at least 16 .*got 5 characters"),
        (["--token", ""], r"`token` must be at least 16 .*got 0 characters"),
        (["--allowed-host", "http://a"], r"`allowed-host` must be a name"),
        (["--device", "gpu"], r"`device` must be cpu, cuda, cuda:N or mps, got 'gpu'"),
        (["--device", "cpu", "--device", "cpu"], r"`device` must be given once"),
        (["--device", "cpu", "--ray", "auto"], r"leave out --device or --ray"),
        (["--offload", "grup"], r"`offload` must be one of auto, none, model, group, sequential, got 'grup'"),
        (["--offload", "model", "--device", "cpu"], r"`offload` 'model' moves weights .*'group' works there"),
        (
            ["--offload", "group", "--device", "mps"],
            r"`offload` 'group' works on cpu and cuda, got device 'mps'",
        ),
        (["--quantize", "int9"], r"`quantize` must be int8, .*got 'int9'"),
        (["--quantize", "vae=int8"], r"`quantize` of the vae is not possible"),
        (["--quantize", "none.gguf"], r"`quantize` names the file 'none.gguf', which is not there"),
        (
            ["--quantize", "fp8-unscaled", "--offload", "group"],
            r"`quantize` and `offload` 'group' cannot be combined",
        ),
        (["--max-queue", "0"], r"--max-queue.*(greater than or equal to 1|range 1<=)"),
        (["--port", "70000"], r"--port.*(less than or equal to 65535|<=65535)"),
    ],
)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], line: str
) -> None:
    assert re.search(line, refused(capsys, "--state", str(tmp_path), "--port", "0", *words))


def test_a_form_that_no_worker_could_load(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ["--state", str(tmp_path), "--port", "0", "--device", "cpu"]
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("ea_runtime.models.quantize.is_installed", lambda package: package in (None, "gguf"))
    damaged = refused(capsys, *start, "--quantize", str(tmp_path / "a.gguf"))
    assert "GGUF file 'a.gguf' is damaged or cut short" in damaged
    assert "int8 needs the package torchao" in refused(capsys, *start, "--quantize", "int8")


def test_a_state_folder_that_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "the state folder" in refused(capsys, "--state", str(tmp_path / "file"), "--port", "0")


def test_jobs_that_cannot_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    StateFolder(tmp_path).database.write_bytes(b"no database" * 1000)
    assert "cannot be read or written" in refused(capsys, "--state", str(tmp_path), "--port", "0")


def test_the_extra_is_named_if_it_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(command._EXTRA, "no_such_module", "no-such-package")
    line = refused(capsys, "--state", str(tmp_path))
    assert "`ea serve` needs no-such-package; install with: pip install 'ea-runtime[serve]'" in line


def test_the_extra_is_what_pyproject_says() -> None:
    import tomllib

    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    listed = tomllib.loads(text)["project"]["optional-dependencies"]["serve"]
    assert {re.split("[>=]", one)[0] for one in listed} == set(command._EXTRA.values())


def test_a_browser_is_opened_where_there_is_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(command, "_has_display", lambda: True)
    announce: Any = command._announcement(("127.0.0.1", 7860), "t" * 20, Path("/x"), True)
    announce()
    end = time.monotonic() + 5
    while not opened and time.monotonic() < end:
        time.sleep(0.01)
    assert opened == [f"http://127.0.0.1:7860/?token={'t' * 20}"]


def test_addresses_are_shown_as_browsers_take_them() -> None:
    assert command._shown_host("127.0.0.1") == "127.0.0.1"
    assert command._shown_host("::1") == "[::1]"
    assert command._shown_host("0.0.0.0") != "0.0.0.0"
    assert json.dumps(command._shown_host("::"))
