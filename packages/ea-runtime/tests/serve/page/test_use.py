"""The page in a browser: what people do with it, against a server whose answers are known."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

MARKUP = '<img src=x onerror="document.title=1"><b>bold</b>'


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
    return page.locator("#result h2")


# ---- the form


def test_one_press_makes_the_example(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    assert page.input_value("#prompt") == "a red circle moves right"
    page.get_by_role("button", name="Generate").click()
    page.locator("#result video").wait_for()
    (order,) = orders(server)
    assert order["prompt"] == "a red circle moves right"
    assert (order["size"], order["num_frames"], order["steps"], order["guidance"]) == ("64x64", 18, 20, 2)
    assert (order["sampler"], order["model"], order["loras"]) == ("dpm++", "tiny", [])
    assert "seed" not in order  # drawn by the server
    video = page.locator("#result video")
    assert video.evaluate("v => [v.loop, v.muted, v.controls, v.playsInline]") == [True, True, True, True]
    until(lambda: video.evaluate("v => !v.paused && v.currentTime > 0"))


def test_a_client_name_goes_with_every_order(server: Any, open_page: Any) -> None:
    names = []
    page = open_page(server.url)
    page.on("request", lambda request: names.append(request.headers.get("x-ea-client")))
    page.get_by_role("button", name="Generate").click()
    page.reload()
    page.locator("#result video").wait_for()
    (name,) = {name for name in names if name}
    assert re.fullmatch(r"[A-Za-z0-9_-]{8,64}", name)


def test_only_what_the_model_allows_is_offered(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    frames = page.locator("#num_frames option").all_text_contents()
    assert frames[:3] == ["1 (picture)", "9 · 0.75 s", "18 · 1.5 s"]
    page.select_option("#model", "easyanimate-v2")
    assert page.input_value("#size") == "672x384"
    assert page.input_value("#prompt") != "a red circle moves right"
    assert page.input_value("#negative_prompt") == "blurry, low quality"
    assert page.locator("#num_frames option").last.text_content() == "144 · 6 s"
    sizes = page.locator("#size option").evaluate_all("all => all.map(one => one.value)")
    pairs = [tuple(map(int, size.split("x"))) for size in sizes if size != "custom"]
    assert len(pairs) >= 4
    assert all(w % 16 == h % 16 == 0 and abs(w * h / (672 * 384) - 1) < 0.1 for w, h in pairs)
    page.locator("#more summary").click()
    page.fill("#fps", "12")
    assert page.locator("#num_frames option").last.text_content() == "144 · 12 s"


def test_an_own_size_is_sent(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.select_option("#size", "custom")
    page.fill("#width", "128")
    page.keyboard.press("Control+Enter")
    until(lambda: bool(orders(server)))
    assert orders(server)[0]["size"] == "128x64"


def test_a_seed_is_random_until_it_is_kept(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.get_by_role("button", name="Generate").click()
    page.locator("#result video").wait_for()
    page.get_by_label("Keep this seed").check()
    seed = page.input_value("#seed")
    page.get_by_role("button", name="Generate").click()
    until(lambda: len(orders(server)) == 2)
    first = next(iter(server.jobs.values()))
    assert orders(server)[1]["seed"] == int(seed) == first["request"]["seed"]
    page.get_by_label("Keep this seed").uncheck()
    assert page.input_value("#seed") == ""
    page.fill("#seed", "7")
    assert page.get_by_label("Keep this seed").is_checked()


def test_loras_with_weight_and_trigger_word(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.locator("#lora_button").click()
    page.get_by_label("Weight of inkline").fill("0.8")
    word = page.get_by_role("button", name="Add “inkline” to the prompt")
    word.click()
    word.click()  # once is enough
    assert page.input_value("#prompt") == "a red circle moves right, inkline"
    page.keyboard.press("Control+Enter")
    until(lambda: bool(orders(server)))
    assert orders(server)[0]["loras"] == [{"name": "inkline", "scale": 0.8}]
    page.get_by_role("button", name="Remove inkline").click()
    assert page.locator("#lora_list li").count() == 0


def test_draft_and_then_final_with_its_seed(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.get_by_role("button", name="Draft (5 steps)").click()
    page.get_by_role("button", name="Final (20 steps)").click()
    until(lambda: len(orders(server)) == 2)
    draft, final = orders(server)
    made = next(iter(server.jobs.values()))["request"]
    assert (draft["steps"], final["steps"], final["seed"]) == (5, 20, made["seed"])
    assert {**draft, "steps": 20, "seed": made["seed"]} == final
    page.locator("#result video").wait_for()
    assert page.locator(".badge").all_text_contents() == ["draft"]


def test_what_was_typed_survives_a_refresh(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.locator("#lora_button").click()
    page.fill("#prompt", "a blue square grows")
    page.fill("#negative_prompt", "text")
    page.select_option("#num_frames", "27")
    page.select_option("#sampler", "unipc")
    page.fill("#steps", "31")
    page.fill("#seed", "77")
    page.locator("#more summary").click()
    page.select_option("#step_cache", "teacache")
    page.get_by_label("Smooth the seams").uncheck()
    before = page.evaluate("localStorage['ea.form']")
    page.reload()
    page.locator("#model option").first.wait_for(state="attached")
    values = {id: page.input_value(f"#{id}") for id in ("prompt", "negative_prompt", "num_frames", "sampler")}
    assert values == {
        "prompt": "a blue square grows", "negative_prompt": "text", "num_frames": "27", "sampler": "unipc",
    }  # fmt: skip
    assert (page.input_value("#steps"), page.input_value("#seed")) == ("31", "77")
    assert page.input_value("#step_cache") == "teacache"
    assert not page.get_by_label("Smooth the seams").is_checked()
    assert page.locator("#lora_list li").count() == 1
    assert json.loads(page.evaluate("localStorage['ea.form']")) == json.loads(before)
    page.get_by_role("button", name="Reset to the model's defaults").click()
    assert (page.input_value("#steps"), page.input_value("#prompt")) == ("20", "a blue square grows")


def test_a_spoilt_memory_does_no_harm(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    for text in ("{", '"x"', '{"model": "tiny", "loras": 5}', '{"model": "gone"}'):
        page.evaluate("text => { localStorage['ea.form'] = text; localStorage['ea.client'] = '\\n'; }", text)
        page.reload()
        page.locator("#gallery_empty:visible").wait_for()
        assert page.input_value("#steps") == "20"


# ---- errors


@pytest.mark.parametrize(
    ("param", "field"),
    [("steps", "steps"), ("prompt", "prompt"), ("size", "size"), ("seconds", "num_frames"), ("fps", "fps"), ("loras[0].scale", "loras")],
)  # fmt: skip
def test_a_refusal_is_shown_at_its_field(server: Any, open_page: Any, param: str, field: str) -> None:
    page = open_page(server.url)
    server.refusal = (400, {"message": f"`{param}` must be good, got <b>bad</b>", "param": param})
    page.get_by_role("button", name="Generate").click()
    error = page.locator(f"#{field}_error")
    error.wait_for()
    assert error.text_content() == f"{param} must be good, got <b>bad</b>"
    assert error.locator("b").count() == 0
    control = page.locator("[aria-invalid=true]").first
    assert field + "_error" in (control.get_attribute("aria-describedby") or "")
    assert control.evaluate("one => one === document.activeElement")
    control.fill("1") if control.evaluate("one => one.tagName") != "SELECT" else control.dispatch_event(
        "input", {"bubbles": True}
    )
    assert page.locator("[aria-invalid]").count() == 0


def test_a_full_queue_says_when_to_come_back(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    server.refusal = (429, {"message": "the queue is full: 64 jobs wait", "param": None})
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("the queue is full: 64 jobs wait Try again in 7 s.").wait_for()
    assert page.locator("#form_error").is_visible()


def test_what_is_no_number_is_not_sent(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.locator("#steps").press_sequentially("-")
    page.locator("#steps").press("End")
    page.locator("#steps").press_sequentially("e")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Not a number").wait_for()
    assert orders(server) == []


def test_a_server_without_a_worker_says_so(server: Any, open_page: Any) -> None:
    server.workers = [{"name": "cpu", "device": "cpu", "state": "down"}]
    page = open_page(server.url)
    page.get_by_text("No worker is running").wait_for()


# ---- jobs


def test_progress_preview_and_time_left(server: Any, open_page: Any) -> None:
    server.is_running_jobs = False
    page = open_page(server.url)
    page.get_by_role("button", name="Generate").click()
    until(lambda: bool(server.jobs))
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
    until(lambda: preview.evaluate("one => one.complete && one.naturalWidth === 64"))
    until(lambda: page.locator("#live").text_content() == "Denoising")
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


def test_a_refresh_in_the_middle_shows_the_job_still_running(server: Any, open_page: Any) -> None:
    server.is_running_jobs = False
    job = server.add("a green circle shrinks", state="in_progress", phase="denoising", done=3, total=20)
    other = server.add("a yellow triangle", position=1)
    page = open_page(server.url)
    page.locator("#queue_list").get_by_text("a yellow triangle").click()
    assert heading(page).text_content() == "a yellow triangle"
    page.reload()
    page.locator("#result").get_by_text("Number 1 in the queue").wait_for()
    assert heading(page).text_content() == "a yellow triangle"
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


def test_the_gallery_goes_back_to_the_first(server: Any, open_page: Any) -> None:
    for at in range(60):
        server.add(f"number {at}", state="completed", created_at=1000 + at // 3)
    page = open_page(server.url)
    cards = page.locator(".card .name")
    until(lambda: cards.count() == 24)
    for wanted in (48, 60):
        page.get_by_role("button", name="Show older").click()
        until(lambda wanted=wanted: cards.count() == wanted)
    assert cards.all_text_contents() == [f"number {at}" for at in reversed(range(60))]
    assert page.get_by_role("button", name="Show older").is_hidden()


def test_a_job_of_another_client_appears(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.get_by_text("Finished videos appear here.").wait_for()
    server.add("made elsewhere", state="completed")
    page.locator("#gallery_list").get_by_text("made elsewhere").wait_for()


def test_delete_asks_first(server: Any, open_page: Any) -> None:
    server.add("to be kept", state="completed", created_at=1)
    server.add("to be deleted", state="completed")
    page = open_page(server.url)
    for answer in ("Keep", "Delete"):
        page.locator("#result").get_by_role("button", name="Delete").click()
        page.locator("#confirm").get_by_role("button", name=answer).click()
        page.locator("#confirm").wait_for(state="hidden")
        if answer == "Keep":
            assert len(server.jobs) == 2
    until(lambda: len(server.jobs) == 1)
    until(lambda: heading(page).text_content() == "to be kept")
    assert page.locator(".card").count() == 1


def test_make_again_and_remix(server: Any, open_page: Any) -> None:
    server.add("a red square", state="completed", seed=5, steps=9, guidance=3.5, negative_prompt="blur", loras=[{"name": "inkline", "scale": 0.5}])  # fmt: skip
    page = open_page(server.url)
    page.get_by_role("button", name="Make again").click()
    until(lambda: len(orders(server)) == 1)
    (again,) = orders(server)
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
    until(lambda: len(orders(server)) == 2)
    assert {**orders(server)[1], "prompt": "a red square"} == again


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


# ---- compare


def start_comparing(server: Any, page: Any) -> None:
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Choose a second video").wait_for()
    page.locator(".card:enabled").first.click()
    page.locator("#compare video").nth(1).wait_for()


def test_two_videos_play_in_step(server: Any, open_page: Any) -> None:
    server.add("the other", state="completed", created_at=1, seed=1)
    server.add("a red circle", state="completed", seed=2)
    page = open_page(server.url)
    start_comparing(server, page)
    both = page.locator("#compare")
    times = "one => [...one.querySelectorAll('video')].map(v => v.currentTime)"
    until(lambda: both.evaluate(times)[0] > 0)
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
    until(lambda: both.evaluate(times) == pytest.approx([0.5 + 1 / 24] * 2, abs=0.01))
    page.get_by_label("Position").press("ArrowRight")
    until(lambda: both.evaluate(times) == pytest.approx([0.5 + 3 / 24] * 2, abs=0.01))
    page.keyboard.press("Escape")
    assert both.is_hidden()
    page.locator("#result video").wait_for()


def test_a_shorter_video_waits_at_its_end(server: Any, open_page: Any) -> None:
    short = server.add("short", state="completed", created_at=1, num_frames=9)
    short["request"]["file"] = "short.mp4"
    server.add("long", state="completed")
    page = open_page(server.url)
    start_comparing(server, page)
    page.get_by_role("button", name="Pause").click()
    page.get_by_label("Position").fill("1.25")
    times = "one => [...one.querySelectorAll('video')].map(v => Math.round(v.currentTime * 100))"
    until(lambda: page.locator("#compare").evaluate(times) == [129, 73])
    assert page.locator("#compare tbody th").all_text_contents() == ["Frames"]


# ---- made files


def test_a_file_fills_the_form(server: Any, open_page: Any) -> None:
    recipe = {
        "prompt": "a white circle", "negative_prompt": "", "model": "tiny", "width": 128, "height": 64, "num_frames": 9, "fps": 8,
        "seed": 0, "steps": 11, "guidance": 1.5, "sampler": "euler", "loras": [{"name": "inkline", "scale": 0.7}, {"name": "lost", "scale": 1}],
        "step_cache": "teacache:0.15", "smooth": False, "unknown": ["lost"],
    }  # fmt: skip
    server.recipe = (200, recipe)
    page = open_page(server.url)
    page.set_input_files("#file", {"name": "red.mp4", "mimeType": "video/mp4", "buffer": b"x"})
    page.get_by_text("Settings taken from red.mp4. Not on this server: lost.").wait_for()
    page.keyboard.press("Control+Enter")
    until(lambda: bool(orders(server)))
    wanted = {key: value for key, value in recipe.items() if key not in ("width", "height", "unknown")}
    assert orders(server)[0] == wanted | {"size": "128x64", "loras": [{"name": "inkline", "scale": 0.7}]}


def test_a_dropped_file_that_is_not_ours_is_refused_in_one_line(server: Any, open_page: Any) -> None:
    server.recipe = (400, {"error": {"message": "no recipe in this file", "param": "file"}})
    page = open_page(server.url)
    drop = """type => {
        const data = new DataTransfer();
        data.items.add(new File(["x"], "holiday.mp4"));
        document.body.dispatchEvent(new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(drop, "dragover")
    assert page.get_by_text("Drop a file made by ea").is_visible()
    page.evaluate(drop, "drop")
    page.get_by_text("no recipe in this file").wait_for()
    assert page.get_by_text("Drop a file made by ea").is_hidden()
    assert page.locator("#file_error").text_content() == "no recipe in this file"


# ---- languages, themes, motion


def test_chinese_by_the_browsers_language_and_by_the_switch(server: Any, open_page: Any) -> None:
    server.add("a red circle", state="completed")
    page = open_page(server.url, locale="zh-CN")
    page.get_by_role("button", name="生成", exact=True).wait_for()
    assert page.locator("html").get_attribute("lang") == "zh"
    assert heading(page).get_attribute("lang") == "en"  # prompts are
    page.get_by_label("语言").select_option("en")
    page.get_by_role("button", name="Generate").wait_for()
    page.get_by_role("button", name="Make again").wait_for()
    page.reload()
    page.get_by_role("button", name="Generate").wait_for()
    assert page.locator("html").get_attribute("lang") == "en"


def test_dark_by_the_system_and_by_the_switch(server: Any, open_page: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    page = open_page(server.url, color_scheme="dark")
    dark = page.evaluate(colour)
    page.get_by_label("Theme").select_option("light")
    light = page.evaluate(colour)
    assert light != dark
    page.reload()
    assert page.evaluate(colour) == light
    page.get_by_label("Theme").select_option("auto")
    assert page.evaluate(colour) == dark


def test_nothing_moves_by_itself_if_that_is_wished(server: Any, open_page: Any) -> None:
    server.add("the other", state="completed", created_at=1)
    server.add("a red circle", state="completed")
    page = open_page(server.url, reduced_motion="reduce")
    video = page.locator("#result video")
    until(lambda: video.evaluate("v => v.readyState >= 2"))
    page.wait_for_timeout(300)
    assert video.evaluate("v => v.paused && v.currentTime === 0")
    start_comparing(server, page)
    page.get_by_role("button", name="Play").wait_for()


# ---- what must never happen


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


def test_markup_stays_text(server: Any, open_page: Any) -> None:
    fill_with_markup(server)
    page = open_page(server.url)
    page.locator("#lora_button").click()
    for card in page.locator(".card").all():
        card.click()
        assert MARKUP in (heading(page).text_content() or "")
        assert markup_in(page) == 0
    assert page.title() != "1"


def test_markup_that_became_html_would_be_seen(
    make_server: Any, open_page: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    server = make_server()
    spoil_page(server, monkeypatch, tmp_path, "dom.js", "node.append(part)", "node.insertAdjacentHTML('beforeend', part.outerHTML ?? part)")  # fmt: skip
    fill_with_markup(server)
    page = open_page(server.url)
    page.locator(".card").first.wait_for()
    assert markup_in(page) > 0


def spoil_page(server: Any, monkeypatch: Any, tmp_path: Path, name: str, old: str, new: str) -> None:
    """Lets the server give the page with one change."""
    import shutil
    import sys

    module = sys.modules["canned_server"]
    copy = tmp_path / "page"
    shutil.copytree(module.PAGE, copy)
    text = (copy / name).read_text(encoding="utf-8")
    assert old in text
    (copy / name).write_text(text.replace(old, new), encoding="utf-8")
    monkeypatch.setattr(module, "PAGE", copy)


def hosts_of_a_walk(server: Any, open_page: Any) -> set[str]:
    """Hosts that the page asked while a video is made, compared, and taken up again."""
    asked: list[str] = []
    server.add("the other", state="completed", created_at=1)
    page = open_page(server.url)
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.get_by_role("button", name="Generate").click()
    page.locator("#result video").wait_for()
    start_comparing(server, page)
    page.set_input_files("#file", {"name": "red.mp4", "mimeType": "video/mp4", "buffer": b"x"})
    page.wait_for_timeout(200)
    assert len(asked) > 20
    return {urlsplit(url).netloc for url in asked if not url.startswith("blob:")}


def test_every_request_goes_to_the_pages_own_server(server: Any, open_page: Any) -> None:
    assert hosts_of_a_walk(server, open_page) == {f"127.0.0.1:{server.port}"}


def test_a_request_to_another_server_would_be_seen(
    make_server: Any, open_page: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    server = make_server(csp="default-src * 'unsafe-inline'")
    spoil_page(server, monkeypatch, tmp_path, "main.js", "setUpRecipe();", "setUpRecipe(); new Image().src = 'http://other.invalid/x';")  # fmt: skip
    assert hosts_of_a_walk(server, open_page) == {f"127.0.0.1:{server.port}", "other.invalid"}
