"""The header of a GGUF file, read without trusting a byte of it: names, types, shapes and places of its tensors.

diffusers' functions bring the values back to numbers (gguf_layers.py). Only the types that those know are taken.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ea_runtime.errors import UserError
from ea_runtime.files.safe import plain, quote

MAGIC = b"GGUF"
VERSIONS = (2, 3)
#: type -> its name, values in a block, bytes of a block
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}
#: types that are numbers already
PLAIN = ("F32", "F16", "BF16")
MAX_HEADER, MAX_TENSORS, MAX_KEYS, MAX_TEXT, MAX_DIMENSIONS = 64 << 20, 100_000, 10_000, 1 << 20, 8
#: a key's value: type -> its bytes
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST, _UINT32, _ALIGNMENT = 8, 9, 4, "general.alignment"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor. kind: a name of TYPES. shape: as torch has it. begin, size: its bytes in the file."""

    kind: str
    type: int
    shape: tuple[int, ...]
    begin: int
    size: int

    @property
    def is_plain(self) -> bool:
        """True if its values are numbers, not blocks of few bits."""
        return self.kind in PLAIN


def read_gguf(path: Path) -> dict[str, GgufTensor]:
    """The tensors of a GGUF file by name. Raises UserError, in one line, for a file that is damaged or cut short."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _read(_Reader(file, size), size)
    except OSError as error:
        raise UserError(f"GGUF file {quote(path.name)} cannot be read: {error.strerror or error}") from error
    except (ValueError, OverflowError, struct.error) as error:
        raise UserError(
            f"GGUF file {quote(path.name)} is damaged or cut short: {plain(error, 200)}; copy it again"
        ) from error


def gguf_bytes(path: Path) -> dict[str, int]:
    """Bytes of the tensors in few bits, by name. Raises UserError as `read_gguf`."""
    return {name: one.size for name, one in read_gguf(path).items() if not one.is_plain}


class _Reader:
    """Numbers and texts from the beginning of a file, within bounds."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.position = file, size, 0

    def take(self, count: int) -> bytes:
        if not 0 <= count <= MAX_HEADER or self.position + count > min(self.size, MAX_HEADER):
            raise ValueError("its header does not end within the file")
        self.position += count
        return self.file.read(count)

    def number(self, form: str) -> int:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > MAX_TEXT:
            raise ValueError(f"it has a text of {length:,} bytes")
        return self.take(length).decode("utf-8")

    def value(self, kind: int) -> bytes | None:
        """A key's value as bytes; texts and lists are skipped."""
        if kind in _SIZES:
            return self.take(_SIZES[kind])
        if kind == _TEXT:
            self.text()
        elif kind == _LIST:
            inner, count = self.number("I"), self.number("Q")
            if inner in _SIZES:
                self.take(_SIZES[inner] * count)
            elif inner == _TEXT and count <= MAX_TEXT:
                for _ in range(count):
                    self.text()
            else:
                raise ValueError(f"it has a list of type {inner} with {count:,} items")
        else:
            raise ValueError(f"it has a value of type {kind}")
        return None


def _read(file: _Reader, size: int) -> dict[str, GgufTensor]:
    if file.take(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = file.number("I")
    if version not in VERSIONS:
        raise ValueError(f"it is of version {version}, and {' and '.join(map(str, VERSIONS))} are read")
    num_tensors, num_keys = file.number("Q"), file.number("Q")
    if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
        raise ValueError(f"it would have {num_tensors:,} tensors and {num_keys:,} keys")
    alignment = 32
    for _ in range(num_keys):
        key, kind = file.text(), file.number("I")
        value = file.value(kind)
        if key == _ALIGNMENT and kind == _UINT32 and value is not None:
            alignment = int.from_bytes(value, "little")
    if alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 16:
        raise ValueError(f"its alignment is {alignment}")
    entries = [_entry(file) for _ in range(num_tensors)]
    start = -(-file.position // alignment) * alignment
    found: dict[str, GgufTensor] = {}
    for name, kind, shape, offset in entries:
        if name in found:
            raise ValueError(f"it names tensor {quote(name)} twice")
        title, block, width = TYPES[kind]
        length = math.prod(shape) // block * width
        if start + offset + length > size:
            raise ValueError(f"tensor {quote(name)} ends after the file, of {size:,} bytes")
        found[name] = GgufTensor(title, kind, shape, start + offset, length)
    return found


def _entry(file: _Reader) -> tuple[str, int, tuple[int, ...], int]:
    name, dimensions = file.text(), file.number("I")
    if dimensions > MAX_DIMENSIONS:
        raise ValueError(f"tensor {quote(name)} has {dimensions} dimensions")
    shape = tuple(reversed([file.number("Q") for _ in range(dimensions)]))  # the fastest comes first there
    kind, offset = file.number("I"), file.number("Q")
    if kind not in TYPES:
        known = ", ".join(title for title, _, _ in TYPES.values())
        raise ValueError(f"tensor {quote(name)} is of type {kind}, and {known} are read")
    title, block, _ = TYPES[kind]
    if math.prod(shape) >= 1 << 40 or (shape and shape[-1] % block):
        raise ValueError(f"tensor {quote(name)} of type {title} has shape {list(shape)}")
    return name, kind, shape, offset
