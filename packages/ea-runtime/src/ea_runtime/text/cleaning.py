"""Caption cleaning as EasyAnimate V2 does it (the rules of DeepFloyd IF, by way of PixArt), in linear time.

The published weights were trained on captions that went through these rules, oddities included, so a prompt
has to go through the same. The rules are applied in the order of `clean_once`, and then all over again.

V2 spells them all as regular expressions, of which six take time quadratic in the length (36 s for 32 KB).
Those six are written here so that no character is looked at more often than a fixed number of times; what
they give is the same.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote_plus

from ea_runtime.errors import UserError
from ea_runtime.text.html import shorten_references, visible_text

#: The longest prompt in UTF-8 bytes: some 25 times what 120 tokens hold, and cleaned within 0.2 s.
MAX_PROMPT_BYTES = 16 * 1024

# ftfy repairs a text of one line as a whole, in time that can grow with the square of its length. Pieces of
# this many characters bound that; 120 tokens are about 600 characters, so what the encoder sees is in the
# first piece.
REPAIR_CHARACTERS = 2048


def check_prompt(prompt: str, *, name: str = "prompt", max_bytes: int = MAX_PROMPT_BYTES) -> None:
    """Raises UserError for a prompt that is no string, takes more than `max_bytes` in UTF-8, or has no form in UTF-8.

    To be called before anything is done with a prompt from outside.
    """
    if not isinstance(prompt, str):
        raise UserError(f"`{name}` must be a string, got {type(prompt).__name__}")
    # A character takes at least one byte, so an oversized prompt is refused before it is encoded.
    is_long = len(prompt) > max_bytes
    size = len(prompt) if is_long else len(prompt.encode("utf-8", "surrogatepass"))
    if size > max_bytes:
        got = f"at least {size:,}" if is_long else f"{size:,}"
        raise UserError(
            f"`{name}` must take at most {max_bytes:,} bytes, got {got}; shorten it (only its "
            "first 120 tokens, about 600 characters, count)"
        )
    broken = next((place for place, char in enumerate(prompt) if "\ud800" <= char <= "\udfff"), None)
    if broken is not None:  # a byte of another encoding on the command line, or half of a pair in JSON
        raise UserError(
            f"`{name}` must be text in UTF-8, got {prompt[broken]!a} as character {broken + 1}; type it again, or "
            "save it as UTF-8"
        )


def clean_caption(caption: str) -> str:
    """V2's whole cleaning, two passes: lower case, without markup, addresses, file names and noise.

    Source: EasyAnimate V2, `_text_preprocessing`. The second pass is not idle: what the first uncovers (a
    comma that is now last, a reference that was escaped twice) goes too. Has no cap on the length: see
    `check_prompt`.
    """
    return clean_once(clean_once(caption))


def clean_once(caption: str) -> str:
    """One pass of the cleaning. Source: EasyAnimate V2, `_clean_caption`.

    Differs from EasyAnimate: never raises (V2 does on `<![x` and on numeric references of over 4,300 digits);
    mojibake is repaired in pieces of REPAIR_CHARACTERS instead of whole lines; see also
    `html.visible_text`.
    """
    text = unquote_plus(caption).strip().lower()
    text = text.replace("<person>", "person")
    text = _drop_addresses(text, _WEB_SCHEME)
    text = _drop_addresses(text, _WWW_SCHEME)
    text = visible_text(text)
    text = _apply(_BEFORE_FILE_NAMES, text)
    text = _drop_file_names(text)
    text = _apply(_AFTER_FILE_NAMES, text)
    if text.count("-") + text.count("_") > 3:  # this-is-a-slug, this_is_a_name
        text = text.replace("-", " ").replace("_", " ")
    text = _repair(text)
    text = html.unescape(shorten_references(html.unescape(shorten_references(text))))
    text = _apply(_AFTER_REPAIR, text)
    return _trim(text).strip()


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    replacement: str


def _apply(rules: tuple[_Rule, ...], text: str) -> str:
    for rule in rules:
        text = rule.pattern.sub(rule.replacement, text)
    return text


def _rules(*pairs: tuple[str, str]) -> tuple[_Rule, ...]:
    return tuple(_Rule(re.compile(pattern), replacement) for pattern, replacement in pairs)


_EXTENSION = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"

_BEFORE_FILE_NAMES = _rules(
    (r"@\w+", ""),  # nicknames
    ("[\u31c0-\u9fff]+", ""),  # CJK, from strokes to unified ideographs; kana and hangul stay
    # Everything that looks like a dash.
    (
        "[-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s++$", ""),  # article numbers; after `strip` only where something was dropped behind them
    (r"\\n", " "),  # a line break spelled out
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
)

_AFTER_FILE_NAMES = _rules(
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    # V2: \s+\.\s+ . A run of spaces is tried from its first one only, and not again from each of the others.
    (r"(?<!\s)\s++\.\s++", " "),
)

_AFTER_REPAIR = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]++\d++[a-zA-Z]++\b", ""),  # jc6640vc
    (r"\b\d++[a-zA-Z]++\d++\b", ""),  # 6640vc231
    (r"(?:worldwide\s++)?(?:free\s++)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_EXTENSION})(?:\simages?)?", ""),
    (r"\bpage\s++\d++\b", ""),
    # V2: \b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b . Whole words only, so no match need be given back.
    (r"\b\d*+[a-zA-Z]++\d++[a-zA-Z]++\d[a-zA-Z\d]*+\b", " "),
    # V2: \b\d+\.?\d*[xх×]\d+\.?\d*\b (the second x is Cyrillic). Ends in the order in which V2 tries them.
    (r"\b\d++(?:\.\d*+)?[xх×]\d++(?:\.\d++\b|\.\b|\b)", ""),
    (r"\b\s++:\s++", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)

_WEB_SCHEME = re.compile(r"\bhttps?:(?:/{1,3}|[a-zA-Z0-9%])")
_WWW_SCHEME = re.compile(r"\bwww:(?:/{1,3}|[a-zA-Z0-9%])")
_HOST = re.compile(r"[a-zA-Z0-9.\-]+")
_DOMAIN = re.compile(r"\.(?:com|co|ru|net|org|edu|gov|it)")
_PATH = re.compile(r"[\w/-]*")
_BOUNDARY = re.compile(r"\b")


class _Address(NamedTuple):
    """A host name with a domain: starts at any word boundary from `first` to before `dot`, ends at `end`."""

    first: int
    dot: int
    end: int

    def start(self, text: str, done: int) -> int | None:
        """The first word boundary that is left of it once the text up to `done` is spoken for."""
        low = max(self.first, done)
        match = _BOUNDARY.search(text, low, self.dot) if low < self.dot else None
        return match.start() if match and match.start() < self.dot else None


def _drop_addresses(text: str, scheme: re.Pattern[str]) -> str:
    """Drops `scheme` (http:// without what follows) and host names with their path (example.com/a).

    V2: \\b(?:SCHEME|[a-zA-Z0-9.\\-]+[.](?:com|co|...)[\\w/-]*\\b/?(?!@)), which scans a run of host
    characters again from each word boundary in it. A run has at most one match: it starts at the run's first
    boundary and takes the last domain that can end there.
    """
    kept: list[str] = []
    done = 0
    named = scheme.search(text)
    for address in _addresses(text):
        start = address.start(text, done)
        while named and start is not None and named.start() <= start:
            kept.append(text[done : named.start()])
            done = named.end()
            named = scheme.search(text, done)
            if start < done:
                start = address.start(text, done)
        if start is not None:
            kept.append(text[done:start])
            done = address.end
            if named and named.start() < done:
                named = scheme.search(text, done)
    while named:
        kept.append(text[done : named.start()])
        done = named.end()
        named = scheme.search(text, done)
    return "".join(kept) + text[done:]


def _addresses(text: str) -> Iterator[_Address]:
    if not _DOMAIN.search(text):
        return
    for run in _HOST.finditer(text):
        for domain in reversed(list(_DOMAIN.finditer(text, run.start() + 1, run.end()))):
            end = _address_end(text, domain.end())
            if end is not None:
                yield _Address(run.start(), domain.start(), end)
                break


def _address_end(text: str, start: int) -> int | None:
    """Where an address ends whose path may start at `start`: the last word boundary that no "@" follows."""
    match = _PATH.match(text, start)
    assert match, "an empty path matches"
    end = match.end()
    if _BOUNDARY.match(text, end) and text[end : end + 1] != "@":
        return end
    for place in range(end - 1, start - 1, -1):
        if _BOUNDARY.match(text, place):
            takes_slash = text[place] == "/" and text[place + 1 : place + 2] != "@"
            return place + 1 if takes_slash else place
    return None


_FILE_END = re.compile(rf"\.(?:{_EXTENSION})")


def _drop_file_names(text: str) -> str:
    """Drops each run of non-spaces up to the last file extension in it. V2: \\S+\\.(?:png|jpg|...)."""
    if not _FILE_END.search(text):
        return text

    def rest(run: re.Match[str]) -> str:
        ends = [end.end() for end in _FILE_END.finditer(run[0], 1)]
        return run[0][ends[-1] :] if ends else run[0]

    return re.sub(r"\S+", rest, text)


# "Ã" followed by "ƒ" is mojibake of "Ã", which again takes the next "ƒ": ftfy takes them one by one.
_ENDLESS_MOJIBAKE = re.compile("(Ã[ƒ\x83]{8})[ƒ\x83]+")


# what ftfy leaves as it is: its import takes longer than reading a prompt with a small encoder
_PLAIN = re.compile("[ -%'-~]*")


def _repair(text: str) -> str:
    """ftfy's repair of mojibake, widths, ligatures, quotes, line breaks and control characters; gives NFC."""
    if _PLAIN.fullmatch(text):
        return text
    import ftfy

    return ftfy.fix_text(_ENDLESS_MOJIBAKE.sub(r"\1", text), max_decode_length=REPAIR_CHARACTERS)


def _trim(text: str) -> str:
    """Trims both ends as V2 does. The text may still start or end with a space, which then shields it."""
    if len(text) > 2 and text[0] in "\"'" and text[-1] in "\"'":
        text = text[1:-1]
    if text and text[0] in "'_,-:;":
        text = text[1:]
    if text and text[-1] in "'_,-:+":
        text = text[:-1]
    return "" if re.fullmatch(r"\.\S+", text) else text
