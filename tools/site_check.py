"""Checks a built site: every link and anchor leads somewhere, nothing comes from another server, no page is large."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

#: bytes that a page may have, with its styles, scripts and pictures but for those that are loaded when scrolled to
MAX_PAGE = 500_000
#: elements whose address the browser loads by itself, and the attributes that have it
LOADED = {"script": "src", "img": "src", "link": "href", "source": "src", "iframe": "src", "video": "src"}
_CSS_ADDRESS = re.compile(r"url\(\s*[\"']?(https?:)?//|@import", re.IGNORECASE)
_NOT_LOADED = {"canonical", "next", "prev", "alternate", "edit"}
_HOST = "site.invalid"


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.lazy: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        address = values.get(LOADED.get(tag, ""), "")
        if values.get("loading") == "lazy":
            self.lazy.add(address)
        if address and not (tag == "link" and set(values.get("rel", "").split()) & _NOT_LOADED):
            self.loads.append(address)


@dataclass
class SiteReport:
    """problems: one line each. largest: the heaviest page, in words."""

    num_pages: int = 0
    num_links: int = 0
    largest: str = ""
    problems: list[str] = field(default_factory=list)


def check(site: Path) -> SiteReport:
    """Reads every page of a built site."""
    report = SiteReport()
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    heaviest = 0
    for path, page in pages.items():
        where = path.relative_to(site).as_posix()
        weight = path.stat().st_size
        for address in page.loads:
            file = _file(site, path, address)
            if file is None:
                report.problems.append(f"{where}: {address} is loaded from another server")
            elif not file.is_file():
                report.problems.append(f"{where}: {address} does not exist")
            elif address not in page.lazy:
                weight += file.stat().st_size
        for address in page.links:
            report.num_links += 1
            file = _file(site, path, address)
            anchor = unquote(urlsplit(address).fragment)
            if file is not None and not file.is_file():
                report.problems.append(f"{where}: link {address} leads nowhere")
            elif file in pages and anchor and anchor not in pages[file].ids:
                report.problems.append(f"{where}: link {address} has no such anchor")
        if weight > MAX_PAGE:
            report.problems.append(f"{where}: {weight} bytes with what it loads, {MAX_PAGE} is the most")
        if weight > heaviest:
            heaviest, report.largest = weight, f"{where}, {weight / 1000:.0f} kB with what it loads"
    for path in sorted(site.rglob("*.css")):
        if _CSS_ADDRESS.search(path.read_text(encoding="utf-8")):
            report.problems.append(f"{path.relative_to(site)}: loads from another address")
    report.num_pages = len(pages)
    return report


def _file(site: Path, page: Path, address: str) -> Path | None:
    """The file that an address on a page means; None if it is on another server or no address of a file."""
    base = f"https://{_HOST}/{page.relative_to(site).as_posix()}"
    parts = urlsplit(urljoin(base, address))
    if parts.scheme != "https" or parts.netloc != _HOST:
        return None
    file = site / unquote(parts.path).lstrip("/")
    return file / "index.html" if file.is_dir() or parts.path.endswith("/") else file
