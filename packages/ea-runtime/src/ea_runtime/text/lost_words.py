"""Words of a caption that V2's cleaning removes, so that nobody waits for what the text encoder never saw."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable
from urllib.parse import unquote_plus

from ea_runtime.files.safe import plain
from ea_runtime.text.cleaning import clean_caption

_WORD = re.compile(r"[^\W_]+")
_EDGES = " \t.,;:!?\"'()[]{}"
#: Captions of a large set that are cleaned for a line; `ea data doctor` looks at all.
LOOKED_AT = 2000
#: Words that a line names.
NAMED = 5


def lost_words(caption: str, cleaned: str | None = None) -> list[str]:
    """Words of a caption, split at spaces, that are not whole in the cleaned one: ["gr4ph1c"], in order.

    cleaned: `clean_caption(caption)`, if it is known already. Case, punctuation, markup that is escaped, and
    mojibake that is repaired are no losses.
    """
    import ftfy

    left = Counter(_WORD.findall(clean_caption(caption) if cleaned is None else cleaned))
    lost = []
    for part in caption.split():
        words = _WORD.findall(ftfy.fix_text(html.unescape(unquote_plus(part).lower())))
        gone = Counter(words) - left
        left -= Counter(words)
        if gone:
            lost.append(part.strip(_EDGES) or part)
    return lost


def tell_lost_words(captions: Iterable[str], what: str = "captions") -> str | None:
    """A line about all words that cleaning removes from the captions, the frequent ones first; None if it keeps all."""
    number, affected, words = 0, 0, Counter[str]()
    for caption in captions:
        lost = lost_words(caption)
        number += 1
        affected += bool(lost)
        words.update(dict.fromkeys(lost, 1))
    if not affected:
        return None
    named = ", ".join(plain(word, 40) for word, _ in words.most_common(NAMED))
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    share = f"{affected} of {number} {what}" if number > 1 else f"the {what}"
    return (
        f"cleaning as in EasyAnimate V2 removes words from {share}: {named}{more}; the text encoder does not see "
        "them, so write them in other words"
    )
