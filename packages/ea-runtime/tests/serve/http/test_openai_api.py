"""The OpenAI videos API with the real `openai` client over a loopback port."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from openai import OpenAI

FAILS = "please fail"


@pytest.fixture(scope="module")
def openai() -> Any:
    """The package, which takes two seconds to import: with the first test, not for each process that collects."""
    return import_module("openai")


@pytest.fixture(autouse=True)
def _no_remarks() -> Iterator[None]:
    """The client remarks that OpenAI's own service ends; its types and methods stay."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.fixture
def client(server: Any, openai: Any) -> Iterator[OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as found:
        yield found


def test_a_video_is_asked_for_polled_and_downloaded(client: OpenAI, server: Any) -> None:
    extra = {"seed": 7, "steps": 4, "guidance": 3.5, "num_frames": 9, "fps": 8, "negative_prompt": "blur"}
    video = client.videos.create_and_poll(prompt="a red circle", model="tiny", size="64x64", extra_body=extra)
    assert (video.status, video.progress, video.error, video.size) == ("completed", 100, None, "64x64")
    assert float(video.seconds) == pytest.approx(9 / 8, abs=1e-4)
    assert video.completed_at is not None
    assert video.completed_at >= video.created_at
    request = server.store.get(video.id).request
    settings = request["settings"]
    assert (settings["seed"], settings["num_inference_steps"], settings["guidance_scale"]) == (7, 4, 3.5)
    assert (settings["negative_prompt"], request["fps"]) == ("blur", 8)
    again = client.videos.retrieve(video.id)
    assert again == video
    body = client.videos.download_content(video.id)
    assert body.response.headers["content-type"] == "video/mp4"
    assert body.read() == server.video
    for variant, (kind, start) in {
        "video": ("video/mp4", server.video[:9]),
        "thumbnail": ("image/webp", b"thumbnail"),
        "spritesheet": ("image/jpeg", b"sprites"),
    }.items():
        body = client.videos.download_content(video.id, variant=variant)  # pyright: ignore[reportArgumentType]
        assert body.response.headers["content-type"] == kind
        assert body.read().startswith(start)


def test_the_answer_says_when_to_look_again(client: OpenAI) -> None:
    answer = client.videos.with_raw_response.create(prompt="a red circle")
    assert 0 < int(answer.headers["openai-poll-after-ms"]) <= 1000
    assert answer.parse().object == "video"


def test_seconds_are_rounded_to_frames_and_win_over_nothing(client: OpenAI, server: Any) -> None:
    video = client.videos.create(prompt="a red circle", seconds="4")
    frames = server.store.get(video.id).request["settings"]["num_frames"]
    assert frames == 45  # 4 s x 12 fps = 48; a multiple of 9
    assert float(video.seconds) == pytest.approx(45 / 12, abs=1e-4)


def test_lists_have_pages(client: OpenAI, server: Any) -> None:
    ids = [client.videos.create(prompt=f"number {i}", extra_body={"steps": 1}).id for i in range(7)]
    page = client.videos.list(limit=3)
    assert [video.id for video in page.data] == ids[::-1][:3]
    assert page.has_more
    assert page.last_id == ids[4]
    listed = [video.id for video in client.videos.list(limit=3)]  # follows pages by itself
    assert listed[:7] == ids[::-1]
    assert len(listed) == len(set(listed)) == sum(server.store.counts().values())
    upwards = [video.id for video in client.videos.list(limit=100, order="asc", after=ids[2])]
    assert upwards == ids[3:]


def test_a_queued_and_a_running_job_are_deleted(serving: Callable[..., Any], openai: Any) -> None:
    with (
        serving() as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        server.worker.gate.clear()
        first, second = (client.videos.create(prompt=f"number {i}") for i in range(2))
        server.until(first.id, "in_progress")
        for video in (second, first):
            gone = client.videos.delete(video.id)
            assert (gone.id, gone.object, gone.deleted) == (video.id, "video.deleted", True)
            with pytest.raises(openai.NotFoundError) as error:
                client.videos.retrieve(video.id)
            assert error.value.code == "job_not_found"
            assert error.value.body == {
                "message": f"there is no job '{video.id}'",
                "type": "invalid_request_error",
                "param": "id",
                "code": "job_not_found",
            }
        server.worker.gate.set()
        third = client.videos.create_and_poll(prompt="the worker lives")
        assert third.status == "completed"
        assert not server.service.state.result(first.id).exists()


def test_a_remix_keeps_all_but_the_prompt(client: OpenAI, server: Any, openai: Any) -> None:
    extra = {"seed": 11, "steps": 3, "num_frames": 9, "guidance": 2.5}
    first = client.videos.create(prompt="a red circle", extra_body=extra)
    second = client.videos.remix(first.id, prompt="a blue square")
    assert second.remixed_from_video_id == first.id
    old, new = (server.store.get(video.id).request for video in (first, second))
    assert new["settings"].pop("prompt") == "a blue square"
    assert old["settings"].pop("prompt") == "a red circle"
    assert old == new
    third = client.videos.remix(first.id, prompt="a green star", extra_body={"seed": 12})
    assert server.store.get(third.id).request["settings"]["seed"] == 12
    with pytest.raises(openai.NotFoundError):
        client.videos.remix("video_" + "0" * 32, prompt="x")


def test_a_failed_job_is_an_answer_like_any_other(client: OpenAI, openai: Any) -> None:
    video = client.videos.create_and_poll(prompt=f"{FAILS}, at once")
    assert video.status == "failed"
    assert video.error is not None
    assert video.error.code == "out_of_memory"
    assert "fewer frames" in video.error.message
    with pytest.raises(openai.NotFoundError) as error:
        client.videos.download_content(video.id)
    assert error.value.code == "not_ready"


def test_a_cancelled_job_is_a_failed_one(client: OpenAI, server: Any) -> None:
    server.worker.gate.clear()
    try:
        video = client.videos.create(prompt="a red circle")
        with server.client() as plain:
            assert plain.post(f"/api/jobs/{video.id}/cancel").status_code == 200
    finally:
        server.worker.gate.set()
    found = client.videos.poll(video.id)
    assert found.status == "failed"
    assert found.error is not None
    assert found.error.code == "cancelled"


def test_content_that_is_not_ready_is_not_found(serving: Callable[..., Any], openai: Any) -> None:
    with (
        serving() as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        server.worker.gate.clear()
        video = client.videos.create(prompt="a red circle")
        with pytest.raises(openai.NotFoundError) as error:
            client.videos.download_content(video.id)
        assert error.value.code == "not_ready"


def test_a_full_queue_says_when_to_come_back(serving: Callable[..., Any], openai: Any) -> None:
    with (
        serving(worker=False, store={"max_queued": 3}) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
    ):
        for i in range(3):
            client.videos.create(prompt=f"number {i}")
        with pytest.raises(openai.RateLimitError) as error:
            client.videos.create(prompt="one more")
        assert error.value.code == "queue_full"
        assert int(error.value.response.headers["retry-after"]) >= 1
        assert server.store.counts()["queued"] == 3


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"size": "64by64"}, "size", "invalid_value"),
        ({"size": "70x70"}, "size", "invalid_value"),
        ({"num_frames": 10}, "num_frames", "invalid_value"),
        ({"num_frames": 765, "size": "1024x1024"}, "size", "too_large"),
        ({"model": "../tiny"}, "model", "model_not_found"),
        ({"loras": [{"name": "nope"}]}, "loras", "lora_not_found"),
        ({"stepz": 3}, "stepz", "unknown_field"),
        ({"steps": 0}, "steps", "invalid_value"),
        ({"seed": "abc"}, "seed", "invalid_value"),
        ({"input_reference": "https://example.com/a.png"}, "input_reference", "unsupported_parameter"),
    ],
)
def test_a_wrong_request_is_one_line(
    client: OpenAI, extra: dict[str, Any], param: str, code: str, openai: Any
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.videos.create(prompt="a red circle", extra_body=extra)
    assert (error.value.param, error.value.code) == (param, code)
    assert error.value.type == "invalid_request_error"
    assert "\n" not in error.value.body["message"]  # pyright: ignore[reportIndexIssue,reportOptionalSubscript]


def test_a_damaged_picture_is_refused_in_one_line(client: OpenAI, openai: Any) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.videos.create(
            prompt="a red circle", input_reference=("a.png", b"\x89PNG\r\n\x1a\n", "image/png")
        )
    assert error.value.param == "input_reference"


def test_loras_come_in_forms_and_in_json(client: OpenAI, server: Any, openai: Any) -> None:
    wanted = [{"name": "one", "scale": 0.5}, {"name": "two", "scale": 1.0}]
    for make in (
        lambda: client.videos.create(prompt="x", extra_body={"loras": wanted}),
        lambda: client.post("/videos", body={"prompt": "x", "loras": wanted}, cast_to=object),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            make()
        assert error.value.code == "lora_not_found"
        assert "'one'" in str(error.value)


def test_a_picture_is_made_while_the_client_waits(client: OpenAI, server: Any, openai: Any) -> None:
    made = client.images.generate(prompt="a red circle", model="tiny", size="64x64", extra_body={"seed": 5})  # pyright: ignore[reportCallIssue,reportArgumentType]
    assert made.data is not None
    import base64

    assert base64.b64decode(made.data[0].b64_json or "") == server.video
    with pytest.raises(openai.BadRequestError) as error:
        client.images.generate(prompt="a red circle", n=2)
    assert error.value.param == "n"


def test_a_client_that_leaves_takes_its_picture_with_it(serving: Callable[..., Any]) -> None:
    with serving(worker=False) as server:
        with server.client() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/images/generations", json={"prompt": "a red circle"}, timeout=0.5)
        import time

        end = time.monotonic() + 5
        while sum(server.store.counts().values()) and time.monotonic() < end:
            time.sleep(0.05)
        assert sum(server.store.counts().values()) == 0


def test_models(client: OpenAI, openai: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "ea"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../tiny")


def test_ranges_and_tags(client: OpenAI, server: Any) -> None:
    video = client.videos.create_and_poll(prompt="a red circle")
    address = f"/v1/videos/{video.id}/content"
    size = len(server.video)
    with server.client() as plain:
        whole = plain.get(address)
        assert (whole.status_code, whole.content) == (200, server.video)
        for given, part in (
            ("bytes=0-99", slice(0, 100)),
            ("bytes=100-", slice(100, None)),
            ("bytes=-5", slice(-5, None)),
            (f"bytes={size - 1}-{size + 50}", slice(size - 1, None)),
        ):
            answer = plain.get(address, headers={"Range": given})
            assert (answer.status_code, answer.content) == (206, server.video[part])
            start = part.indices(size)[0]
            assert (
                answer.headers["content-range"] == f"bytes {start}-{start + len(answer.content) - 1}/{size}"
            )
        for given in ("bytes=0-1,5-6", "lines=1-2", "bytes=9-3", "bytes=-"):
            assert plain.get(address, headers={"Range": given}).content == server.video
        beyond = plain.get(address, headers={"Range": f"bytes={size}-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
        assert beyond.json()["error"]["code"] == "range_not_satisfiable"
        tag = {"If-None-Match": whole.headers["etag"]}
        assert plain.get(address, headers=tag).status_code == 304
        assert plain.get(address, headers={"If-None-Match": '"other"'}).status_code == 200
        old = {"Range": "bytes=0-99", "If-Range": '"other"'}
        assert plain.get(address, headers=old).content == server.video
        head = plain.head(address)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))
