"""The page's files as they are on disk: size, words, addresses, and no way from text to HTML."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ea_runtime

PAGE = Path(ea_runtime.__file__).parent / "serve" / "page"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(PAGE.iterdir())}
LIMIT = 60_000

#: ways from a text to HTML or code
UNSAFE = (
    "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "createContextualFragment",
    "setHTMLUnsafe", "srcdoc", "eval(", "new Function", "javascript:",
)  # fmt: skip
#: the one namespace that an SVG file must name; nothing is fetched from it
NAMESPACE = 'xmlns="http://www.w3.org/2000/svg"'


def bytes_of(files: dict[str, str]) -> int:
    return sum(len(text.encode()) for text in files.values())


def table_of(files: dict[str, str]) -> dict[str, list[str]]:
    """The table of words, which is JSON behind `export default`."""
    return json.loads(files["table.js"].removeprefix("export default").strip().removesuffix(";"))


def word_problems(files: dict[str, str]) -> list[str]:
    """Rows of the table without a language, with other places to fill in; keys that are missing or not used."""
    table = table_of(files)
    problems = []
    for key, row in table.items():
        if len(row) != 2 or not row[1].strip() or (not row[0].strip() and key != "prompt.hint"):
            problems.append(f"{key}: a language is missing")
        elif len({tuple(sorted(re.findall(r"\{\w+\}", words))) for words in row}) != 1:
            problems.append(f"{key}: the languages fill in other things")
    code = "\n".join(text for name, text in files.items() if name.endswith(".js") and name != "table.js")
    used = set(re.findall(r'\bt\("([^"]+)"', code))
    used |= set(re.findall(r"data-[tl]=\"?([\w.]+)", files["index.html"]))
    used |= set(re.findall(r"data-param=\"?([\w.]+)", files["index.html"]))  # the form makes their labels
    used |= set(
        re.findall(r'^\t\["(\w+)",', files["settings.js"], re.M)
    )  # rows of settings, and two of the result
    used |= set(re.findall(r'rows\.push\(.*\["(\w+)",', files["result.js"]))
    used |= set(re.findall(r't\(\w+ \? "([\w.]+)"', code)) | set(
        re.findall(r't\(\w+ \? "[\w.]+" : ?"([\w.]+)"', code)
    )
    prefixes = set(re.findall(r"\bt\(`([\w]+\.)\$\{", code))
    problems += [f"{key}: used, but not in the table" for key in sorted(used - table.keys())]
    problems += [
        f"{prefix}: no key begins so" for prefix in prefixes if not any(k.startswith(prefix) for k in table)
    ]
    unused = [key for key in table if key not in used and not key.startswith(tuple(prefixes))]
    return problems + [f"{key}: in the table, but not used" for key in unused]


def foreign_addresses(files: dict[str, str]) -> list[str]:
    found = [
        (name, url)
        for name, text in files.items()
        for url in re.findall(r"(?:\w+:)?//[\w.-]+\.\w+", text.replace(NAMESPACE, ""))
    ]
    return [f"{name}: {url}" for name, url in found]


def unsafe_ways(files: dict[str, str]) -> list[str]:
    """Calls that turn text into HTML or code, and what the content security policy would block."""
    found = [f"{name}: {way}" for name, text in files.items() for way in UNSAFE if way in text]
    html = files["index.html"]
    found += [f"index.html: {tag}" for tag in re.findall(r"<script(?![^>]*src=)[^>]*>|<style[^>]*>", html)]
    return found + [f"index.html: {place}" for place in re.findall(r"\s(?:style|on\w+)=", html)]


def missing_files(files: dict[str, str]) -> list[str]:
    """Names that the page asks for and that are not there, and files that nothing asks for."""
    named = {"index.html"} | set(re.findall(r"/static/([\w.-]+)", files["index.html"]))
    for name, text in files.items():
        if name.endswith(".js"):
            named |= set(re.findall(r'from "\./([\w.-]+)"', text))
    return sorted(named.symmetric_difference(files))


def test_all_files_together_are_under_60_kb() -> None:
    assert bytes_of(FILES) < LIMIT
    assert bytes_of(FILES | {"more.js": "x" * LIMIT}) >= LIMIT


def test_both_languages_have_all_words_and_every_word_is_used() -> None:
    assert word_problems(FILES) == []


def test_a_word_that_is_missing_or_not_used_is_found() -> None:
    table = table_of(FILES)
    generate = table.pop("generate")
    assert word_problems(FILES | {"table.js": "export default " + json.dumps(table)}) == [
        "generate: used, but not in the table"
    ]
    table |= {"generate": [generate[0], ""], "left": ["about {time} left", "{zeit}"], "spare": ["a", "b"]}
    assert word_problems(FILES | {"table.js": "export default " + json.dumps(table)}) == [
        "left: the languages fill in other things",
        "generate: a language is missing",
        "spare: in the table, but not used",
    ]


def test_no_file_names_another_host() -> None:
    assert foreign_addresses(FILES) == []
    assert foreign_addresses({"a.css": "@import '//fonts.example.com/a.css'"}) == [
        "a.css: //fonts.example.com"
    ]
    assert foreign_addresses({"a.js": 'fetch("https://example.org/x")'}) == ["a.js: https://example.org"]


def test_no_text_becomes_html_and_nothing_is_inline() -> None:
    assert unsafe_ways(FILES) == []
    broken = FILES | {
        "dom.js": "node.innerHTML = text",
        "index.html": '<p style="color: red"><script>1</script>',
    }
    assert unsafe_ways(broken) == ["dom.js: innerHTML", "index.html: <script>", "index.html:  style="]


def test_every_file_is_asked_for_and_there() -> None:
    assert missing_files(FILES) == []
    assert missing_files({name: text for name, text in FILES.items() if name != "dom.js"}) == ["dom.js"]
    assert missing_files(FILES | {"left.js": ""}) == ["left.js"]
