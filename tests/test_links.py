"""Links, anchors and module names on every page lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [path.name for path in ROOT.glob("packages/*")]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "packages/*/*.md", "packages/*/src/*/tiny/*.md")
    for path in ROOT.glob(pattern)
)
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The page without its fenced code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Anchors of the page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def dead_links(page: Path, text: str) -> list[str]:
    """Links in the text, resolved from this page, to a missing file or heading."""
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    return dead


def missing_modules(text: str) -> list[str]:
    """Modules that the text names by path, such as `ea_vae/export.py`, but no package has."""
    named = set(re.findall(r"(?<![\w/])(ea_\w+(?:/\w+)+\.py)", text))
    return sorted(name for name in named if not any(ROOT.glob(f"packages/*/src/{name}")))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_leads_somewhere(page: Path) -> None:
    text = prose(page)
    assert not dead_links(page, text)
    if page.name != "CHANGELOG.md":  # changelogs name modules of earlier versions
        assert not missing_modules(text)


def test_a_dead_link_is_found() -> None:
    page = ROOT / "docs" / "architecture.md"
    text = "[a](none.py) [b](data.md#none) [c](../README.md#start) [d](https://example.org) ea_vae/none.py"
    assert dead_links(page, text) == ["none.py", "data.md#none"]
    assert missing_modules(text) == ["ea_vae/none.py"]


def test_the_walk_has_five_parts_and_enters_every_package_but_lora() -> None:
    page = ROOT / "docs" / "architecture.md"
    for entry in ("README.md", "CONTRIBUTING.md"):
        assert "](docs/architecture.md)" in prose(ROOT / entry)
    parts = re.split(r"^## ", prose(page), flags=re.MULTILINE)[1:]
    assert len(parts) == 5
    for part in parts:
        code = {target for target in re.findall(r"\]\(([^)\s]+)\)", part) if "/src/" in target}
        assert len(code) >= 5, part.splitlines()[0]
    assert {name for name in PACKAGES if f"/{name}/src/" in prose(page)} >= {
        "ea-runtime",
        "ea-vae",
        "ea-dit",
        "ea-data",
    }
