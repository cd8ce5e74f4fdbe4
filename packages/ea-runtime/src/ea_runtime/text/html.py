"""The visible text of a prompt with HTML in it: Beautiful Soup's `.text`, in linear time."""

from __future__ import annotations

import re
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bs4.builder._htmlparser import HTMLParserTreeBuilder

# Before its security releases of 2025, html.parser reads an unclosed construct to the end of the text from
# every "<" again. Up to this much work (openings times characters) a text is parsed in one piece, past it in
# windows.
MAX_WORK = 1 << 20
WINDOW = 1024

_LONG_REFERENCE = re.compile(r"&#([0-9]{1000,})")


def visible_text(markup: str) -> str:
    """The text of `markup` without tags, comments and declarations, references resolved; in linear time.

    Differs from EasyAnimate: text with very many "<" (see MAX_WORK) is parsed in windows of about WINDOW
    characters, each cut before a "<"; and markup that the parser rejects (`<![x`, half of a surrogate pair)
    stays unchanged instead of raising.
    """
    if "<" not in markup and "&" not in markup:
        # all that the parser changes in such a text: nothing but white space is one space, or one line break
        return markup if not markup or markup.strip(" \n\t\f\r") else "\n" if "\n" in markup else " "
    from bs4 import BeautifulSoup
    from bs4.exceptions import ParserRejectedMarkup

    markup = shorten_references(markup)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it looks like a file name or an address
        try:
            return BeautifulSoup(markup, builder=_builder()()).text
        except (ParserRejectedMarkup, UnicodeEncodeError):  # the second: half of a surrogate pair
            return markup


@cache
def _builder() -> type[HTMLParserTreeBuilder]:
    """Beautiful Soup's builder on html.parser, fed in pieces; its import is not paid by texts without markup."""
    from bs4.builder._htmlparser import HTMLParserTreeBuilder

    class InPieces(HTMLParserTreeBuilder):
        def feed(self, markup: Any, *args: Any, **kwargs: Any) -> None:
            for piece in _pieces(markup):
                super().feed(piece, *args, **kwargs)

    return InPieces


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
