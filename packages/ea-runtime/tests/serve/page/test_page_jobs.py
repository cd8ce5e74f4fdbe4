"""Jobs in a browser: progress, queue, gallery, lost connections, what can be done with a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest


def test_progress_preview_and_time_left(steps: Any, server: Any, open_page: Any) -> None:
    server.is_running_jobs = False
    page = open_page(server.url)
    page.get_by_role("button", name="Generate").click()
    steps.until(lambda: bool(server.jobs))
    (job,) = server.jobs.values()
    server.set(job | {"position": 3})
    page.get_by_text("Number 3 in the queue").first.wait_for()
    job |= {"state": "in_progress", "phase": "denoising", "done": 7, "total": 20, "progress": 40}
    job |= {"position": None, "seconds_left": 75.0, "preview": f"/api/jobs/{job['id']}/preview?v=7"}
    server.set(job)
    page.get_by_text("Denoising, step 7 of 20").first.wait_for()
    assert page.locator("#result .hint").text_content() == "40% · about 1 min 15 s left"
    assert page.locator("#result progress").evaluate("one => one.value") == 40
    assert page.title() == "40% · ea"
    preview = page.locator("#result img")
    steps.until(lambda: preview.evaluate("one => one.complete && one.naturalWidth === 64"))
    steps.until(lambda: page.locator("#live").text_content() == "Denoising")
    server.set(job | {"phase": "polishing", "done": 1, "total": 2})  # of a newer server
    page.locator("#result .status").get_by_text("polishing").wait_for()


def test_cancel_keeps_the_focus(server: Any, open_page: Any) -> None:
    server.is_running_jobs = False
    page = open_page(server.url)
    page.get_by_role("button", name="Generate").click()
    cancel = page.locator("#result").get_by_role("button", name="Cancel")
    cancel.focus()
    page.keyboard.press("Enter")
    page.locator("#result").get_by_text("Cancelled").wait_for()
    assert page.evaluate("document.activeElement.id") == "result"
    assert [job["state"] for job in server.jobs.values()] == ["cancelled"]


def test_a_refresh_in_the_middle_shows_the_job_still_running(steps: Any, server: Any, open_page: Any) -> None:
    server.is_running_jobs = False
    job = server.add("a green circle shrinks", state="in_progress", phase="denoising", done=3, total=20)
    other = server.add("a yellow triangle", position=1)
    page = open_page(server.url)
    page.locator("#queue_list").get_by_text("a yellow triangle").click()
    assert steps.heading(page).text_content() == "a yellow triangle"
    page.reload()
    page.locator("#result").get_by_text("Number 1 in the queue").wait_for()
    assert steps.heading(page).text_content() == "a yellow triangle"
    assert urlsplit(page.url).fragment == other["id"]
    assert page.locator("#queue_list .name").all_text_contents() == [
        "a green circle shrinks",
        "a yellow triangle",
    ]
    server.complete(job)
    server.set(job)
    page.locator("#gallery_list").get_by_text("a green circle shrinks").wait_for()
    assert page.locator("#queue").is_hidden()  # the one that is left is on the stage


def test_a_server_that_comes_back_is_found_again(make_server: Any, open_page: Any) -> None:
    first = make_server()
    first.is_running_jobs = False
    job = first.add("a green circle shrinks", state="in_progress", phase="denoising", done=3, total=20)
    gone = first.add("an older one", state="completed", created_at=1)
    page = open_page(first.url)
    page.get_by_text("Denoising, step 3 of 20").first.wait_for()
    first.close()
    page.get_by_text("Connection lost, trying again…").wait_for()
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("The server does not answer.").wait_for()
    second = make_server(port=first.port)
    second.complete(job)
    second.set(job)
    page.locator("#result video").wait_for()
    assert page.get_by_text("Connection lost").count() == 0
    assert page.locator(f"[href*='{gone['id']}']").count() == 0
    assert page.locator("#gallery_list").get_by_text("an older one").count() == 0


def test_the_gallery_goes_back_to_the_first(steps: Any, server: Any, open_page: Any) -> None:
    for at in range(60):
        server.add(f"number {at}", state="completed", created_at=1000 + at // 3)
    page = open_page(server.url)
    cards = page.locator(".card .name")
    steps.until(lambda: cards.count() == 24)
    for wanted in (48, 60):
        page.get_by_role("button", name="Show older").click()
        steps.until(lambda wanted=wanted: cards.count() == wanted)
    assert cards.all_text_contents() == [f"number {at}" for at in reversed(range(60))]
    assert page.get_by_role("button", name="Show older").is_hidden()


def test_a_job_of_another_client_appears(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.get_by_text("Finished videos appear here.").wait_for()
    server.add("made elsewhere", state="completed")
    page.locator("#gallery_list").get_by_text("made elsewhere").wait_for()


def test_delete_asks_first(steps: Any, server: Any, open_page: Any) -> None:
    server.add("to be kept", state="completed", created_at=1)
    server.add("to be deleted", state="completed")
    page = open_page(server.url)
    for answer in ("Keep", "Delete"):
        page.locator("#result").get_by_role("button", name="Delete").click()
        page.locator("#confirm").get_by_role("button", name=answer).click()
        page.locator("#confirm").wait_for(state="hidden")
        if answer == "Keep":
            assert len(server.jobs) == 2
    steps.until(lambda: len(server.jobs) == 1)
    steps.until(lambda: steps.heading(page).text_content() == "to be kept")
    assert page.locator(".card").count() == 1


def test_make_again_and_remix(steps: Any, server: Any, open_page: Any) -> None:
    settings = {"seed": 5, "steps": 9, "guidance": 3.5, "negative_prompt": "blur"}
    server.add("a red square", state="completed", loras=[{"name": "inkline", "scale": 0.5}], **settings)
    page = open_page(server.url)
    page.get_by_role("button", name="Make again").click()
    steps.until(lambda: len(steps.orders(server)) == 1)
    (again,) = steps.orders(server)
    assert (again["prompt"], again["seed"], again["steps"], again["guidance"]) == ("a red square", 5, 9, 3.5)
    assert (again["negative_prompt"], again["loras"]) == ("blur", [{"name": "inkline", "scale": 0.5}])
    page.locator("#result video").wait_for()
    page.get_by_role("button", name="Remix").click()
    assert page.evaluate("getSelection().toString() || document.activeElement.id") in (
        "a red square",
        "prompt",
    )
    page.keyboard.type("a blue square")
    page.keyboard.press("Control+Enter")
    steps.until(lambda: len(steps.orders(server)) == 2)
    assert {**steps.orders(server)[1], "prompt": "a red square"} == again


def test_download_has_a_name_from_the_prompt(server: Any, open_page: Any, tmp_path: Path) -> None:
    server.add("A red/circle: moves..right!", state="completed")
    page = open_page(server.url)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "a-red-circle-moves-right.mp4"
    download.value.save_as(tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == server.files["video.mp4"]


def test_a_picture_is_a_picture(server: Any, open_page: Any) -> None:
    server.add("a red circle", state="completed", num_frames=1)
    page = open_page(server.url)
    picture = page.locator("#result .screen img")
    picture.wait_for()
    assert picture.get_attribute("alt") == "a red circle"


def test_two_videos_play_in_step(steps: Any, server: Any, open_page: Any) -> None:
    server.add("the other", state="completed", created_at=1, seed=1)
    server.add("a red circle", state="completed", seed=2)
    page = open_page(server.url)
    steps.start_comparing(page)
    both = page.locator("#compare")
    times = "one => [...one.querySelectorAll('video')].map(v => v.currentTime)"
    steps.until(lambda: both.evaluate(times)[0] > 0)
    page.locator("#compare video").nth(1).evaluate(
        "v => { v.pause(); v.currentTime = 1.2; }"
    )  # pushed out of step
    apart = []
    for _ in range(40):
        page.wait_for_timeout(50)
        first, second = both.evaluate(times)
        apart.append(abs(first - second))
    # within two frames of 1/12 s, but for the moment in which the second is brought back or both begin again
    assert sorted(apart)[len(apart) * 3 // 4] < 2 / 12
    assert both.locator("tbody tr").all_text_contents() == ["Seed21"]
    page.get_by_role("button", name="Pause").click()
    page.get_by_label("Position").fill("0.5")
    steps.until(lambda: both.evaluate(times) == pytest.approx([0.5 + 1 / 24] * 2, abs=0.01))
    page.get_by_label("Position").press("ArrowRight")
    steps.until(lambda: both.evaluate(times) == pytest.approx([0.5 + 3 / 24] * 2, abs=0.01))
    page.keyboard.press("Escape")
    assert both.is_hidden()
    page.locator("#result video").wait_for()


def test_a_shorter_video_waits_at_its_end(steps: Any, server: Any, open_page: Any) -> None:
    short = server.add("short", state="completed", created_at=1, num_frames=9)
    short["request"]["file"] = "short.mp4"
    server.add("long", state="completed")
    page = open_page(server.url)
    steps.start_comparing(page)
    page.get_by_role("button", name="Pause").click()
    page.get_by_label("Position").fill("1.25")
    times = "one => [...one.querySelectorAll('video')].map(v => Math.round(v.currentTime * 100))"
    steps.until(lambda: page.locator("#compare").evaluate(times) == [129, 73])
    assert page.locator("#compare tbody th").all_text_contents() == ["Frames"]
