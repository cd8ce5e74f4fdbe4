"""What must never happen: text that becomes HTML, a request to another server, a connection that stays lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

MARKUP = '<img src=x onerror="document.title=1"><b>bold</b>'


def markup_in(page: Any) -> int:
    """Elements that came out of a text."""
    return page.locator("img[src=x], #result b, #gallery b, .error b").count()


def fill_with_markup(server: Any) -> None:
    server.about = json.loads(json.dumps(server.about))
    server.about["loras"] = [{"name": MARKUP, "model": None, "trigger_words": [MARKUP], "summary": MARKUP}]
    server.about["samplers"].append({"name": MARKUP, "summary": MARKUP})
    server.workers = [{"name": MARKUP, "device": MARKUP, "state": MARKUP}]
    server.add(MARKUP, state="failed", error={"code": "x", "message": MARKUP}, created_at=1)
    server.add(MARKUP, state="completed", loras=[{"name": MARKUP, "scale": 1}], sampler=MARKUP)["result"][
        "notes"
    ] = [MARKUP]
    server.add(MARKUP, state="in_progress", phase=MARKUP)


def test_markup_stays_text(steps: Any, server: Any, open_page: Any) -> None:
    fill_with_markup(server)
    page = open_page(server.url)
    page.locator("#lora_button").click()
    for card in page.locator(".card").all():
        card.click()
        assert MARKUP in (steps.heading(page).text_content() or "")
        assert markup_in(page) == 0
    assert page.title() != "1"


def test_markup_that_became_html_would_be_seen(
    steps: Any, make_server: Any, open_page: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = make_server()
    as_html = "node.insertAdjacentHTML('beforeend', part.outerHTML ?? part)"
    steps.spoil_page(monkeypatch, tmp_path, "dom.js", "node.append(part)", as_html)
    fill_with_markup(server)
    page = open_page(server.url)
    page.locator(".card").first.wait_for()
    assert markup_in(page) > 0


def hosts_of_a_walk(steps: Any, server: Any, open_page: Any) -> set[str]:
    """Hosts that the page asked while a video is made, compared, and taken up again."""
    asked: list[str] = []
    server.add("the other", state="completed", created_at=1)
    page = open_page(server.url)
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.get_by_role("button", name="Generate").click()
    page.locator("#result video").wait_for()
    steps.start_comparing(page)
    page.set_input_files("#file", {"name": "red.mp4", "mimeType": "video/mp4", "buffer": b"x"})
    page.wait_for_timeout(200)
    assert len(asked) > 20
    return {urlsplit(url).netloc for url in asked if not url.startswith("blob:")}


def test_every_request_goes_to_the_pages_own_server(steps: Any, server: Any, open_page: Any) -> None:
    assert hosts_of_a_walk(steps, server, open_page) == {f"127.0.0.1:{server.port}"}


def test_a_request_to_another_server_would_be_seen(
    steps: Any, make_server: Any, open_page: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = make_server(csp="default-src * 'unsafe-inline'")
    with_image = "setUpRecipe(); new Image().src = 'http://other.invalid/x';"
    steps.spoil_page(monkeypatch, tmp_path, "main.js", "setUpRecipe()", with_image)
    assert hosts_of_a_walk(steps, server, open_page) == {f"127.0.0.1:{server.port}", "other.invalid"}


def comes_back(make_server: Any, open_page: Any) -> bool:
    """True if the page finds a server that was away for a moment."""
    first = make_server()
    page = open_page(first.url)
    first.close()
    lost = page.get_by_text("Connection lost")
    lost.wait_for()
    make_server(port=first.port)
    page.wait_for_timeout(4000)  # the second try comes after 2.5 s
    return not lost.is_visible()


def test_the_connection_comes_back(make_server: Any, open_page: Any) -> None:
    assert comes_back(make_server, open_page)


def test_a_page_that_does_not_try_again_would_be_seen(
    steps: Any, make_server: Any, open_page: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps.spoil_page(monkeypatch, tmp_path, "api.js", "setTimeout(open,wait)", "")
    assert not comes_back(make_server, open_page)
