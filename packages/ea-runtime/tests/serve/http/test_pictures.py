"""Videos from pictures: files in forms, kept with their job, read by a child with limits."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ea_runtime.serve.http import jobs_api, pictures

PROMPT = "a red circle"
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


def drawn(kind: str = "PNG", seed: int = 0, mode: str = "RGB", size: int = 64, **options: Any) -> bytes:
    """A picture of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    target = io.BytesIO()
    Image.fromarray(small).resize((size, size)).convert(mode).save(target, kind, **options)
    return target.getvalue()


def ask(server: Any, files: dict[str, Any], address: str = "/api/jobs", **fields: Any) -> Any:
    """The answer to a form."""
    with server.client() as client:
        return client.post(address, data={"prompt": PROMPT, **fields}, files=files)


def left(server: Any) -> set[str]:
    """Names in the folder of uploads, and in the folders of jobs there."""
    root = server.service.state.uploads
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def png_of(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that says that it has this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", body or zlib.compress(b"\0" * 1000)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_openai_sends_a_picture(serving: Callable[..., Any], tmp_path: Any) -> None:
    from openai import OpenAI

    (tmp_path / "first.png").write_bytes(drawn())
    with serving() as server, OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        with (tmp_path / "first.png").open("rb") as file:
            video = client.videos.create_and_poll(
                prompt=PROMPT, input_reference=file, extra_body={"strength": 0.5}
            )
        assert video.status == "completed"
        request = server.store.get(video.id).request
        assert (request["pictures"], request["settings"]["strength"]) == (["image"], 0.5)
        assert str(tmp_path) not in str(request)
        assert left(server) == {video.id, f"{video.id}/image.png"}
        kept = server.service.state.pictures(video.id) / "image.png"
        again = client.videos.remix(video.id, prompt="a blue circle")
        with Image.open(kept) as picture, Image.open(tmp_path / "first.png") as first:
            assert np.array_equal(np.asarray(picture), np.asarray(first))
        plain = client.videos.create(prompt=PROMPT)
        with server.client() as http:
            found = http.get(f"/api/jobs/{again.id}").json()["request"]
            assert found["image"] == f"/api/jobs/{again.id}/image"
            assert (found["image_end"], found["strength"], found["fit"]) == (None, 0.5, None)
            answer = http.get(found["image"])
            assert (answer.content, answer.headers["content-type"]) == (kept.read_bytes(), "image/png")
            assert http.get(f"/api/jobs/{again.id}/image_end").status_code == 404
            assert http.get(f"/api/jobs/{plain.id}/image").status_code == 404
            assert http.get(f"/api/jobs/{plain.id}").json()["request"]["image"] is None
        client.videos.delete(video.id)
        assert not kept.exists()
        assert (server.service.state.pictures(again.id) / "image.png").exists()
        server.until(again.id, "completed")
        client.videos.delete(again.id)
        assert left(server) == set()


def test_both_ends_and_another_jobs_pictures(server: Any) -> None:
    files = {"input_reference": drawn(), "input_reference_end": drawn("JPEG", 1)}
    job = ask(server, files, fit="pad", strength="0.75", loras="[]", num_frames="9").json()
    assert job["request"]["image_end"] == f"/api/jobs/{job['id']}/image_end"
    assert (job["request"]["fit"], job["request"]["strength"]) == ("pad", 0.75)
    again = server.ask(image_of=job["id"])
    with server.client() as client:
        for name in ("image", "image_end"):
            first, second = (client.get(one["request"][name]).content for one in (job, again))
            assert first == second
        other = client.post(
            "/api/jobs",
            data={"prompt": PROMPT, "image_of": job["id"]},
            files={"input_reference": drawn(seed=2)},
        ).json()
        assert client.get(other["request"]["image"]).content != client.get(job["request"]["image"]).content
        assert (
            client.get(other["request"]["image_end"]).content
            == client.get(job["request"]["image_end"]).content
        )
        limits = client.get("/api/about").json()["limits"]
        assert (limits["picture_bytes"], limits["picture_pixels"]) == (64 << 20, 1 << 26)


def test_a_cancelled_job_keeps_its_pictures(serving: Callable[..., Any]) -> None:
    with serving(worker=False) as server:
        job = ask(server, {"input_reference": drawn()}).json()
        with server.client() as client:
            client.post(f"/api/jobs/{job['id']}/cancel")
            assert server.ask(image_of=job["id"])["request"]["image"] is not None
            client.delete(f"/api/jobs/{job['id']}")
            assert not server.service.state.pictures(job["id"]).exists()
            refused = client.post("/api/jobs", json={"prompt": PROMPT, "image_of": job["id"]})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "image_of")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_kinds_of_pictures(server: Any, kind: str) -> None:
    body = drawn(kind)
    job = ask(server, {"input_reference": ("../../x.svg", body, "text/html")}).json()
    with (
        Image.open(server.service.state.pictures(job["id"]) / "image.png") as found,
        Image.open(io.BytesIO(body)) as sent,
    ):
        assert (found.format, found.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(found), np.asarray(sent.convert("RGB")))


def test_a_photo_is_turned_upright_and_its_remarks_are_dropped(server: Any) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "where I live"
    picture = io.BytesIO()
    Image.new("RGB", (64, 32), "red").save(picture, "JPEG", exif=exif)
    job = ask(server, {"input_reference": picture.getvalue()}).json()
    place = server.service.state.pictures(job["id"]) / "image.png"
    with Image.open(place) as found:
        assert found.size == (32, 64)
    assert b"where I live" not in place.read_bytes()


def test_hostile_pictures_leave_nothing(serving: Callable[..., Any]) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    bomb = zlib.compress(b"\0" * (8000 * (8000 * 3 + 1)), 9)
    whole = drawn()
    cases = {
        "empty": b"",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "text": b"/etc/passwd",
        "html": b"<html>",
        "pdf": b"%PDF-1.7",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "video": b"\0\0\0\x20ftypisom" + b"\0" * 100,
        "truncated": whole[: len(whole) // 2],
        "signature alone": whole[:8],
        "100 megapixels": png_of(10_000, 10_000),
        "4 gigapixels": png_of(65_000, 65_000),
        "no pixels": png_of(0, 7),
        "lies about its size": png_of(8000, 8000, bomb[:2000]),
        "animated": animated.getvalue(),
        "tiff": b"II*\0" + b"\xff" * 200,
        "bmp": b"BM" + b"\xff" * 200,
        "webp": b"RIFF\xff\xff\xff\x7fWEBPVP8X" + b"\xff" * 200,
    }
    with serving(worker=False) as server:
        for name, body in cases.items():
            for address, field in (
                ("/v1/videos", "input_reference"),
                ("/api/jobs", "input_reference_end"),
            ):
                answer = ask(server, {field: ("a.png", body)}, address)
                assert answer.status_code == 400, (name, answer.text)
                error = answer.json()["error"]
                assert (error["code"], error["param"]) == ("invalid_value", field), (name, error)
                assert "\n" not in error["message"]
                assert "uploads" not in error["message"]
                assert str(server.service.state.root) not in error["message"]
        assert left(server) == set()
        assert sum(server.store.counts().values()) == 0
        assert ask(server, {"input_reference": whole}).status_code == 201, "the twin: a picture"
        assert len(left(server)) == 2


def test_wrong_orders_with_pictures_leave_nothing(serving: Callable[..., Any]) -> None:
    picture = drawn()
    with serving(worker=False, store={"max_queued": 1}) as server:
        for files, fields, param in (
            ({"input_reference": picture}, {"strength": "0"}, "strength"),
            ({"input_reference": picture}, {"strength": "1.5"}, "strength"),
            ({"input_reference": picture}, {"strength": "much"}, "strength"),
            ({"input_reference": picture}, {"fit": "squash"}, "fit"),
            ({"input_reference": picture}, {"steps": "0"}, "steps"),
            ({"input_reference": picture}, {"image_of": "../../x"}, "image_of"),
            ({"input_reference": picture}, {"image_of": "video_" + "0" * 32}, "image_of"),
            ({"mask": picture}, {}, None),
            ({"prompt": picture}, {}, None),
        ):
            answer = ask(server, files, **fields)
            assert answer.status_code == 400, (fields, answer.text)
            assert answer.json()["error"]["param"] == param, answer.text
            assert "`video`" not in answer.text
        with server.client() as client:
            for name, value in (("strength", 0.5), ("fit", "pad")):
                answer = client.post("/api/jobs", json={"prompt": PROMPT, name: value})
                assert answer.status_code == 400
                assert answer.json()["error"]["param"] == name
                assert "`video`" not in answer.text
            for value in ("https://example.com/a.png", {"image_url": "x"}, {"file_id": "x"}, 7):
                for field in ("input_reference", "input_reference_end"):
                    answer = client.post("/api/jobs", json={"prompt": PROMPT, field: value})
                    assert answer.status_code == 400
                    assert answer.json()["error"]["param"] == field
            twice = [("input_reference", picture), ("input_reference", picture)]
            assert client.post("/api/jobs", data={"prompt": PROMPT}, files=twice).status_code == 400
            three = {"input_reference": picture, "input_reference_end": picture, "more": picture}
            assert client.post("/api/jobs", data={"prompt": PROMPT}, files=three).status_code == 400
        assert left(server) == set()
        assert ask(server, {"input_reference": picture}).status_code == 201
        before = left(server)
        assert ask(server, {"input_reference": picture}).status_code == 429, "the queue is full"
        assert left(server) == before


def test_a_form_that_is_too_large_is_refused_unread(serving: Callable[..., Any]) -> None:
    with serving(worker=False) as server:
        head = (
            f"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
            f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {(64 << 20) + 1}\r\n\r\n"
        )
        assert b" 413 " in server.raw(head.encode())[:20]
        assert left(server) == set()


def test_a_reader_that_says_nonsense(serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    real = subprocess.Popen
    monkeypatch.setattr(pictures, "_SECONDS", 1.0)
    monkeypatch.setattr(pictures, "_MAX_PNG", 1000)
    sign = "import sys; sys.stdout.buffer.write(b'\\x89PNG\\r\\n\\x1a\\n'"
    with serving(worker=False) as server:
        for program in (
            "import time; time.sleep(60)",
            "import os; os.abort()",
            "print('no json')",
            "print('[]')",
            f"{sign} + b'x' * 5_000_000)",
            f"{sign}); sys.stdout.flush(); import time; time.sleep(60)",
            f"{sign}); sys.exit(1)",
        ):
            monkeypatch.setattr(
                subprocess,
                "Popen",
                lambda command, program=program, **options: real([sys.executable, "-c", program], **options),
            )
            answer = ask(server, {"input_reference": drawn()})
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"] == "input_reference"
            assert left(server) == set()


def test_what_a_killed_server_left_is_removed(serving: Callable[..., Any]) -> None:
    with serving(worker=False) as server:
        job = ask(server, {"input_reference": drawn()}).json()
        uploads = server.service.state.uploads
        (uploads / ("0" * 32)).mkdir()
        (uploads / ("0" * 32) / "image.png").write_bytes(b"x")
        (uploads / "half.picture").write_bytes(b"x")
        orphan = server.service.state.pictures("video_" + "1" * 32)
        orphan.mkdir()
    with serving(worker=False) as server:
        server.store.sweep()
        assert left(server) == {job["id"], f"{job['id']}/image.png"}


def test_a_recipe_names_pictures_without_folders() -> None:
    record = {
        "settings": {"prompt": "a/b", "image": "/home/x/uploads/y/image.png"},
        "inputs": {"image": "ab"},
    }
    assert jobs_api._without_places(record) == {
        "settings": {"prompt": "a/b", "image": "image.png"},
        "inputs": {"image": "ab"},
    }
