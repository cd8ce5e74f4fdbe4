"""What a bundle says of its size, read before torch is imported. Nothing is trusted: opening it checks it all."""

from __future__ import annotations

import os
from pathlib import Path

from ea_runtime.errors import UserError
from ea_runtime.safe_files import quote_path, read_json


def read_size(folder: str | os.PathLike[str]) -> dict[str, int]:
    """num_frames, height, width. Raises UserError where the folder is no bundle."""
    path = Path(folder)
    size = read_json(path, "ea-bundle.json").get("size")
    try:
        return {name: int(size[name]) for name in ("num_frames", "height", "width")}  # pyright: ignore[reportOptionalSubscript]
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"ea-bundle.json of {quote_path(path)} is damaged; export it again") from error
