"""The site: built offline without a warning, links lead somewhere, pages are small and accessible."""

from __future__ import annotations

import http.server
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("zensical", reason="zensical is not installed (group docs)")

ROOT = Path(__file__).resolve().parents[1]
#: one of each kind: start, tutorial, guide, hooks, commands, code, explanation, Chinese
LOOKED_AT = (
    "",
    "tutorial/",
    "lora/",
    "hooks/",
    "reference/commands/data/",
    "reference/python/ea_runtime.samplers/",
    "zh/quickstart/",
)
#: of these, those that a narrow window and dark colours are looked at with; all of them under EA_FULL=1
LOOKED_AT_AGAIN = (
    LOOKED_AT if os.environ.get("EA_FULL") == "1" else ("", "reference/commands/data/", "zh/quickstart/")
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")


@pytest.fixture(scope="module")
def tools() -> Iterator[ModuleType]:
    """The module tools/build_site.py, with its neighbours as `site_check` and so on."""
    sys.path.insert(0, str(ROOT / "tools"))
    import build_site

    yield build_site
    sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def site(tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tools.build(tmp_path_factory.mktemp("site"))


def test_it_builds_without_a_warning_and_every_link_leads_somewhere(site: Path, tools: Any) -> None:
    report = tools.site_check.check(site)
    assert not report.problems
    assert report.num_pages > 100
    for kind in ("tutorial", "lora", "reference/commands/generate", "exactness", "zh/quickstart"):
        assert (site / kind / "index.html").is_file()
    assert '<html lang="zh"' in (site / "zh/index.html").read_text("utf-8")


def test_faults_of_a_site_are_found(site: Path, tools: Any, tmp_path: Path) -> None:
    page = "<a href='none/'>a</a><a href='#none'>b</a><a id='c' href='#c'>c</a><a href='https://example.org'>d</a>"
    loads = "<script src='https://example.org/a.js'></script><img src='none.png'><img src='big.png'>"
    (tmp_path / "index.html").write_text(page + loads, encoding="utf-8")
    (tmp_path / "big.png").write_bytes(bytes(tools.site_check.MAX_PAGE))
    (tmp_path / "a.css").write_text("@font-face { src: url('https://example.org/a.woff') }", encoding="utf-8")
    found = " ".join(tools.site_check.check(tmp_path).problems)
    for part in ("none/ leads nowhere", "#none has no such anchor", "a.js is loaded from another server"):
        assert part in found
    for part in ("none.png does not exist", "500000 is the most", "a.css: loads from another address"):
        assert part in found
    assert "#c" not in found


def test_a_dead_link_of_a_page_ends_the_build(tools: Any, tmp_path: Path) -> None:
    sources = tools.Sources(tmp_path, {})
    with pytest.raises(FileNotFoundError, match=r"tools/none.py"):
        sources.linked("[a](../tools/none.py)", "docs/lora.md", "lora.md")


def test_links_lists_and_docstrings_become_what_the_site_needs(tools: Any, tmp_path: Path) -> None:
    reference, wide = tools.site_reference, sys.modules["site_pages"].with_wide_lists
    code = "# ea_runtime.samplers\n\n## euler { #ea_runtime.samplers.euler }\n"
    sources = tools.Sources(tmp_path, {"ea_runtime.samplers": code})
    text = (
        "[docs/lora.md](docs/lora.md#memory) [code](packages/ea-runtime/src/ea_runtime/samplers/euler.py)\n"
        "```sh\n[kept](as it is)\n```"
    )
    assert sources.linked(text, "README.md", "index.md") == (
        "[LoRA](lora.md#memory) [code](reference/python/ea_runtime.samplers.md#ea_runtime.samplers.euler)\n"
        "```sh\n[kept](as it is)\n```"
    )
    assert wide("Three:\n1. one\n   more\n   - inner\n\nend") == (
        "Three:\n\n1. one\n    more\n    - inner\n\nend"
    )
    assert reference.docstring(
        "Adds `a_b` and c_d.\n\nArgs:\n    x: one\n        of them.\n    y: two.\n\n    z = x"
    ) == ("Adds `a_b` and c\\_d.\n\n**Args:**\n\n- **x**: one of them.\n- **y**: two.\n\n```text\nz = x\n```")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = os.environ.get("EA_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no Chromium on this machine; EA_CHROMIUM may name one")
    arguments = ["--no-sandbox"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.mark.parametrize(
    ("width", "height", "scheme", "pages"),
    [(1280, 900, "light", LOOKED_AT), (390, 844, "dark", LOOKED_AT_AGAIN)],
    ids=["wide", "narrow"],
)
def test_pages_are_accessible_and_ask_no_other_server(
    width: int, height: int, scheme: str, pages: tuple[str, ...], address: str, chromium: Any
) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing"
    )
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(60_000)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    found = {}
    for name in pages:
        page.goto(address + name)
        page.locator("nav.md-code__nav").first.wait_for(state="attached")
        told = axe.Axe().run(page).response["violations"]
        found |= {f"{name} {one['id']}": one["nodes"][0]["html"][:100] for one in told}
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            found[f"{name} is wider than the window"] = ""
    if width > 1000:  # what axe-core must find, on the same page
        page.evaluate("document.querySelector('.md-content h1').style.color = '#ddd'")
        page.evaluate("document.querySelector('.md-content').append(document.createElement('img'))")
        twin = {one["id"] for one in axe.Axe().run(page).response["violations"]}
        assert {"color-contrast", "image-alt"} <= twin
    context.close()
    assert not found
    assert not [url for url in asked if not url.startswith((address, "blob:", "data:"))]


def test_search_finds_pages_in_both_languages(address: str, chromium: Any) -> None:
    for word, heading in (("inkline", "Measure its effect"), ("采样", "生成视频")):
        page = chromium.new_page()
        page.set_default_timeout(60_000)
        page.goto(address)
        page.get_by_role("button", name="Search").first.click()
        page.locator("input:focus").first.wait_for()
        page.keyboard.type(word)
        page.get_by_text(heading).first.wait_for()
        page.close()
