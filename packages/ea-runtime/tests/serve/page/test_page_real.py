"""The page with a real `ea serve` and the bundled model: from a prompt to a file, through refresh and kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ea_data.draw.scene import render, sample_scene

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")]

#: for a video on one slow core, the worker's imports included
PATIENCE = 120_000


class RealServer:
    """`ea serve` as a child process, with its port."""

    def __init__(self, state: Path, port: int = 0) -> None:
        words = [sys.executable, "-m", "ea_runtime.cli.main", "serve", "--no-browser", "--device", "cpu"]
        words += ["--port", str(port), "--state", str(state)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", self.process.stdout.readline())
        assert found is not None
        self.url, self.port = found[0], int(found[1])

    def end(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal, and waits."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RealServer]]:
    """Starts servers on one state folder; ends them."""
    servers: list[RealServer] = []

    def start_it(port: int = 0) -> RealServer:
        servers.append(RealServer(tmp_path / "state", port))
        return servers[-1]

    yield start_it
    for server in servers:
        if not server.process.stdout.closed:  # type: ignore[union-attr]
            server.end()


def focus(page: Any, name: str) -> None:
    """Presses Tab until the control of this id or text has the focus, as people without a mouse do."""
    for _ in range(80):
        if page.evaluate("(document.activeElement.id || document.activeElement.textContent).trim()") == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{name} cannot be reached by Tab")


def test_from_a_prompt_to_a_file_by_keyboard_alone(
    steps: Any, start: Any, open_page: Any, tmp_path: Path
) -> None:
    page = open_page(start().url)
    foreign = []
    page.on("request", lambda request: foreign.append(request.url))
    focus(page, "prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type("a blue square grows")
    focus(page, "steps")
    page.keyboard.press("Control+A")
    page.keyboard.type("8")
    focus(page, "keep")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("7")
    page.keyboard.press("Control+Enter")
    page.locator("#result video").wait_for(timeout=PATIENCE)
    focus(page, "Download")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "a-blue-square-grows.mp4"
    made = tmp_path / "made.mp4"
    download.value.save_as(made)
    with av.open(str(made)) as container:
        assert [frame.width for frame in container.decode(video=0)] == [64] * 18
        recipe = json.loads(container.metadata["ea"])
    settings = recipe["settings"]
    assert (settings["prompt"], settings["seed"], settings["num_inference_steps"]) == (
        "a blue square grows",
        7,
        8,
    )
    assert {url.split("/")[2] for url in foreign} == {page.url.split("/")[2]}
    # the file fills the form again, and a refusal comes to its field
    page.fill("#prompt", "something else")
    page.set_input_files("#file", str(made))
    page.get_by_text("Settings taken from made.mp4.").wait_for(timeout=PATIENCE)
    assert (page.input_value("#prompt"), page.input_value("#seed")) == ("a blue square grows", "7")
    page.fill("#steps", "5000")
    page.keyboard.press("Control+Enter")
    steps.until(lambda: "5000" in (page.locator("#steps_error").text_content() or ""))


def test_a_video_begins_with_the_picture_and_is_made_again_with_it(
    steps: Any, start: Any, open_page: Any, tmp_path: Path
) -> None:
    wanted = render(sample_scene(43, 5), 64, 64, 18)[0]
    Image.fromarray(wanted).save(tmp_path / "start.png")
    page = open_page(start().url)
    page.set_input_files("#file", str(tmp_path / "start.png"))  # no recipe: it is the first picture
    page.locator("#pictures .thumb").wait_for(timeout=PATIENCE)
    page.fill("#steps", "10")
    found = []
    for at in range(3):  # from the picture, a remix of that, and the twin without a picture
        if at == 1:
            page.get_by_role("button", name="Remix").click()
        if at == 2:
            page.get_by_role("button", name="Remove First picture").click()
        before = page.url
        page.locator("#prompt").press("Control+Enter")
        steps.until(lambda before=before: page.evaluate("location.href") != before)
        page.locator("#result video").wait_for(timeout=PATIENCE)
        found.append(psnr(first_frame(page, tmp_path / f"{at}.mp4"), wanted))
    assert min(found[:2]) >= 28 > found[2], found  # dB; the losses of the VAE and of H.264 are above it


def psnr(a: Any, b: Any) -> float:
    return float(-10 * np.log10(np.mean((a / 255.0 - b / 255.0) ** 2)))


def first_frame(page: Any, place: Path) -> Any:
    """The first frame of the result, (H, W, 3)."""
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    download.value.save_as(place)
    with av.open(str(place)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def test_a_killed_server_is_found_again_and_its_job_goes_on(steps: Any, start: Any, open_page: Any) -> None:
    server = start()
    page = open_page(server.url)
    page.fill("#steps", "100")
    page.get_by_role("button", name="Generate").click()
    page.locator("#result .status").get_by_text("Denoising, step").wait_for(timeout=PATIENCE)
    page.reload()
    page.locator("#result .status").get_by_text("Denoising, step").wait_for()
    steps.until(lambda: page.locator("#result img").evaluate("one => one.naturalWidth > 0"), 30)
    server.end(signal.SIGKILL)
    page.get_by_text("Connection lost, trying again…").wait_for()
    again = start(server.port)
    page.get_by_text("Connection lost").wait_for(state="hidden", timeout=PATIENCE)
    assert steps.heading(page).text_content() == "a red circle moves right"
    page.locator("#result video").wait_for(timeout=PATIENCE)
    assert page.locator(".card").count() == 1
    again.end()
