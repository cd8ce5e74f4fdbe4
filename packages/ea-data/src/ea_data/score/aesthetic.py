"""The scorer `clip-aesthetic`: a linear head on CLIP's picture embedding, both from local files.

Fits the heads of LAION's aesthetic predictors (github.com/LAION-AI/aesthetic-predictor,
github.com/christophschuhmann/improved-aesthetic-predictor): one linear layer, or several with nothing between them,
which is how they were trained. Scores run from about 1 to 10.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from ea_data.options import Options
from ea_data.protocols import FrameRequest, Frames, Score
from ea_data.score.weights import missing_path, read_state
from ea_runtime.errors import UserError

if TYPE_CHECKING:
    import torch

#: CLIP's own normalisation, if its folder names none.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipAestheticOptions(Options):
    """clip: folder of a CLIP model as transformers saves it. head: .safetensors or .pth of linear layers.

    frames: how many for each clip, at (i + offset) / frames of it. device: "cpu", "cuda", ...
    """

    clip: str = ""
    head: str = ""
    frames: int = Field(4, ge=1)
    offset: float = Field(0.5, ge=0, lt=1)
    device: str = "cpu"


class ClipAestheticScorer:
    """value: the mean over the frames. values: one for each frame."""

    version = "1"
    cost = 2000.0

    def __init__(self, options: ClipAestheticOptions) -> None:
        self.options = options
        self.needs = FrameRequest("even", options.frames, offset=options.offset)
        self._networks: tuple[Any, torch.nn.Module] | None = None

    def missing(self) -> list[str]:
        return [
            *missing_path("clip-aesthetic", "clip", self.options.clip, "the folder of a CLIP model"),
            *missing_path("clip-aesthetic", "head", self.options.head, "the linear head's state dict"),
        ]

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """frames.pixels: uint8 (N, H, W, 3). Raises UserError if the files do not fit."""
        import torch

        if self._networks is None:
            self._networks = self._load()
        clip, head = self._networks
        pixels = np.stack([prepare(one, clip.ea_size, clip.ea_mean, clip.ea_std) for one in frames.pixels])
        with torch.inference_mode():
            # N 3 S S -> N D
            embeds = clip(torch.from_numpy(pixels).to(self.options.device)).image_embeds.float()
            scores = head(embeds / embeds.norm(dim=-1, keepdim=True))[:, 0].cpu().tolist()
        values = tuple(round(score, 6) for score in scores)
        return Score(round(float(np.mean(values)), 6), values)

    def _load(self) -> tuple[Any, torch.nn.Module]:
        if lines := self.missing():
            raise UserError("; ".join(lines))
        from transformers import CLIPVisionModelWithProjection

        folder = Path(self.options.clip).expanduser()
        try:
            clip: Any = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"clip-aesthetic: {str(folder)!r} cannot be loaded as CLIP: {error}") from error
        head = read_head(Path(self.options.head), clip.config.projection_dim)
        clip.ea_size = clip.config.image_size
        clip.ea_mean, clip.ea_std = _normalisation(folder)
        return clip.to(self.options.device).eval(), head.to(self.options.device).eval()


def read_head(path: Path, width: int) -> torch.nn.Module:
    """The linear layers of a file, in order of their numbers, as one module: (N, width) -> (N, 1).

    Raises UserError if they do not form a chain from `width` to 1.
    """
    import torch

    state = read_state(path)
    names = sorted((name.removesuffix("weight") for name in state if name.endswith("weight")), key=_numbers)
    sizes = [tuple(state[f"{name}weight"].shape) for name in names]  # (out, in)
    fits = bool(sizes) and all(
        len(size) == 2 and f"{n}bias" in state for n, size in zip(names, sizes, strict=True)
    )
    if not fits or len(state) != 2 * len(names):
        raise UserError(
            f"clip-aesthetic: {str(path)!r} must hold linear layers alone, got {sorted(state)[:4]}"
        )
    chain = [width, *(size[0] for size in sizes)]
    if any(size[1] != before for size, before in zip(sizes, chain, strict=False)) or chain[-1] != 1:
        raise UserError(
            f"clip-aesthetic: the head {str(path)!r} must lead from {width} (this CLIP's width) to 1, "
            f"got layers {' -> '.join(f'{i}x{o}' for o, i in sizes)}"
        )
    layers = [torch.nn.Linear(i, o) for i, o in pairwise(chain)]
    for layer, name in zip(layers, names, strict=True):
        layer.load_state_dict({"weight": state[f"{name}weight"], "bias": state[f"{name}bias"]})
    return torch.nn.Sequential(*layers)


def prepare(frame: np.ndarray, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """uint8 (H, W, 3) -> float32 (3, size, size): shorter side to `size`, bicubic, centre cut, normalised."""
    from PIL import Image

    height, width = frame.shape[:2]
    scale = size / min(height, width)
    wide, high = max(size, int(width * scale)), max(size, int(height * scale))
    image = Image.fromarray(frame).resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255  # S S 3
    pixels = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return _MEAN, _STD
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        mean, std = tuple(config.get("image_mean", _MEAN)), tuple(config.get("image_std", _STD))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"clip-aesthetic: {str(file)!r} cannot be read: {error}") from error
    is_right = len(mean) == len(std) == 3 and all(isinstance(value, int | float) for value in mean + std)
    if not is_right or not all(std):
        raise UserError(f"clip-aesthetic: image_mean and image_std in {str(file)!r} must be three numbers")
    return mean, std


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", name))
