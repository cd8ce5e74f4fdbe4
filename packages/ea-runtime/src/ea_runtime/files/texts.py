"""Text files that people write: with or without a byte order mark, with the line ends of any system."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_text(data: bytes) -> str:
    """UTF-8, or UTF-16 that says so, without its byte order mark. Raises ValueError, one line, for anything else."""
    try:
        text = data.decode("utf-16") if data.startswith(_UTF16) else data.decode("utf-8-sig")
        if "\0" in text:  # UTF-16 or UTF-32 without a mark, or no text at all
            line = text.count("\n", 0, text.index("\0")) + 1
            raise ValueError(
                f"line {line} holds zero bytes, which text in UTF-8 does not; save the file as UTF-8"
            )
        return text
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8 text; save the file as UTF-8") from None


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file, line ends as they are. Raises OSError, and `decode_text`'s ValueError."""
    return decode_text(Path(path).read_bytes())


def lines_of(text: str) -> list[str]:
    r"""Lines as editors see them: they end with \n or \r\n, and not with U+2028 or a form feed, as for `splitlines`.

    They end with \r in a text that has no \n, as old programs for the Mac write it.
    """
    lines = text.split("\n" if "\n" in text else "\r")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
