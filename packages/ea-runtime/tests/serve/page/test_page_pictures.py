"""Videos from pictures, in a browser: chosen, dropped, shown, sent, kept and removed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

DROP = """async files => {
    const data = new DataTransfer();
    for (const [name, type, bytes] of files) data.items.add(new File([new Uint8Array(bytes)], name, {type}));
    document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
}"""
MARKUP = "<img src=x onerror=alert(1)>.png"


def picture(colour: str) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(target, "png")
    return target.getvalue()


def choose(page: Any, name: str, content: bytes, file: str = "red.png") -> None:
    page.set_input_files(f"#{name}", {"name": file, "mimeType": "image/png", "buffer": content})


def thumbs(page: Any) -> Any:
    return page.locator("#pictures .thumb")


def is_shown(thumb: Any) -> bool:
    return thumb.evaluate("one => one.complete && one.naturalWidth === 48")


def test_a_picture_is_chosen_sent_shown_and_removed_by_keyboard(
    steps: Any, server: Any, open_page: Any, tmp_path: Path
) -> None:
    red = tmp_path / "red.png"
    red.write_bytes(picture("red"))
    page = open_page(server.url)
    page.locator("#pictures summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#fit").is_hidden()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "input_reference"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(str(red))
    thumbs(page).wait_for()
    steps.until(lambda: is_shown(thumbs(page)))
    page.select_option("#fit", "pad")
    page.keyboard.press("Control+Enter")
    steps.until(lambda: len(steps.orders(server)) == 1)
    (order,) = steps.orders(server)
    assert (order["input_reference"], order["fit"]) == (red.read_bytes(), "pad")
    assert (order["steps"], order["loras"], order["smooth"], order["size"]) == (20, [], True, "64x64")
    assert {"strength", "image_of", "input_reference_end"}.isdisjoint(order)
    page.locator("#result video").wait_for()
    steps.until(lambda: is_shown(page.locator("#result .thumb")))
    page.get_by_role("button", name="Remove First picture").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "input_reference"
    assert (thumbs(page).count(), page.locator("#fit").is_hidden()) == (0, True)
    page.keyboard.press("Control+Enter")
    steps.until(lambda: len(steps.orders(server)) == 2)
    assert {"input_reference", "fit", "strength"}.isdisjoint(steps.orders(server)[1])


def test_make_again_and_remix_name_the_job_until_a_picture_is_changed(
    steps: Any, server: Any, open_page: Any
) -> None:
    red, blue, green = map(picture, ("red", "blue", "green"))
    page = open_page(server.url)
    page.locator("#pictures summary").click()
    choose(page, "input_reference", red)
    choose(page, "input_reference_end", blue)
    page.fill("#strength", "0.7")
    page.get_by_role("button", name="Draft").click()
    page.get_by_role("button", name="Final").click()
    steps.until(lambda: len(steps.orders(server)) == 2)
    first, final = steps.orders(server)
    assert (first["input_reference"], first["input_reference_end"], first["strength"]) == (red, blue, 0.7)
    ids = list(server.jobs)
    steps.until(lambda: page.evaluate("location.hash") == f"#{ids[1]}")
    assert (final["image_of"], final["strength"], final["fit"]) == (ids[0], 0.7, "crop")
    page.reload()
    page.locator("#result video").wait_for()
    page.get_by_role("button", name="Remix").click()
    assert thumbs(page).count() == 2
    page.keyboard.press("Control+Enter")
    steps.until(lambda: len(steps.orders(server)) == 3)
    assert steps.orders(server)[2]["image_of"] == ids[1]
    choose(page, "input_reference_end", green)
    page.keyboard.press("Control+Enter")
    steps.until(lambda: len(steps.orders(server)) == 4)
    changed = steps.orders(server)[3]
    assert (changed["input_reference"], changed["input_reference_end"]) == (red, green)
    assert "image_of" not in changed


def test_a_refresh_says_that_the_pictures_are_gone(server: Any, open_page: Any) -> None:
    page = open_page(server.url)
    page.locator("#pictures summary").click()
    choose(page, "input_reference", picture("red"))
    thumbs(page).wait_for()
    page.reload()
    page.get_by_text("Choose the pictures again").wait_for()
    assert thumbs(page).count() == 0
    choose(page, "input_reference", picture("red"))
    page.get_by_text("Choose the pictures again").wait_for(state="hidden")


def test_dropped_pictures_without_a_recipe_are_what_a_video_starts_from(server: Any, open_page: Any) -> None:
    server.recipe = (400, {"error": {"message": "no recipe in this file", "param": "file"}})
    page = open_page(server.url)
    files = [[MARKUP, "image/png", list(picture("red"))], ["b.png", "image/png", list(picture("blue"))]]
    page.evaluate(DROP, files)
    thumbs(page).nth(1).wait_for()
    assert thumbs(page).evaluate_all("all => all.map(one => one.alt)") == [MARKUP, "b.png"]
    assert MARKUP in (page.locator("#file_note").text_content() or "")
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("#file_error").text_content() == ""


@pytest.mark.parametrize("param", ["input_reference", "image_of", "image"])
def test_a_refused_picture_is_reported_at_its_field(server: Any, open_page: Any, param: str) -> None:
    page = open_page(server.url)
    page.locator("#pictures summary").click()
    choose(page, "input_reference", b"no picture")
    page.locator("#pictures summary").click()
    server.refusal = (400, {"message": f"`{param}` cannot be read as a picture", "param": param})
    page.keyboard.press("Control+Enter")
    page.locator("#input_reference_error").get_by_text("cannot be read").wait_for()
    assert page.evaluate("document.activeElement.id") == "input_reference"


def test_a_page_that_forgets_the_pictures_would_be_seen(
    steps: Any, make_server: Any, open_page: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = make_server()
    steps.spoil_page(
        monkeypatch, tmp_path, "pictures.js", "if(!hasPictures()) return fields", "return fields"
    )
    page = open_page(server.url)
    page.locator("#pictures summary").click()
    choose(page, "input_reference", picture("red"))
    page.keyboard.press("Control+Enter")
    steps.until(lambda: len(steps.orders(server)) == 1)
    assert "input_reference" not in steps.orders(server)[0]
