"""Fixtures: a headless Chromium, and a server whose jobs stand still until a test moves them."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ea_runtime.video.output import write_video

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")


def _load(name: str) -> ModuleType:
    """A module of this folder that is no test."""
    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_CANNED = _load("canned_server")


@pytest.fixture(scope="session")
def steps() -> ModuleType:
    """The module page_steps.py."""
    return _load("page_steps")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium of this machine. For one file of tests: while it runs, no other event loop can."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("EA_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no Chromium on this machine; EA_CHROMIUM may name one")
    # Chromium refuses to sandbox the superuser's pages
    arguments = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address in a new browser profile; at the end no page may have had an error of its own.

    Options are those of a browser context: viewport, color_scheme, locale, reduced_motion.
    """
    contexts, errors = [], []

    def open_it(url: str, **options: Any) -> Any:
        context = chromium.new_context(
            **{"locale": "en-US", "viewport": {"width": 1280, "height": 900}} | options
        )
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(error))  # no builtin: playwright marks handlers
        page.goto(url)
        page.locator("#model option").first.wait_for(state="attached")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Two small videos of 18 and 9 frames, a thumbnail and a preview."""
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for name, num_frames in (("video.mp4", 18), ("short.mp4", 9)):
        frames = np.full((num_frames, 64, 64, 3), 40, np.uint8)
        for at, frame in enumerate(frames):
            frame[24:40, at * 2 : at * 2 + 16] = (220, 40, 40)
        found[name] = write_video(folder / name, frames, 12).read_bytes()
    for name, colour in (("thumbnail.webp", "#c33"), ("preview.webp", "#933")):
        target = io.BytesIO()
        Image.new("RGB", (64, 64), colour).save(target, "webp")
        found[name] = target.getvalue()
    return found


@pytest.fixture
def server(files: dict[str, bytes]) -> Iterator[Any]:
    """A CannedServer."""
    with _CANNED.canned_server(files) as server:
        yield server


@pytest.fixture
def make_server(files: dict[str, bytes]) -> Iterator[Callable[..., Any]]:
    """Makes a CannedServer with options: for tests that end or restart it, or change the page."""
    servers = []

    def make(**options: Any) -> Any:
        servers.append(_CANNED.CannedServer(files, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()
