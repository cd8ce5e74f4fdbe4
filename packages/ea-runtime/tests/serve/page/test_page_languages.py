"""Language, theme and motion as the browser wishes them, and as the switches say."""

from __future__ import annotations

from typing import Any


def test_chinese_by_the_browsers_language_and_by_the_switch(steps: Any, server: Any, open_page: Any) -> None:
    server.add("a red circle", state="completed")
    page = open_page(server.url, locale="zh-CN")
    page.get_by_role("button", name="生成", exact=True).wait_for()
    assert page.locator("html").get_attribute("lang") == "zh"
    assert steps.heading(page).get_attribute("lang") == "en"  # prompts are
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


def test_nothing_moves_by_itself_if_that_is_wished(steps: Any, server: Any, open_page: Any) -> None:
    server.add("the other", state="completed", created_at=1)
    server.add("a red circle", state="completed")
    page = open_page(server.url, reduced_motion="reduce")
    video = page.locator("#result video")
    steps.until(lambda: video.evaluate("v => v.readyState >= 2"))
    page.wait_for_timeout(300)
    assert video.evaluate("v => v.paused && v.currentTime === 0")
    steps.start_comparing(page)
    page.get_by_role("button", name="Play").wait_for()
