"""Marks in an output: how it was made, and that AI made it. Written into each kind of file by embed.py.

    container                 recipe                    for other programs            AI
    mp4, mov, webm            tag `ea`                  tags `parameters`, `comment`  XMP (webm: tag)
    png (and each of frames/) text chunk `ea`           text chunk `parameters`       XMP
    gif                       XMP                       comment                       XMP
    webp                      XMP                                                     XMP

The recipe is JSON. `parameters` is what Automatic1111's web UI writes, which other programs read. The XMP has IPTC's
digital source type "trained algorithmic media" (https://cv.iptc.org/newscodes/digitalsourcetype/).
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
CREATOR = "ea"

_NAMES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "ea": "urn:ea:recipe",
}
_RECIPE = re.compile(r"<ea:recipe>([^<]*)</ea:recipe>")
#: A file's XMP and text chunks are read up to this size.
MAX_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Marks:
    """recipe: JSON that makes the file again; "": left out, as are the other two. parameters: the same for other
    programs. comment: one line for people. The mark that AI made the file is always written."""

    recipe: str = ""
    parameters: str = ""
    comment: str = ""

    @property
    def tags(self) -> dict[str, str]:
        """The texts that are not empty, by the name that files have them under."""
        texts = {"ea": self.recipe, "parameters": self.parameters, "comment": self.comment}
        return {name: text for name, text in texts.items() if text}

    def xmp(self) -> bytes:
        """The XMP packet, UTF-8."""
        for prefix, address in _NAMES.items():
            ElementTree.register_namespace(prefix, address)
        meta = ElementTree.Element(_name("x", "xmpmeta"))
        rdf = ElementTree.SubElement(meta, _name("rdf", "RDF"))
        about = ElementTree.SubElement(rdf, _name("rdf", "Description"), {_name("rdf", "about"): ""})
        ElementTree.SubElement(about, _name("Iptc4xmpExt", "DigitalSourceType")).text = DIGITAL_SOURCE_TYPE
        ElementTree.SubElement(about, _name("xmp", "CreatorTool")).text = CREATOR
        if self.recipe:
            ElementTree.SubElement(about, _name("ea", "recipe")).text = self.recipe
        packet = ElementTree.tostring(meta, encoding="unicode")
        begin, end = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>', '<?xpacket end="r"?>'
        return f"{begin}{packet}{end}".encode()


def read_recipe(path: Path, kind: str) -> str | None:
    """The recipe in a file of a kind that output.KINDS names, or in the first of a folder of frames; None without one.

    Raises OSError and ValueError (also av's and Pillow's) for a file that cannot be read.
    """
    if kind in ("mp4", "mov", "webm"):
        import av

        with path.open("rb") as file, av.open(file) as container:
            tags = {name.lower(): text for name, text in container.metadata.items()}
        return tags.get("ea")
    if kind == "gif":  # whose XMP Pillow does not read; it comes before the first frame
        with path.open("rb") as file:
            return _in_xmp(file.read(MAX_BYTES))
    return _in_picture(path / "00000.png" if kind == "folder" else path)


def is_signed(path: Path) -> bool:
    """True if Content Credentials are in a file: their name is near its beginning or its end."""
    with path.open("rb") as file:
        head = file.read(1 << 20)
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        return any(b"c2pa" in part.lower() for part in (head, file.read()))


def _in_picture(path: Path) -> str | None:
    from PIL import Image

    with Image.open(path, formats=("PNG", "WEBP")) as picture:
        if picture.format == "PNG":
            picture.load()  # text may come after the pixels
        recipe, packet = picture.info.get("ea"), picture.info.get("xmp", b"")
    return str(recipe) if recipe else _in_xmp(packet[:MAX_BYTES])


def _in_xmp(packet: bytes) -> str | None:
    found = _RECIPE.search(packet.decode(errors="replace"))
    return None if found is None else html.unescape(found[1])


def _name(prefix: str, name: str) -> str:
    return f"{{{_NAMES[prefix]}}}{name}"
