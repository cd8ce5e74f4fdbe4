"""The form in a browser: what it offers, sends, keeps and refuses."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest


def test_one_press_makes_the_example(steps: Any, server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    assert page.input_value("#prompt") == "a red circle moves right"
    page.get_by_role("button", name="Generate").click()
    page.locator("#result video").wait_for()
    (order,) = steps.orders(server)
    assert order["prompt"] == "a red circle moves right"
    assert (order["size"], order["num_frames"], order["steps"], order["guidance"]) == ("64x64", 18, 20, 2)
    assert (order["sampler"], order["model"], order["loras"]) == ("dpm++", "tiny", [])
    assert "seed" not in order  # drawn by the server
    video = page.locator("#result video")
    assert video.evaluate("v => [v.loop, v.muted, v.controls, v.playsInline]") == [True, True, True, True]
    steps.until(lambda: video.evaluate("v => !v.paused && v.currentTime > 0"))


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


def test_an_own_size_is_sent(steps: Any, server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.select_option("#size", "custom")
    page.fill("#width", "128")
    page.keyboard.press("Control+Enter")
    steps.until(lambda: bool(steps.orders(server)))
    assert steps.orders(server)[0]["size"] == "128x64"


def test_a_seed_is_random_until_it_is_kept(steps: Any, server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.get_by_role("button", name="Generate").click()
    page.locator("#result video").wait_for()
    page.get_by_label("Keep this seed").check()
    seed = page.input_value("#seed")
    page.get_by_role("button", name="Generate").click()
    steps.until(lambda: len(steps.orders(server)) == 2)
    first = next(iter(server.jobs.values()))
    assert steps.orders(server)[1]["seed"] == int(seed) == first["request"]["seed"]
    page.get_by_label("Keep this seed").uncheck()
    assert page.input_value("#seed") == ""
    page.fill("#seed", "7")
    assert page.get_by_label("Keep this seed").is_checked()


def test_loras_with_weight_and_trigger_word(steps: Any, server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.locator("#lora_button").click()
    page.get_by_label("Weight of inkline").fill("0.8")
    word = page.get_by_role("button", name="Add “inkline” to the prompt")
    word.click()
    word.click()  # once is enough
    assert page.input_value("#prompt") == "a red circle moves right, inkline"
    page.keyboard.press("Control+Enter")
    steps.until(lambda: bool(steps.orders(server)))
    assert steps.orders(server)[0]["loras"] == [{"name": "inkline", "scale": 0.8}]
    page.get_by_role("button", name="Remove inkline").click()
    assert page.locator("#lora_list li").count() == 0


def test_draft_and_then_final_with_its_seed(steps: Any, server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.get_by_role("button", name="Draft (5 steps)").click()
    page.get_by_role("button", name="Final (20 steps)").click()
    steps.until(lambda: len(steps.orders(server)) == 2)
    draft, final = steps.orders(server)
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


@pytest.mark.parametrize(
    ("param", "field"),
    [
        ("steps", "steps"),
        ("prompt", "prompt"),
        ("size", "size"),
        ("seconds", "num_frames"),
        ("fps", "fps"),
        ("loras[0].scale", "loras"),
    ],
)
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


def test_what_is_no_number_is_not_sent(steps: Any, server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.locator("#steps").press_sequentially("-")
    page.locator("#steps").press("End")
    page.locator("#steps").press_sequentially("e")
    page.get_by_role("button", name="Generate").click()
    page.get_by_text("Not a number").wait_for()
    assert steps.orders(server) == []


def test_a_server_without_a_worker_says_so(server: Any, open_page: Any) -> None:
    server.workers = [{"name": "cpu", "device": "cpu", "state": "down"}]
    page = open_page(server.url)
    page.get_by_text("No worker is running").wait_for()


def test_a_file_fills_the_form(steps: Any, server: Any, open_page: Any) -> None:
    recipe = {
        "prompt": "a white circle",
        "negative_prompt": "",
        "model": "tiny",
        "width": 128,
        "height": 64,
        "num_frames": 9,
        "fps": 8,
        "seed": 0,
        "steps": 11,
        "guidance": 1.5,
        "sampler": "euler",
        "loras": [{"name": "inkline", "scale": 0.7}, {"name": "lost", "scale": 1}],
        "step_cache": "teacache:0.15",
        "smooth": False,
        "unknown": ["lost"],
    }
    server.recipe = (200, recipe)
    page = open_page(server.url)
    page.set_input_files("#file", {"name": "red.mp4", "mimeType": "video/mp4", "buffer": b"x"})
    page.get_by_text("Settings taken from red.mp4. Not on this server: lost.").wait_for()
    assert page.locator("#lora_list li").count() == 1
    page.keyboard.press("Control+Enter")
    steps.until(lambda: bool(steps.orders(server)))
    wanted = {key: value for key, value in recipe.items() if key not in ("width", "height", "unknown")}
    assert steps.orders(server)[0] == wanted | {
        "size": "128x64",
        "loras": [{"name": "inkline", "scale": 0.7}],
    }


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


def test_a_lora_that_comes_meanwhile_is_offered(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.fill("#prompt", "typed before")
    server.about = json.loads(json.dumps(server.about))
    server.about["loras"].append({"name": "fresh", "model": None, "trigger_words": [], "summary": ""})
    page.evaluate("dispatchEvent(new Event('focus'))")
    page.locator("#lora option[value=fresh]").wait_for(state="attached")
    assert page.input_value("#prompt") == "typed before"


def test_what_a_file_has_and_this_server_has_not_is_reported(steps: Any, server: Any, open_page: Any) -> None:
    recipe = {"prompt": "a", "model": "gone", "sampler": "mine", "num_frames": 20, "unknown": ["gone"]}
    server.recipe = (200, recipe)
    page = open_page(server.url)
    page.set_input_files("#file", {"name": "red.mp4", "mimeType": "video/mp4", "buffer": b"x"})
    page.get_by_text("Not on this server: gone, mine.").wait_for()
    assert page.input_value("#sampler") == "dpm++"
    page.keyboard.press("Control+Enter")
    steps.until(lambda: bool(steps.orders(server)))
    assert steps.orders(server)[0]["num_frames"] == 20  # for the server to refuse, not for the page to change
