"""The scorer `clip-aesthetic`: a linear head on CLIP's picture embedding, both from local files.

Fits the heads of LAION's aesthetic predictors (github.com/LAION-AI/aesthetic-predictor,
github.com/christophschuhmann/improved-aesthetic-predictor): one linear layer, or several with nothing between them,
which is how they were trained. Scores run from about 1 to 10.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from ea_data.options import Options
from ea_data.protocols import FrameRequest, Frames, Score
from ea_data.score.weights import read_state
from ea_runtime.errors import UserError
from ea_runtime.settings import missing_path
from ea_runtime.video.clip_pictures import normalisation, prepare

if TYPE_CHECKING:
    import torch

    from ea_runtime.evaluation.clip import Clip


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
        clip.ea_mean, clip.ea_std = normalisation(folder, "clip-aesthetic")
        return clip.to(self.options.device).eval(), head.to(self.options.device).eval()


class Aesthetic:
    """The metric `aesthetic`: this score of a finished video."""

    def __init__(self, options: ClipAestheticOptions) -> None:
        self._scorer = ClipAestheticScorer(options)

    def missing(self) -> list[str]:
        """One line for each file that is not there."""
        return [line.replace("clip-aesthetic", "aesthetic", 1) for line in self._scorer.missing()]

    def __call__(self, clip: Clip) -> float:
        """About 1 to 10. Raises UserError if the files do not fit."""
        request = self._scorer.needs
        count, frames = len(clip.frames), int(request.value)
        places = [min(count - 1, int((i + request.offset) * count / frames)) for i in range(frames)]
        seen = clip.frames[sorted(set(places))]
        return self._scorer(Frames(seen, np.zeros(len(seen))), {}).value


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


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", name))
