"""The page as it looks in all its states: axe-core, what overflows, what is too small to touch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
#: WCAG 2.2, 2.5.8: CSS pixels each way
TARGET = 24

_SMALL = """limit => [...document.querySelectorAll("button, a, input, select, textarea, summary, .file span")]
    .filter(one => one.checkVisibility() && !one.matches(".unseen, .skip"))
    .map(one => [one, (one.closest(".check") ?? one).getBoundingClientRect()])
    .filter(([one, box]) => box.width < limit || box.height < limit)
    .map(([one]) => one.outerHTML.slice(0, 80))"""
#: parts that stick out to the right of the window, and buttons that are too narrow for their text
_OVER = """() => [...document.body.querySelectorAll("*")]
    .filter(one => one.checkVisibility())
    .filter(one => one.getBoundingClientRect().right > innerWidth + 0.5
        || one.matches("button, .button") && one.scrollWidth > one.clientWidth)
    .map(one => one.outerHTML.slice(0, 80))"""


def violations(page: Any) -> list[str]:
    """What axe-core finds: rule, and the first element."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed"
    )
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:100]}" for one in found]


def too_small(page: Any) -> list[str]:
    return page.evaluate(_SMALL, TARGET)


def overflowing(page: Any) -> list[str]:
    return page.evaluate(_OVER)


def states(server: Any, page: Any) -> Iterator[str]:
    """Brings the page into each of its states, and names it."""
    chinese = page.locator("html").get_attribute("lang") == "zh"
    yield "empty"
    server.is_running_jobs = False
    long = "an_extremely_long_word_" * 12
    server.add("a red circle moves right", state="completed", created_at=1, num_frames=9)
    server.add(
        long,
        state="completed",
        created_at=2,
        steps=5,
        negative_prompt=long,
        loras=[{"name": long, "scale": 1}],
    )
    server.add(
        "a green circle", state="failed", created_at=3, error={"code": "x", "message": f"`steps` {long}"}
    )
    job = server.add("a blue square", state="in_progress", phase="denoising", done=7, total=20, progress=38)
    server.set(job | {"preview": f"/api/jobs/{job['id']}/preview?v=1", "seconds_left": 4000.0})
    server.add(long, position=1)
    page.locator("#queue_list li").nth(1).wait_for()
    yield "running"
    page.locator(".card").nth(0).click()
    page.locator("#lora_button").click()
    page.locator("#more summary").click()
    page.select_option("#size", "custom")
    yield "failed, with all of the form open"
    page.locator("#pictures summary").click()
    for name in ("input_reference", "input_reference_end"):
        file = {"name": f"{long}.webp", "mimeType": "image/webp", "buffer": server.files["thumbnail.webp"]}
        page.set_input_files(f"#{name}", file)
    page.locator("#pictures .thumb").nth(1).wait_for()
    yield "with pictures"
    page.locator(".card").nth(1).click()
    page.locator("#result video").wait_for()
    yield "draft"
    page.get_by_role("button", name="对比" if chinese else "Compare", exact=True).click()
    yield "choosing"
    page.locator(".card:enabled").nth(0).click()
    page.locator("#compare table").wait_for()
    yield "comparing"
    page.keyboard.press("Escape")
    server.refusal = (400, {"message": f"`steps` must be 1 to 100, got 500 {long}", "param": "steps"})
    page.keyboard.press("Control+Enter")
    page.locator("[aria-invalid]").wait_for()
    server.workers = [{"name": "cpu", "device": "cpu", "state": "down"}]
    page.evaluate("dispatchEvent(new Event('focus'))")
    page.locator("#banner:not(:empty)").wait_for()
    yield "refused, without a worker"
    page.get_by_role("button", name="删除" if chinese else "Delete", exact=True).click()
    yield "asked before deleting"


# each two of a window, a language and a scheme meet: what fits depends on the first two, contrast on the last
@pytest.mark.parametrize(
    ("viewport", "locale", "scheme"),
    [
        (WIDE, "en-US", "light"),
        (WIDE, "zh-CN", "dark"),
        (PHONE, "en-US", "dark"),
        (PHONE, "zh-CN", "light"),
    ],
    ids=["wide-en-light", "wide-zh-dark", "phone-en-dark", "phone-zh-light"],
)
def test_every_state_is_accessible_and_fits(
    server: Any, open_page: Any, viewport: dict[str, int], locale: str, scheme: str
) -> None:
    page = open_page(server.url, viewport=viewport, locale=locale, color_scheme=scheme)
    seen = 0
    for state in states(server, page):
        assert (state, violations(page)) == (state, [])
        assert (state, too_small(page)) == (state, [])
        assert (state, overflowing(page)) == (state, [])
        seen += 1
    assert seen == 9


def test_the_checks_find_what_is_wrong(server: Any, open_page: Any) -> None:
    page = open_page(server.url, viewport=PHONE)
    page.evaluate("""() => {
        document.querySelector("label[for=steps]").remove();
        document.querySelector("label[for=guidance]").style.color = "#ccc";
        document.querySelector("#draft").style.cssText = "min-height: 0; height: 12px; padding: 0";
        document.querySelector("#prompt").style.width = "500px";
        document.querySelector("#generate").style.cssText = "flex: none; width: 30px; padding: 0";
    }""")
    assert [one.split(":")[0] for one in violations(page)] == ["color-contrast", "label-title-only", "label"]
    assert ["draft" in one for one in too_small(page)] == [True]
    assert ['id="prompt"' in one or 'id="generate"' in one for one in overflowing(page)] == [True, True]


def focused(page: Any) -> str:
    return page.evaluate("(document.activeElement.id || document.activeElement.textContent).trim()")


def test_the_keyboard_reaches_everything_and_shows_where_it_is(server: Any, open_page: Any) -> None:
    server.add("a red circle", state="completed")
    page = open_page(server.url)
    page.locator("#result video").wait_for()
    seen, outlines = [], []
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        if page.evaluate("document.activeElement.tagName") == "VIDEO":
            continue  # several stops: its controls are the browser's own
        seen.append(focused(page))
        outline = """() => {
            const one = document.activeElement;
            return getComputedStyle(one.matches(".unseen") ? one.nextElementSibling : one).outlineStyle;
        }"""
        outlines.append(page.evaluate(outline))
    wanted = [
        "Skip to the result",
        "language",
        "theme",
        "prompt",
        "negative_prompt",
        "model",
        "size",
        "num_frames",
    ]
    wanted += [
        "sampler",
        "steps",
        "guidance",
        "seed",
        "keep",
        "lora",
        "lora_button",
        "Start from a picture",
        "More settings",
        "file",
    ]
    wanted += ["generate", "draft", "Download", "Make again", "Remix", "Compare", "Delete"]
    assert [name for name in wanted if name not in seen] == []
    assert seen[:3] == wanted[:3]
    assert set(outlines) == {"solid"}


def test_the_skip_link_leads_past_the_form(server: Any, open_page: Any) -> None:
    server.add("a red circle", state="completed")
    page = open_page(server.url)
    page.locator("#result video").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert focused(page) == "result"
    page.reload()
    page.locator("#result video").wait_for()
    assert page.locator("#banner").text_content() == ""
