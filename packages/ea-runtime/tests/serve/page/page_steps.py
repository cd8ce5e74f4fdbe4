"""What several tests of the page do in the browser, and see on the server."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits for something that the browser or the server does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def orders(server: Any) -> list[dict[str, Any]]:
    """What the page has sent as new jobs."""
    return [body for method, path, body in server.requests if (method, path) == ("POST", "/api/jobs")]


def heading(page: Any) -> Any:
    """The prompt of the job on the stage."""
    return page.locator("#result h2")


def start_comparing(page: Any) -> None:
    """Compares the job on the stage with the first that can be."""
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Choose a second video").wait_for()
    page.locator(".card:enabled").first.click()
    page.locator("#compare video").nth(1).wait_for()


def spoil_page(patch: pytest.MonkeyPatch, folder: Path, name: str, old: str, new: str) -> None:
    """Lets canned servers give the page with one change in one file."""
    module = sys.modules["canned_server"]
    copy = folder / "page"
    shutil.copytree(vars(module)["PAGE"], copy)
    text = (copy / name).read_text(encoding="utf-8")
    assert old in text
    (copy / name).write_text(text.replace(old, new), encoding="utf-8")
    patch.setattr(module, "PAGE", copy)
