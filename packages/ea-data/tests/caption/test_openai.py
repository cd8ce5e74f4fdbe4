"""`openai` against a real server process: requests, and failures, limits, silence and nonsense of the server."""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ea_data.caption.http import BudgetError, JsonClient, RequestLimits, retry_after
from ea_data.caption.openai import OpenAiCaptioner, OpenAiOptions
from ea_data.children.child import TransientError
from ea_data.components import make
from ea_data.protocols import Frames
from ea_runtime.errors import UserError

FRAMES = Frames(np.full((2, 36, 64, 3), (200, 30, 30), np.uint8), np.arange(2.0))


def captioner(server: Any, **more: Any) -> OpenAiCaptioner:
    options = {"url": server.url, "model": "vila", "backoff": 0.01, "timeout": 5.0, "retries": 3, **more}
    made = make("captioners", "openai", options)
    made.client()._wait = lambda seconds: waits.append(seconds)
    return made


waits: list[float] = []


@pytest.fixture(autouse=True)
def _no_waits() -> None:
    waits.clear()


def test_a_clip_gets_its_words_and_the_server_its_frames(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    server = serve({"content": ' "A red circle.\nIt moves." '})
    caption = captioner(server, api_key_env="MY_KEY", prompt="Say it.")(FRAMES, {"clip_id": "c"})
    assert caption.text == "A red circle. It moves."
    assert caption.model == "vila"
    assert caption.prompt_hash == hashlib.sha256(b"Say it.").hexdigest()
    (seen,) = server.seen()
    assert seen["path"] == "/v1/chat/completions"
    assert seen["auth"] == "Bearer s3cret"
    body = seen["body"]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("vila", 0, 256)
    *pictures, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "Say it."}
    assert len(pictures) == 2
    head, _, data = pictures[0]["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert decoded.shape == (36, 64, 3)
    assert np.abs(decoded.astype(int) - FRAMES.pixels[0]).max() < 12


@pytest.mark.parametrize("status", [429, 500, 503])
def test_it_tries_again_with_growing_waits(serve: Any, status: int) -> None:
    server = serve({"status": status}, {"status": status}, {"close": True}, {})
    assert captioner(server)(FRAMES, {}).text
    assert len(server.seen()) == 4
    assert len(waits) == 3
    assert 0.01 <= waits[0] <= 0.015
    assert 0.02 <= waits[1] <= 0.03
    assert 0.04 <= waits[2] <= 0.06


def test_it_waits_as_long_as_it_is_asked_to(serve: Any) -> None:
    server = serve({"status": 429, "headers": {"Retry-After": "7"}}, {})
    assert captioner(server)(FRAMES, {}).text
    assert waits == [7.0]


def test_it_does_not_wait_for_ever(serve: Any) -> None:
    server = serve({"status": 429, "headers": {"Retry-After": "3600"}})
    with pytest.raises(TransientError, match="3600 s"):
        captioner(server)(FRAMES, {})
    assert len(server.seen()) == 1


def test_retry_after_may_be_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=30)
    assert retry_after(format_datetime(later, usegmt=True)) == pytest.approx(30, abs=2)
    assert retry_after("-5") == 0
    assert retry_after("soon") is None
    assert retry_after("") is None


def test_a_server_that_stays_down_is_worth_another_run(serve: Any) -> None:
    server = serve({"status": 503, "raw": "overloaded"})
    with pytest.raises(TransientError, match="gave no answer in 4 tries, last status 503: overloaded"):
        captioner(server)(FRAMES, {})
    assert len(server.seen()) == 4


def test_no_server_at_all_is_worth_another_run() -> None:
    made = make(
        "captioners", "openai", {"url": "http://127.0.0.1:9/v1", "model": "m", "retries": 1, "backoff": 0}
    )
    with pytest.raises(TransientError, match="ConnectError"):
        made(FRAMES, {})


def test_a_server_that_hangs_is_given_up_in_time(serve: Any) -> None:
    server = serve({"sleep": 30})
    start = time.monotonic()
    with pytest.raises(TransientError, match="Timeout"):
        captioner(server, timeout=0.5, retries=1)(FRAMES, {})
    assert time.monotonic() - start < 10


def test_a_server_that_drips_is_given_up_in_time(serve: Any) -> None:
    server = serve({"drip": 0.1})
    start = time.monotonic()
    with pytest.raises(TransientError, match=r"no whole answer in 0\.7 s"):
        captioner(server, timeout=0.7, retries=0)(FRAMES, {})
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({"status": 400, "raw": "too many\nimages"}, "status 400: too many images"),
        ({"status": 401}, "status 401.*check the key in the environment variable"),
        ({"status": 404}, "status 404.*check `url`"),
        ({"status": 302, "headers": {"Location": "http://127.0.0.1:9/"}}, "status 302"),
        ({"raw": "<html>"}, "JSON object: '<html>'"),
        ({"raw": "[]"}, "JSON object"),
        ({"raw": "{}"}, "text for clip"),
        ({"content": "  "}, "text for clip"),
        ({"content": None}, "text for clip"),
        ({"raw": "x" * 1000, "times": 9000}, "over 8388608 bytes"),
    ],
)
def test_what_another_try_would_not_mend_is_one_line_at_once(
    serve: Any, step: dict[str, Any], told: str
) -> None:
    server = serve(step)
    with pytest.raises(UserError, match=told) as error:
        captioner(server)(FRAMES, {"clip_id": "c"})
    assert "\n" not in str(error.value)
    assert len(server.seen()) == 1


def test_no_more_requests_at_once_than_allowed(serve: Any) -> None:
    server = serve({"sleep": 0.1})
    made = captioner(server, concurrency=3)
    assert made.concurrency == 3
    with ThreadPoolExecutor(8) as pool:
        captions = list(pool.map(lambda number: made(FRAMES, {"clip_id": number}), range(12)))
    assert len(captions) == 12
    assert max(one["at_once"] for one in server.seen()) <= 3


def test_a_budget_of_requests_counts_retries(serve: Any) -> None:
    server = serve({"status": 500}, {})
    made = captioner(server, max_requests=3)
    assert made(FRAMES, {}).text
    assert made(FRAMES, {}).text
    with pytest.raises(BudgetError, match="budget of 3 requests"):
        made(FRAMES, {})
    assert len(server.seen()) == 3


def test_a_budget_of_tokens(serve: Any) -> None:
    made = captioner(serve({"tokens": 60}), max_total_tokens=100)
    assert made(FRAMES, {}).text
    assert made(FRAMES, {}).text
    with pytest.raises(TransientError, match=r"budget of 100 tokens is spent \(120 used\)"):
        made(FRAMES, {})


def test_the_key_is_in_no_message(
    serve: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    caplog.set_level(logging.DEBUG)
    with pytest.raises(TransientError) as error:
        captioner(serve({"status": 500}), api_key_env="MY_KEY")(FRAMES, {})
    assert "s3cret" not in str(error.value) + caplog.text


def test_words_over_the_limit_are_cut(serve: Any) -> None:
    server = serve({"content": "One two three. Four five six."})
    assert captioner(server, max_words=4)(FRAMES, {}).text == "One two three."


def test_presets_and_what_wins_over_them() -> None:
    plain = OpenAiCaptioner(OpenAiOptions(preset="videochat2"))
    assert (plain.needs.mode, plain.needs.value, plain.needs.max_side) == ("even", 16, 224)
    mine = OpenAiCaptioner(OpenAiOptions(preset="vila", frames=1, prompt="What?"))
    assert (mine.needs.mode, mine.needs.value, mine.needs.max_side) == ("even", 1, 384)
    assert mine.request(FRAMES.pixels)["messages"][0]["content"][-1]["text"] == "What?"


def test_what_is_missing_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    lines = OpenAiCaptioner(OpenAiOptions(api_key_env="MY_KEY")).missing()
    assert [word in line for word, line in zip(("`url`", "`model`", "'MY_KEY'"), lines, strict=True)] == [
        True
    ] * 3
    with pytest.raises(UserError, match="`url` is not set"):
        OpenAiCaptioner(OpenAiOptions())(FRAMES, {})


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/v1", "localhost:8000", "http://", "http://me:pw@host/v1"]
)
def test_only_plain_http_addresses_are_taken(url: str) -> None:
    with pytest.raises(UserError, match="`url`"):
        make("captioners", "openai", {"url": url, "model": "m"})


def test_a_client_counts(serve: Any) -> None:
    client = JsonClient(serve({}).url + "/chat/completions", RequestLimits())
    assert client.post({"model": "m"})["choices"]
    assert client.requests == 1
    assert client.tokens == 100
