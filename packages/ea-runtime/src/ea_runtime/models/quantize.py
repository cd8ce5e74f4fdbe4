"""Weights in fewer bits, as asked for: which parts, in which form, and how many bytes that takes. Imports no torch.

Forms: int8 and fp8 (torchao: one scale for each output channel), nf4 (bitsandbytes: blocks of 64 values of 4 bits,
whose scales are 8 bits), fp8-unscaled (fp8.py: e4m3 as it is, without a scale, which needs no package), and a GGUF file
with the denoiser's weights. What is computed stays in the pipeline's number
format: each layer's weight is brought back to it when the layer runs. Only linear layers within the repeated blocks
have that form; the first and last layers, the timestep's embedding and all convolutions keep theirs.

Asked for by arguments alone: a model folder that asks for quantisation is refused (config.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError, nearest
from ea_runtime.files.safe import is_file, quote

UNSCALED = "fp8-unscaled"
#: form -> the package that it needs
KINDS: dict[str, str | None] = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes", UNSCALED: None}
#: those that a plan may choose by itself for the denoiser, the closest to the plain result first
CHOSEN = ("int8", UNSCALED)
GGUF = ".gguf"
#: kinds of offloading that weights in fewer bits go with
QUANTIZED_OFFLOADS = ("none", "model")
#: part -> names of the tensors that change their form
_LAYERS = {
    "denoiser": re.compile(r"(transformer_blocks\..+|long_connect_fc\.\d+)\.weight"),
    "text": re.compile(r"encoder\.block\..+(?<!relative_attention_bias)\.weight"),
}
PARTS = tuple(_LAYERS)
#: bitsandbytes' blocks: values that share a scale, scales that share another, and its two tables
_BLOCK, _BLOCKS, _TABLES = 64, 256, 4 * (16 + 256 + 1)


@dataclass(frozen=True, slots=True)
class Quantize:
    """The forms asked for. kinds: part -> form, of KINDS. gguf: the file of the denoiser's weights."""

    kinds: Mapping[str, str] = field(default_factory=dict)
    gguf: Path | None = None

    @property
    def text(self) -> str:
        """As on the command line: "int8", or "denoiser=int8,text=nf4"."""
        whole = {**self.kinds, **({} if self.gguf is None else {"denoiser": str(self.gguf)})}
        if list(whole) == ["denoiser"]:
            return whole["denoiser"]
        return ",".join(f"{part}={kind}" for part, kind in sorted(whole.items()))

    @property
    def without_place(self) -> Quantize:
        """The same, with the file's name alone."""
        return Quantize(self.kinds, None if self.gguf is None else Path(self.gguf.name))

    def of(self, part: str) -> str | Path | None:
        """The form of a part: a name of KINDS, a file, or None: as it is."""
        return self.gguf if part == "denoiser" and self.gguf is not None else self.kinds.get(part)


def parse_quantize(value: Any) -> Quantize | None:
    """The forms that `quantize` asks for; None for None and "none".

    value: "int8", "fp8", "nf4", "fp8-unscaled" or a .gguf file, all of the denoiser; "denoiser=int8,text=nf4", or the
    same as a mapping. Raises UserError for an unknown name or part, a part without layers to quantise, and a missing
    file.
    """
    if value is None or isinstance(value, Quantize):
        return value
    pairs = list(value.items()) if isinstance(value, Mapping) else _pairs(value)
    kinds: dict[str, str] = {}
    gguf: Path | None = None
    seen: set[str] = set()
    for part, kind in pairs:
        _check_part(part)
        if part in seen:
            raise UserError(f"`quantize` names the {part} twice, got {quote(value)}; name it once")
        seen.add(part)
        if kind is None or kind == "none":
            continue
        if str(kind).lower().endswith(GGUF):
            gguf = _file(part, str(kind))
        elif kind in KINDS:
            kinds[part] = str(kind)
        else:
            known = (*KINDS, "none")
            raise UserError(
                f"`quantize` must be {', '.join(known[:-1])}, none or a .gguf file, got {quote(kind)}"
                f"{nearest(str(kind), known)}"
            )
    return Quantize(kinds, gguf) if kinds or gguf is not None else None


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, str):
        raise UserError(
            f"`quantize` must be {', '.join(KINDS)}, none, a .gguf file or a mapping of parts, got {quote(value)}"
        )
    if not any(value.startswith(f"{part}=") for part in (*PARTS, "vae")) and "," not in value:
        left, sign, _ = value.partition("=")
        if not sign or value.lower().endswith(GGUF):
            return [("denoiser", value)]
        return [(left, "")]
    pairs = [one.partition("=") for one in value.split(",")]
    return [(part, kind) if sign else ("denoiser", part) for part, sign, kind in pairs]


def _check_part(part: Any) -> None:
    if part in ("vae", "image_encoder"):
        raise UserError(
            f"`quantize` of the {part} is not possible: its weights are convolutions, and linear layers alone have "
            f"such a form; name {' or '.join(PARTS)}"
        )
    if part not in PARTS:
        raise UserError(
            f"`quantize` takes the parts {' and '.join(PARTS)}, got {quote(part)}{nearest(str(part), PARTS)}"
        )


def _file(part: str, name: str) -> Path:
    if part != "denoiser":
        raise UserError(
            f"`quantize` reads GGUF files of the denoiser, got {quote(name)} for the {part}; use int8"
        )
    if not is_file(Path(name)):
        raise UserError(f"`quantize` names the file {quote(name)}, which is not there; give a .gguf file")
    return Path(name)


def check_packages(quantize: Quantize) -> None:
    """Raises UserError if a package is missing that a form needs."""
    needed = {kind: package for kind, package in KINDS.items() if kind in quantize.kinds.values()}
    if quantize.gguf is not None:
        needed["GGUF"] = "gguf"
    for kind, package in needed.items():
        if not is_installed(package):
            works = (
                f"; what works here: {', '.join(other for other, one in KINDS.items() if is_installed(one))}"
            )
            raise UserError(
                f"`quantize` {kind} needs the package {package}; run `pip install 'ea-runtime[quantize]'`{works}"
            )


def is_installed(package: str | None) -> bool:
    """True if a package can be imported, without importing it; None: no package is needed."""
    if package is None:
        return True
    try:
        return find_spec(package) is not None
    except ValueError:  # it is in sys.modules without a spec
        return False


def takes(part: str, name: str, shape: tuple[int, ...], *, is_half: bool = False) -> bool:
    """True for a tensor whose form changes, by its name in the state dict.

    is_half: the network is in float16, where T5's `wo` stays float32.
    """
    pattern = _LAYERS.get(part)
    if pattern is None or len(shape) != 2 or not pattern.fullmatch(name):
        return False
    return not (is_half and part == "text" and ".wo." in name)


def stored_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a weight (rows, columns) in a form, with its scales."""
    rows, columns = shape
    if kind == "int8":
        return rows * (columns + 5)  # a float32 scale and an int8 zero a row
    if kind == "fp8":
        return rows * (columns + 4)
    if kind == UNSCALED:
        return rows * columns
    blocks = -(-rows * columns // _BLOCK)
    return -(-rows * columns // 2) + blocks + 4 * -(-blocks // _BLOCKS) + _TABLES


def restored_bytes(form: str | Path, stored: int, wide: int) -> int:
    """Bytes that are moved when a layer runs whose weight is in a form: it is brought back to its number format.

    stored, wide: bytes of the weight in its form, and in its number format.
    """
    if form == UNSCALED:
        return 2 * (stored + wide)  # and it is put away again
    if form == "nf4":
        return stored + wide
    return stored + 3 * wide  # numbers first, then times their scales


def check_engine(
    engine: str, quantize: Quantize | None, attention: str | None, offload: str = "none"
) -> None:
    """Raises UserError for what changes the layers of an engine that has none, its graphs are fixed, and for quantised
    weights that would wait elsewhere block by block."""
    if quantize is not None and offload not in QUANTIZED_OFFLOADS:
        raise UserError(
            f"`quantize` and `offload` {quote(offload)} cannot be combined; leave one of them out"
        )
    given = "quantize" if quantize is not None else "attention" if attention is not None else None
    if given is not None and engine != "torch":
        raise UserError(
            f"`{given}` needs engine 'torch', got {quote(engine)}, whose graphs are fixed; leave it out"
        )
