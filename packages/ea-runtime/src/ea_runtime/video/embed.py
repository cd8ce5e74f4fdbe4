"""Marks into the bytes of each format, where the library that writes the format cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ea_runtime.video.marks import Marks

#: The box that holds XMP, of ISO base media files (XMP specification part 3).
_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_WEBP_HAS_XMP = 0x04


def append_xmp_box(path: Path, marks: Marks) -> None:
    """Adds the XMP packet to the end of an mp4 or mov file, as a box of its own."""
    packet = marks.xmp()
    with path.open("ab") as file:
        file.write((24 + len(packet)).to_bytes(4, "big") + b"uuid" + _XMP_BOX + packet)


def append_webp_xmp(path: Path, marks: Marks) -> None:
    """Adds the XMP packet to the end of an animated WebP file, and says so in its header."""
    packet = marks.xmp()
    chunk = b"XMP " + len(packet).to_bytes(4, "little") + packet + b"\0" * (len(packet) % 2)
    with path.open("r+b") as file:
        head = file.read(21)
        assert head[8:16] == b"WEBPVP8X", "an animation has an extended header"
        size = int.from_bytes(head[4:8], "little") + len(chunk)
        file.seek(4)
        file.write(size.to_bytes(4, "little"))
        file.seek(20)
        file.write(bytes([head[20] | _WEBP_HAS_XMP]))
        file.seek(0, 2)
        file.write(chunk)


def gif_blocks(marks: Marks) -> bytes:
    """A GIF's extension blocks: a comment with the parameters, if any, and the XMP packet."""
    text = marks.parameters.encode()
    comment = b"".join(bytes([len(part)]) + part for part in _parts(text))
    comment = b"!\xfe" + comment + b"\0" if text else b""
    # a reader that knows no XMP takes its bytes for lengths of blocks, and from any of these gets to the end
    trailer = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    return comment + b"!\xff\x0bXMP DataXMP" + marks.xmp() + trailer


def png_chunks(marks: Marks) -> object:
    """Pillow's PngInfo with the marks as text chunks."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for name, text in marks.tags.items():
        if name == "comment":
            name = "Comment"  # as PNG's own list of keywords has it
        chunks.add_itxt(name, text) if not text.isascii() else chunks.add_text(name, text)
    chunks.add_itxt("XML:com.adobe.xmp", marks.xmp().decode())
    return chunks


def _parts(text: bytes) -> Iterator[bytes]:
    for start in range(0, len(text), 255):
        yield text[start : start + 255]
