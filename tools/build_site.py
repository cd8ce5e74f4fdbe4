"""Builds the site of the documentation: `uv run poe site`.

Gathers the pages (site_pages.py), writes the reference from docstrings (site_reference.py) and `--help`
(site_commands.py), runs Zensical with every warning an error, and checks the result (site_check.py). Nothing is
fetched. To read it, search included: `python -m http.server --directory build/docs/site`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import site_check
import site_commands
import site_reference
from site_pages import ROOT, Sources

CONFIG = "zensical.toml"
#: tokens that have the colour of plain code: names, punctuation, spaces, operators
_PLAIN = re.compile(r'<span class="(?:n|p|w|o)">([^<]*)</span>')
_PRE = re.compile(r"(<pre.*?</pre>)", re.DOTALL)


def write_sources(folder: Path) -> None:
    """Everything that Zensical reads but its config."""
    python: dict[str, str] = {}
    for source in sorted(ROOT.glob("packages/*/src")):
        python |= site_reference.pages(source)
    sources = Sources(folder, python)
    sources.write()
    for name, text in python.items():
        sources.write_page(f"reference/python/{name}.md", text)
    rows = "\n".join(f"- [`{name}`]({name}.md)" for name in python)
    about = "Made from the docstrings. Names that start with `_` are left out; what is promised to stay is in"
    sources.write_page(
        "reference/python/index.md",
        f"# Python\n\n{about} [Stability](../../stability.md).\n\n{rows}\n"
        if (ROOT / "docs/stability.md").is_file()
        else f"# Python\n\nMade from the docstrings. Names that start with `_` are left out.\n\n{rows}\n",
    )
    found = site_commands.commands()
    top = {words: command for words, command in found.items() if " " not in words}
    for words, command in top.items():
        sources.write_page(f"reference/commands/{words}.md", site_commands.page(words, command))
    rows = "\n".join(
        f"| [`ea {words}`]({words}.md) | {site_commands.summary(one)} |" for words, one in top.items()
    )
    sources.write_page(
        "reference/commands/index.md",
        f"# Commands\n\nMade from what `ea COMMAND --help` shows.\n\n| Command | |\n|---|---|\n{rows}\n",
    )


def build(work: Path) -> Path:
    """The site's folder, in `work`, which is emptied first. Raises SystemExit with what is wrong."""
    shutil.rmtree(work, ignore_errors=True)
    sources = work / "sources"
    sources.mkdir(parents=True)
    write_sources(sources)
    shutil.copy(ROOT / CONFIG, work / CONFIG)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", CONFIG]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode or "No issues found" not in done.stdout + done.stderr:
        sys.exit(f"zensical:\n{done.stdout}{done.stderr}")
    finish(work / "site")
    return work / "site"


def finish(site: Path) -> None:
    """Empty heads of tables as plain cells, for screen readers; smaller pages, without indentation and without marks
    around code that has no colour; an index of search with the reference's titles alone."""
    for path in site.rglob("*.html"):
        parts = _PRE.split(path.read_text(encoding="utf-8").replace("<th></th>", "<td></td>"))
        parts[1::2] = [_PLAIN.sub(r"\1", part) for part in parts[1::2]]
        parts[::2] = [re.sub(r"\n\s+", "\n", part) for part in parts[::2]]
        text = "".join(parts)
        if (site / "zh") in path.parents:
            text = text.replace('<html lang="en"', '<html lang="zh"', 1)
        path.write_text(text, encoding="utf-8")
    index = json.loads((site / "search.json").read_text(encoding="utf-8"))
    # text and methods of the reference are four fifths of the index, which every reader of the site loads
    is_code = ("reference/python/", "files/")
    index["items"] = [
        item | {"text": "", "path": []} if item["location"].startswith(is_code) else item
        for item in index["items"]
        if item["level"] <= 3 or not item["location"].startswith(is_code)
    ]
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":"))
    (site / "search.json").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "docs", help="emptied; gets sources and site"
    )
    given = parser.parse_args()
    site = build(given.work.resolve())
    report = site_check.check(site)
    if report.problems:
        sys.exit("\n".join(report.problems))
    print(
        f"{site}: {report.num_pages} pages, {report.num_links} links, 0 warnings; largest page {report.largest}"
    )


if __name__ == "__main__":
    main()
