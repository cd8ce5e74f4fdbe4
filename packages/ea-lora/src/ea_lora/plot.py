"""The norm of each block's change as a picture: one bar a block, the relative change behind it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote

if TYPE_CHECKING:
    from PIL import Image

    from ea_lora.verify import LoraReport

_ROW, _NAME, _BAR, _NUMBERS, _MARGIN = 16, 220, 420, 210, 12
_INK, _FAINT = "#282828", "#e1e1e1"
_DENOISER, _MOTION, _TEXT = "#3c6ebe", "#dc8c28", "#5a965a"


def draw_blocks(report: LoraReport) -> Image.Image:
    """Bars over blocks, scaled to the largest; blue: the denoiser, orange: its motion modules, green: text."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(11)
    height = 2 * _MARGIN + _ROW * (len(report.blocks) + 3)
    image = Image.new("RGB", (2 * _MARGIN + _NAME + _BAR + _NUMBERS, height), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    head = f"{Path(report.path).name}: norm of each block's change at weight 1 (and relative to its weights)"
    draw.text((_MARGIN, _MARGIN), head.encode("ascii", "replace").decode(), fill=_INK, font=font)
    moved = ", ".join(f"{what} {share:.2%}" for what, share in report.probe.items())
    probe = f"output on a fixed probe moves at weight {report.weight:g}: {moved}"
    line = probe if moved else "no probe of the output"
    draw.text((_MARGIN, _MARGIN + _ROW), line, fill=_INK, font=font)
    largest = max((block.norm for block in report.blocks), default=0.0) or 1.0
    for number, block in enumerate(report.blocks, 3):
        y = _MARGIN + number * _ROW
        colour = _TEXT if block.part == "text" else _MOTION if block.block.endswith(" motion") else _DENOISER
        name = block.block if block.part == "denoiser" else f"{block.part}: {block.block}"
        draw.text((_MARGIN, y), name[:36], fill=_INK, font=font)
        left = _MARGIN + _NAME
        draw.rectangle((left, y + 2, left + _BAR, y + _ROW - 4), fill=_FAINT)
        if block.norm > 0:
            right = left + max(1, round(_BAR * block.norm / largest))
            draw.rectangle((left, y + 2, right, y + _ROW - 4), fill=colour)
        text = f"{block.norm:.4g}   {block.relative:.2%}   {block.num_layers} layers"
        draw.text((left + _BAR + 8, y), text, fill=_INK, font=font)
    return image


def check_plot(path: Path) -> None:
    """Raises UserError for another ending than .png, and for a missing folder: before any work."""
    if path.suffix.lower() != ".png":
        raise UserError(f"`--plot` must end in .png, got {quote(path.name)}")
    if not path.parent.is_dir():
        raise UserError(
            f"`--plot` must be in an existing folder, got {quote(str(path))}; make the folder first"
        )


def save_plot(path: Path, report: LoraReport) -> None:
    """Write the picture. Raises UserError as `check_plot` does, and if it cannot be written."""
    check_plot(path)
    try:
        draw_blocks(report).save(path)
    except OSError as error:
        raise UserError(f"{quote(str(path))} cannot be written: {error.strerror or error}") from error
