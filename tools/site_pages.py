"""Sources of the site: the repository's Markdown gathered in one folder, with links that lead to pages there.

On GitHub a page may link to code, configs and pages of packages. On the site code becomes its reference page, any other
text file a page that shows it, and README.md the start page. Lists are indented by four, as Python-Markdown wants them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
#: bytes of a picture above which the site has it as WebP
MAX_PNG = 15_000
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[[^\]]*\]\([^)]+\)")
_FENCE = re.compile(r"^ *(```+)")
_ITEM = re.compile(r"^( *)([-*]|\d+\.) +")
LANGUAGES = {".py": "python", ".toml": "toml", ".md": "markdown", ".sh": "sh"}


LARGE_PNG = {path.name for path in (ROOT / "docs/images").glob("*.png") if path.stat().st_size > MAX_PNG}


def homes() -> dict[str, str]:
    """Every page of the repository -> its place on the site, both relative with `/`."""
    fixed = {
        "README.md": "index.md",
        "README.zh.md": "zh/index.md",
        "CONTRIBUTING.md": "contributing.md",
        "SECURITY.md": "security.md",
        "CODE_OF_CONDUCT.md": "code-of-conduct.md",
        "examples/README.md": "examples/index.md",
        "packages/ea-runtime/src/ea_runtime/tiny/README.md": "tiny-card.md",
    }
    found = {source: place for source, place in fixed.items() if (ROOT / source).is_file()}
    for path in sorted((ROOT / "docs").rglob("*.md")):
        found[path.relative_to(ROOT).as_posix()] = path.relative_to(ROOT / "docs").as_posix()
    for package in sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml")):
        found[f"packages/{package.name}/README.md"] = f"packages/{package.name}.md"
        found[f"packages/{package.name}/CHANGELOG.md"] = f"packages/{package.name}-changelog.md"
    return found


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """The text with `change` applied to everything between blocks of code."""
    parts: list[tuple[bool, list[str]]] = [(False, [])]
    fence = ""
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if match and not fence:
            fence = match[1]
            parts.append((True, [line]))
            continue
        parts[-1][1].append(line)
        if match and match[1] == fence:
            fence = ""
            parts.append((False, []))
    blocks = ("\n".join(lines) if is_code else change("\n".join(lines)) for is_code, lines in parts if lines)
    return "\n".join(blocks)


def with_wide_lists(text: str) -> str:
    """The text with what belongs to a list's item indented by four per level, and an empty line before each list."""
    lines: list[str] = []
    items: list[int] = []  # the column at which the content of each open item begins
    fence, was_item = "", False
    for line in text.split("\n"):
        match = _FENCE.match(line)
        indent = len(line) - len(line.lstrip())
        item = _ITEM.match(line) if not fence else None
        if line.strip() and not fence:
            while items and indent < items[-1]:
                items.pop()
            if item:
                if not items and lines and lines[-1].strip() and not was_item:
                    lines.append("")
                place = "    " * len(items)
                items.append(len(item[0]))
                lines.append(f"{place}{item[2]} {line[len(item[0]) :]}")
                was_item = True
                continue
        was_item = bool(items)
        lines.append("    " * len(items) + line[items[-1] if items else 0 :] if line.strip() else line)
        if match:
            fence = "" if fence == match[1] else fence or match[1]
    return "\n".join(lines)


def title(page: Path) -> str:
    """The first heading of a page."""
    return re.findall(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)[0]


class Sources:
    """The folder that the site is built from.

    reference: the dotted names of the folders of code that have a page, with the pages' text.
    """

    def __init__(self, folder: Path, reference: dict[str, str]) -> None:
        self.folder = folder
        self.reference = reference
        self.homes = homes()
        self.wanted: set[str] = set()

    def write(self) -> None:
        """Writes every page of the repository, and every file that one of them links to."""
        self.write_pictures()
        shutil.copytree(ROOT / "docs" / "site", self.folder / "site")
        for source, place in self.homes.items():
            self.write_page(
                place, with_wide_lists(self.linked((ROOT / source).read_text("utf-8"), source, place))
            )
        for name in sorted(self.wanted):
            self.write_page(f"files/{name}.md", self.shown(name))

    def write_pictures(self) -> None:
        """docs/images, with large PNG as WebP: a page with its pictures should stay small."""
        from PIL import Image

        (self.folder / "images").mkdir()
        for path in sorted((ROOT / "docs" / "images").iterdir()):
            place = self.folder / "images" / path.name
            if path.name in LARGE_PNG:
                with Image.open(path) as picture:
                    picture.convert("RGB").save(place.with_suffix(".webp"), quality=80, method=4)
            else:
                shutil.copy(path, place)

    def write_page(self, place: str, text: str) -> None:
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def shown(self, name: str) -> str:
        """A page with a file of the repository, or with all files of a folder."""
        path = ROOT / name
        files = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.is_file())
        parts = [f"# {name}"]
        for file in files:
            if len(files) > 1:
                parts.append(f"## {file.name}")
            parts.append(
                f"````{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text('utf-8').rstrip()}\n````"
            )
        return "\n\n".join(parts) + "\n"

    def linked(self, text: str, source: str, place: str) -> str:
        """A page's text with its links, which are relative to `source`, made relative to `place`."""

        def lead(match: re.Match[str]) -> str:
            is_picture, text, address = match.groups()
            text = LINK.sub(lead, text)  # a picture may be a link
            target, _, anchor = address.partition("#")
            if "://" in address or not target:
                return f"{is_picture}[{text}]({address})"
            inside = PurePosixPath(os.path.normpath(PurePosixPath(source).parent / target)).as_posix()
            home, own_anchor = self.home(inside)
            there = PurePosixPath(os.path.relpath(home, PurePosixPath(place).parent)).as_posix()
            anchor = anchor or own_anchor
            if text.endswith(".md") and inside in self.homes:
                text = title(ROOT / inside)  # a reader of the site sees pages, not files
            return f"{is_picture}[{text}]({there}{'#' + anchor if anchor else ''})"

        made = outside_fences(text, lambda line: LINK.sub(lead, line))
        first = IMAGE.search(made)
        if first is None:
            return made
        rest = made[first.end() :]  # pictures further down are loaded when they are scrolled to
        later = outside_fences(rest, lambda line: IMAGE.sub(r"\g<0>{ loading=lazy }", line))
        return made[: first.end()] + later

    def home(self, target: str) -> tuple[str, str]:
        """Where a file or folder of the repository is on the site, and the anchor that it has there."""
        if target in self.homes:
            return self.homes[target], ""
        if target.removeprefix("docs/images/") in LARGE_PNG:
            return f"images/{Path(target).stem}.webp", ""
        if target.startswith("docs/"):
            return target.removeprefix("docs/"), ""
        code = re.fullmatch(r"packages/[\w-]+/src/(.+?)(\.py)?", target)
        if code:
            name = code[1].replace("/", ".").removesuffix(".__init__")
            page = name if name in self.reference else name.rpartition(".")[0]
            if page in self.reference:
                is_there = f"{{ #{name} }}" in self.reference[page]
                return f"reference/python/{page}.md", name if is_there and page != name else ""
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{target} is linked to, and is not in the repository")
        self.wanted.add(target)
        return f"files/{target}.md", ""
