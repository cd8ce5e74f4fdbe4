"""The visible text of a prompt with HTML in it: what Beautiful Soup's `.text` gives, without its tree.

Both stand on Python's html.parser; what Beautiful Soup adds is kept here: which elements hide their text, how
white space between tags shrinks, how references become characters.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from html.entities import html5
from html.parser import HTMLParser

_HIDES_TEXT = frozenset({"rp", "rt", "script", "style", "template"})
_KEEPS_SPACES = frozenset({"pre", "textarea"})
_NEVER_CLOSED = frozenset(
    [
        "area",
        "base",
        "basefont",
        "bgsound",
        "br",
        "col",
        "command",
        "embed",
        "frame",
        "hr",
        "image",
        "img",
        "input",
        "isindex",
        "keygen",
        "link",
        "menuitem",
        "meta",
        "nextid",
        "param",
        "source",
        "spacer",
        "track",
        "wbr",
    ]
)
_ASCII_SPACES = " \n\t\f\r"

# Before its security releases of 2025, html.parser reads an unclosed construct to the end of the text from
# every "<" anew. Up to this much work (openings times characters) a text is parsed in one piece, past it in
# windows.
MAX_WORK = 1 << 20
WINDOW = 1024

_LONG_REFERENCE = re.compile(r"&#([0-9]{1000,})")


def visible_text(markup: str) -> str:
    """The text of `markup` without tags, comments and declarations, references resolved; in linear time.

    Differs from EasyAnimate: text with very many "<" (see MAX_WORK) is parsed in windows of about WINDOW
    characters, each cut before a "<"; and markup that html.parser rejects (`<![x`) stays unchanged instead of
    raising.
    """
    if "<" not in markup and "&" not in markup:
        # What remains of the parser here: a text of nothing but white space is one space, or one line break.
        return _shrink(markup) if markup else markup
    markup = shorten_references(markup)
    text = _VisibleText()
    for piece in _pieces(markup):
        parser = _Parser(text)
        try:
            parser.feed(piece)
            parser.close()
        except AssertionError:
            return markup
    return text.finish()


def shorten_references(text: str) -> str:
    """Cuts numeric character references of 1,000 digits and more to a few, keeping what they mean.

    Python refuses to read integers of more than 4,300 digits; here such a reference is either padded with
    zeros or far beyond the last character.
    """

    def shorter(match: re.Match[str]) -> str:
        digits = match[1].lstrip("0") or "0"
        return "&#" + (digits if len(digits) < 8 else "99999999")

    return _LONG_REFERENCE.sub(shorter, text)


def _pieces(markup: str) -> list[str]:
    if markup.count("<") * len(markup) <= MAX_WORK:
        return [markup]
    pieces, start = [], 0
    while start < len(markup):
        cut = len(markup)
        if cut - start > WINDOW:
            cut = markup.rfind("<", start + 1, start + WINDOW)
            if cut < 0:
                cut = markup.find("<", start + WINDOW)
            if cut < 0:
                cut = len(markup)
        # Nothing closes behind the last ">", so each "<" there stands alone.
        last = markup.rfind(">", start, cut) + 1 or start
        pieces += [markup[start:last], *re.findall(r"<[^<]*|[^<]+", markup[last:cut])]
        start = cut
    return pieces


def _shrink(data: str) -> str:
    if data.strip(_ASCII_SPACES):
        return data
    return "\n" if "\n" in data else " "


@cache
def _entities() -> dict[str, str]:
    table: dict[str, str] = {}
    for name, characters in sorted(html5.items()):
        table.setdefault(name.removesuffix(";"), characters)
    return table


def _character(reference: str) -> str:
    """The character of a numeric reference ("233", "xe9"); numbers below 256 are read as Windows-1252."""
    is_hex = reference[:1] in ("x", "X")
    number = int(reference[1:], 16) if is_hex else int(reference)
    if number == 0 or 0xD800 <= number < 0xE000 or number > 0x10FFFF:
        return "\N{REPLACEMENT CHARACTER}"
    if number < 256:
        return bytes([number]).decode("windows-1252", "ignore") or chr(number)
    return chr(number)


class _VisibleText:
    """Collects runs of character data and keeps those that a reader would see."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.run: list[str] = []
        self.open: list[str] = []
        self.num_open: Counter[str] = Counter()
        # Elements such as <br> are closed as they open; an end tag that follows all the same closes nothing
        # else.
        self.closed_early: Counter[str] = Counter()

    def end_run(self, is_visible: bool | None = None) -> None:
        """Ends a run. Visibility follows from the open elements unless it is given."""
        if not self.run:
            return
        data = "".join(self.run)
        self.run = []
        if not any(self.num_open[name] for name in _KEEPS_SPACES):
            data = _shrink(data)
        if is_visible is None:
            is_visible = not any(self.num_open[name] for name in _HIDES_TEXT)
        if is_visible:
            self.kept.append(data)

    def start(self, name: str) -> None:
        self.end_run()
        self.open.append(name)
        self.num_open[name] += 1

    def end(self, name: str) -> None:
        self.end_run()
        if self.num_open[name]:
            while True:
                last = self.open.pop()
                self.num_open[last] -= 1
                if last == name:
                    return

    def finish(self) -> str:
        self.end_run()
        return "".join(self.kept)


class _Parser(HTMLParser):
    """Turns html.parser's events into calls on a _VisibleText."""

    def __init__(self, text: _VisibleText) -> None:
        super().__init__(convert_charrefs=False)
        self.text = text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text.start(tag)
        if tag in _NEVER_CLOSED:
            self.text.end(tag)
            self.text.closed_early[tag] += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text.start(tag)
        self.text.end(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.text.closed_early[tag]:
            self.text.closed_early[tag] -= 1
        else:
            self.text.end(tag)

    def handle_data(self, data: str) -> None:
        self.text.run.append(data)

    def handle_charref(self, name: str) -> None:
        self.text.run.append(_character(name))

    def handle_entityref(self, name: str) -> None:
        self.text.run.append(_entities().get(name, f"&{name}"))

    def handle_comment(self, data: str) -> None:
        self._aside(data, is_visible=False)

    def handle_decl(self, decl: str) -> None:
        self._aside(decl, is_visible=False)

    def handle_pi(self, data: str) -> None:
        self._aside(data, is_visible=False)

    def unknown_decl(self, data: str) -> None:
        is_cdata = data.upper().startswith("CDATA[")
        self._aside(data[len("CDATA[") :] if is_cdata else data, is_visible=is_cdata)

    def _aside(self, data: str, *, is_visible: bool) -> None:
        self.text.end_run()
        self.text.run.append(data)
        self.text.end_run(is_visible)
