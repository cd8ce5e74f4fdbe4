"""POST /api/recipe: the request in a file of ours, read by a child with limits."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ea_runtime.generation.recipe import marks_of
from ea_runtime.serve.http import shapes, uploads
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


def test_a_recipe_with_impossible_values(server: Any) -> None:
    record = {"ea_sidecar": 1, **RECORD, "versions": {}, "output": {"file": "a", "kind": "mp4", "sha256": ""}}
    record["settings"] = {**SETTINGS, "seed": "x"}
    answer = ask(server, json.dumps(record).encode())
    assert answer.status_code == 400
    assert "`settings.seed`: Input should be a valid integer, got 'x'" in answer.json()["error"]["message"]


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
        picture = ("file", b"\x89PNG\r\n\x1a\n")
        for parts in ([picture, ("more", (None, "x"))], [picture, ("more", b"x")], [("file", (None, "x"))]):
            answer = client.post("/api/recipe", files=parts)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_form")
        answer = client.post("/api/recipe?more=1", files={"file": b"\x89PNG\r\n\x1a\n"})
        assert "more" in answer.json()["error"]["message"]


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


# --- each layer alone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x20ftypisom", "mp4"),
        (b"\0\0\0\x14ftypqt  ", "mov"),
        (b"\0\0\0\x14ftyp", "mp4"),
        (b"\x1aE\xdf\xa3", "webm"),
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"GIF87a", "gif"),
        (b"GIF89a", "gif"),
        (b"RIFF\0\0\0\0WEBPVP8", "webp"),
        (b"{", "json"),
        (b"\xef\xbb\xbf \t\r\n{", "json"),
        *(
            (head, None)
            for head in (b"", b"ftyp", b"\x1aE\xdf", b"\x89PNG\r\n", b"GIF88a", b"RIFF\0\0\0\0WAVE")
        ),
        *((head, None) for head in (b"RIFXxxxxWEBP", b" [", b"MZ", b"<svg", b"\xff\xd8\xff", b"#!/bin/sh")),
    ],
)
def test_each_kind_has_its_first_bytes(head: bytes, kind: str | None) -> None:
    if kind is not None:
        assert sniff(head) == sniff(head + b"\0 and more") == kind
        return
    with pytest.raises(ApiError, match="must be a video or picture that ea wrote") as error:
        sniff(head)
    assert (error.value.status, error.value.param) == (415, "file")


def test_a_copy_has_a_name_of_ours_and_is_removed(tmp_path: Path) -> None:
    with uploads.kept(tmp_path, io.BytesIO(b"abc"), "png") as place:
        assert re.fullmatch(r"[0-9a-f]{32}\.png", place.name)
        assert (place.parent, place.read_bytes()) == (tmp_path, b"abc")
    assert not place.exists()
    with uploads.kept(tmp_path, io.BytesIO(b"abc"), "png") as place:
        place.unlink()  # by somebody else

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("broken")

    with pytest.raises(OSError, match="broken"), uploads.kept(tmp_path, Broken(), "png"):
        pass
    with pytest.raises(ValueError, match="x"), uploads.kept(tmp_path, io.BytesIO(), "png"):
        raise ValueError("x")
    assert list(tmp_path.iterdir()) == []


def child_of(program: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Makes this program the child; the calls."""
    calls: list[Any] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        calls.append((command, options))
        return real([sys.executable, "-c", program], **options)

    monkeypatch.setattr(uploads.subprocess, "Popen", popen)
    return calls


def test_the_child_knows_a_name_and_no_path_and_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = child_of("print('x' * 9)", monkeypatch)
    assert uploads._run_child(tmp_path / "name.png", "png") == b"x" * 9 + os.linesep.encode()
    ((command, options),) = calls
    assert command == [sys.executable, "-P", "-m", "ea_runtime.serve.http.upload_child", "name.png", "png"]
    environment = options.pop("env")
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["OMP_NUM_THREADS"]) == ("", "1")
    assert options == {
        "cwd": tmp_path,
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
    }
    assert (uploads._CHILDREN, uploads._SECONDS, uploads._ANSWER, uploads._HEAD) == (2, 15.0, 1 << 20, 64)


@pytest.mark.parametrize(("length", "is_taken"), [(100, True), (101, False)])
def test_an_answer_has_a_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, is_taken: bool
) -> None:
    monkeypatch.setattr(uploads, "_ANSWER", 100)
    killed: list[bool] = []
    child = SimpleNamespace(returncode=0, kill=lambda: killed.append(True))  # one that has just ended
    answer = nullcontext((io.BytesIO(b"x" * length), child))
    monkeypatch.setattr(uploads, "run_child", lambda *_: answer)
    if is_taken:
        assert len(uploads._run_child(tmp_path / "a", "png")) == length
    else:
        with pytest.raises(ApiError, match="its reader was stopped or ended early") as error:
            uploads._run_child(tmp_path / "a", "png")
        assert (error.value.status, error.value.code, error.value.param) == (400, "no_recipe", "file")
    assert killed == [True] * (not is_taken)


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "import os; os.abort()"])
def test_a_child_that_fails_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    child_of(f"print('{{}}', flush=True); {end}", monkeypatch)
    with pytest.raises(ApiError, match="its reader was stopped or ended early"):
        uploads._run_child(tmp_path / "a", "png")


def test_a_child_ends_with_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child_of("import time; time.sleep(5)", monkeypatch)
    with pytest.raises(KeyError), uploads.run_child(tmp_path / "a", "png", 30) as (_, child):
        raise KeyError
    assert child.poll() not in (None, 0)
    timers = [one for one in threading.enumerate() if isinstance(one, threading.Timer)]
    assert all(one.finished.is_set() for one in timers)


def test_a_child_that_says_no_more_is_waited_for_and_then_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_of("import os, time; os.close(1); time.sleep(5)", monkeypatch)
    with uploads.run_child(tmp_path / "a", "png", 0.2) as (output, child):
        assert output.read() == b""
    assert child.poll() not in (None, 0)


def test_what_the_document_says_of_the_address() -> None:
    (one,) = uploads.ENDPOINTS
    assert (one.method, one.path, one.forms) == ("POST", "/api/recipe", "only")
    assert (one.gives, one.errors) == ({200: shapes.Recipe}, (400, 413, 415))


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ('{"record": {"a": 1}}', None),
        ('{"error": "it says nothing"}', "it says nothing"),
        ("{}", "the file cannot be read"),
    ],
)
def test_what_the_child_says_is_a_record_or_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, said: str | None
) -> None:
    monkeypatch.setattr(uploads, "_run_child", lambda place, kind: printed.encode())
    reader = uploads.UploadReader(tmp_path)
    if said is None:
        assert reader._read(io.BytesIO(b"x"), "png") == {"a": 1}
        return
    with pytest.raises(ApiError, match=said) as error:
        reader._read(io.BytesIO(b"x"), "png")
    assert (error.value.status, error.value.code, error.value.param) == (400, "no_recipe", "file")


def service(**models: int) -> Any:
    """With models of so many frames, and a LoRA."""
    entries = {
        name: SimpleNamespace(defaults=SimpleNamespace(num_frames=frames)) for name, frames in models.items()
    }
    return SimpleNamespace(catalogue=SimpleNamespace(models=lambda: entries, loras=lambda: {"known": 1}))


def test_a_request_of_a_record_says_what_is_not_here() -> None:
    settings = {
        **SETTINGS,
        "image": "/a/cat.png",
        "mask": "",
        "strength": 0.5,
        "fit": "pad",
        "loop": True,
        "join": "pixels",
    }
    loras = [{"file": f"/x/{name}.safetensors", "sha256": "", "weight": 0.5} for name in ("known", "gone")]
    record = {**RECORD, "model": {"name": "tiny", "sha256": ""}, "settings": settings, "loras": loras}
    found = uploads._request_of(record, service(tiny=9))
    assert found.unknown == ["gone", "cat.png"]
    assert [(one.name, one.scale) for one in found.loras] == [("known", 0.5), ("gone", 0.5)]
    assert (found.image, found.image_end, found.strength, found.fit) == (None, None, 0.5, "pad")
    assert (found.loop, found.join, found.window) == (True, "pixels", None)
    bare = {name: value for name, value in record.items() if name != "loras"}
    assert uploads._request_of(bare, service(other=9)).unknown == ["tiny", "cat.png"]


@pytest.mark.parametrize(
    ("frames", "own", "recorded", "window"),
    [(9, 9, None, None), (10, 9, None, 10), (9, 10, None, None), (27, 9, 18, 18), (27, None, None, None)],
)
def test_a_record_without_a_window_is_repeated_in_one_piece(
    frames: int, own: int | None, recorded: int | None, window: int | None
) -> None:
    settings = {**SETTINGS, "num_frames": frames, "window": recorded}
    record = {**RECORD, "settings": settings, "model": {"name": "tiny", "sha256": ""}}
    assert uploads._request_of(record, service(**{} if own is None else {"tiny": own})).window == window


def test_a_value_that_cannot_be_is_one_line() -> None:
    with pytest.raises(ApiError, match="the file's recipe has a value that cannot be: seed") as error:
        uploads._request_of({**RECORD, "settings": {**SETTINGS, "seed": "x"}}, service())
    assert (error.value.status, error.value.code) == (400, "no_recipe")
