"""POST /api/recipe: the request in a file of ours, read by a child with limits."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ea_runtime.generation.recipe import marks_of
from ea_runtime.serve.http import uploads
from ea_runtime.serve.http.errors import ApiError
from ea_runtime.serve.http.uploads import sniff
from ea_runtime.video.output import plan_output

SETTINGS = {
    "prompt": "a red circle, <grün>",
    "negative_prompt": "blur",
    "num_frames": 9,
    "height": 64,
    "width": 64,
    "num_inference_steps": 7,
    "guidance_scale": 2.5,
    "sampler": "euler",
    "seed": 11,
    "smooth": True,
}
RECORD: dict[str, Any] = {
    "settings": SETTINGS,
    "fps": 8,
    "model": {"name": "/home/somebody/tiny", "sha256": "0" * 64},
    "device": {"device": "cpu", "dtype": "float32"},
    "loras": [{"file": "/home/somebody/inkline.safetensors", "sha256": "1" * 64, "weight": 0.5}],
}


def made(folder: Path, kind: str, record: dict[str, Any] = RECORD) -> bytes:
    """A small file of this kind with the record in it."""
    output = plan_output(folder / f"made.{kind}", overwrite=True)
    with output.writer(8, 1 if kind == "png" else 2, marks_of(record)) as write:
        for value in range(1 if kind == "png" else 2):
            write(np.full((64, 64, 3), 100 * value, np.uint8))
    return (folder / f"made.{kind}").read_bytes()


def ask(server: Any, body: bytes, name: str = "../../etc/passwd") -> Any:
    with server.client() as client:
        return client.post("/api/recipe", files={"file": (name, body, "text/html")})


@pytest.mark.parametrize("kind", ["mp4", "mov", "webm", "webp", "gif", "png"])
def test_every_kind_of_file(server: Any, tmp_path: Path, kind: str) -> None:
    answer = ask(server, made(tmp_path, kind))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found == {
        "prompt": "a red circle, <grün>",
        "negative_prompt": "blur",
        "model": "tiny",
        "width": 64,
        "height": 64,
        "num_frames": 9,
        "fps": 8.0,
        "seed": 11,
        "steps": 7,
        "guidance": 2.5,
        "sampler": "euler",
        "loras": [{"name": "inkline", "scale": 0.5}],
        "step_cache": None,
        "smooth": True,
        "image": None,
        "image_end": None,
        "strength": None,
        "fit": None,
        "prompts_at": None,
        "window": None,
        "loop": None,
        "join": None,
        "unknown": ["inkline"],
    }
    assert not list(server.service.state.uploads.iterdir())


def test_a_sidecar(server: Any) -> None:
    record = {"ea_sidecar": 1, **RECORD, "versions": {}, "output": {"file": "a", "kind": "mp4", "sha256": ""}}
    record["model"] = {"name": "none-such", "sha256": ""}
    found = ask(server, json.dumps(record).encode()).json()
    assert found["unknown"] == ["none-such", "inkline"]
    # without a window it was made in one piece, and is so again
    record["model"]["name"] = "tiny"
    record["settings"] = {**RECORD["settings"], "num_frames": 27}
    assert ask(server, json.dumps(record).encode()).json()["window"] == 27


def test_files_that_are_none(server: Any, tmp_path: Path) -> None:
    bare = plan_output(tmp_path / "bare.png")
    with bare.writer(8, 1) as write:
        write(np.zeros((64, 64, 3), np.uint8))
    body = made(tmp_path, "mp4")
    for content, status in (
        ((tmp_path / "bare.png").read_bytes(), 400),
        (body[: len(body) // 3], 400),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 500, 400),
        (b"plain text", 415),
        (b"", 415),
        (b"#EXTM3U\nhttp://example.com/a", 415),
        (b"{", 400),
    ):
        answer = ask(server, content)
        assert answer.status_code == status, answer.text
        message = answer.json()["error"]["message"]
        assert "\n" not in message
        assert str(tmp_path) not in message
        assert "uploads" not in message


def test_a_recipe_with_impossible_values(server: Any, tmp_path: Path) -> None:
    for change in ({"prompt": 7}, {"seed": "x"}, {"extra": 1}):
        record = {**RECORD, "settings": {**SETTINGS, **change}}
        marks = json.dumps({"ea_recipe": 1, **record})
        body = made(tmp_path, "gif").replace(b"&quot;seed&quot;", b"&quot;sead&quot;")
        assert ask(server, body).status_code in (200, 400)
        assert ask(server, marks.encode()).status_code == 400


def test_forms_that_are_none(server: Any) -> None:
    with server.client() as client:
        for options, status in (
            ({"files": {"other": b"x"}}, 400),
            ({"files": {"file": b"\x89PNG\r\n\x1a\n"}, "data": {"more": "x"}}, 400),
            ({"files": {"file": b"x", "file2": b"y"}}, 400),
            ({"data": {"file": "x"}}, 415),
            ({"json": {"file": "x"}}, 415),
        ):
            assert client.post("/api/recipe", **options).status_code == status


def test_the_first_bytes_decide() -> None:
    assert sniff(b"\0\0\0\x20ftypisom") == "mp4"
    assert sniff(b"\0\0\0\x14ftypqt  ") == "mov"
    assert sniff(b"\xef\xbb\xbf {") == "json"
    with pytest.raises(ApiError):
        sniff(b"PK\x03\x04")


def test_a_reader_that_hangs_or_dies_is_one_line(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = made(tmp_path, "png")
    real = subprocess.Popen
    for program in (
        "import time; time.sleep(60)",
        "import os; os.abort()",
        "print('x' * 3_000_000)",
        "print('no json')",
        "x = bytearray(1)\nprint('{\"record\": [')",
    ):
        monkeypatch.setattr(uploads, "_SECONDS", 0.5)
        monkeypatch.setattr(
            uploads.subprocess,
            "Popen",
            lambda command, program=program, **options: real([sys.executable, "-c", program], **options),
        )
        with serving(worker=False) as server:
            start = time.monotonic()
            answer = ask(server, body)
            assert answer.status_code == 400, answer.text
            assert time.monotonic() - start < 10
            assert not list(server.service.state.uploads.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="limits of processes as Linux has them")
@pytest.mark.parametrize(
    ("deed", "sign"),
    [
        ("bytearray(3 << 30)", "MemoryError"),
        ("import os; os.write(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), b'x' * 10)", "File too large"),
        ("print(1)", ""),
    ],
)
def test_the_limits_of_the_child(tmp_path: Path, deed: str, sign: str) -> None:
    program = (
        "import sys\nfrom ea_runtime.serve.http.upload_child import _limit_resources\n"
        f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n_limit_resources()\n{deed}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file")], capture_output=True, text=True, check=False
    )
    assert (sign in done.stderr) if sign else done.returncode == 0
