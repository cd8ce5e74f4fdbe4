"""The metric `fvd`: the Fréchet distance of two folders' video features (Unterthiner et al. 2018).

The features come from a TorchScript file that the user gives, such as the I3D of Kinetics-400 that papers use. A
TorchScript file is a program: give only one whose source you trust.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ea_runtime.errors import UserError
from ea_runtime.evaluation.clip import Clip
from ea_runtime.settings import missing_path

_WHAT = "a TorchScript file: float (1, 3, T, H, W) in -1..1 -> features (1, D), such as I3D"
#: arguments of I3D in circulation, and what they are to be where a network has them: frames are scaled here
_ARGUMENTS = {"rescale": False, "resize": False, "return_features": True}


class FvdOptions(BaseModel):
    """network: the TorchScript file. frames: the first so many of each video. size: pixels of a side that they are
    scaled to. device: "cpu", "cuda"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: str = ""
    frames: int = Field(16, ge=1)
    size: int = Field(224, ge=8)
    device: str = "cpu"


class Fvd:
    """|m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^½) of means m and covariances S of the features; 0 for equal sets.

    It falls with the number of videos: compare figures of equally many, and no fewer than the width of the features.
    """

    def __init__(self, options: FvdOptions) -> None:
        self.options = options
        self._network: tuple[Any, dict[str, bool]] | None = None

    def missing(self) -> list[str]:
        """A line about the file if it is not there."""
        return missing_path("fvd", "network", self.options.network, _WHAT)

    def features(self, clip: Clip) -> np.ndarray:
        """(D,) of the first frames. Raises UserError for a clip that is too short, or a file that does not fit."""
        import torch
        from einops import rearrange
        from torch.nn.functional import interpolate

        count, size = self.options.frames, self.options.size
        if len(clip.frames) < count:
            raise UserError(f"fvd: it has {len(clip.frames)} frames, {count} are compared; set fvd.frames")
        network, arguments = self._network or self._load()
        frames = torch.from_numpy(clip.frames[:count]).to(self.options.device).float() / 127.5 - 1
        frames = rearrange(frames, "t h w c -> t c h w")
        frames = interpolate(frames, (size, size), mode="bilinear", align_corners=False, antialias=True)
        with torch.inference_mode():
            try:
                found = network(rearrange(frames, "t c h w -> 1 c t h w"), **arguments)
            except RuntimeError as error:
                raise UserError(
                    f"fvd: {self.options.network!r} does not take the frames: {_last(error)}"
                ) from error
        if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != 1:
            raise UserError(f"fvd: {self.options.network!r} must give features (1, D), got {_shape(found)}")
        return found[0].double().cpu().numpy()

    def distance(self, ours: np.ndarray, theirs: np.ndarray) -> float:
        """Of features (N, D) and (M, D). Raises UserError for fewer than two videos in a set."""
        if min(len(ours), len(theirs)) < 2:
            raise UserError(
                f"fvd: it needs two videos or more in each folder, got {len(ours)} and {len(theirs)}"
            )
        return frechet(ours, theirs)

    def _load(self) -> tuple[Any, dict[str, bool]]:
        import torch

        path = Path(self.options.network).expanduser()
        try:
            network = torch.jit.load(str(path), map_location=self.options.device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"fvd: {str(path)!r} is not {_WHAT}: {_last(error)}") from error
        names = {argument.name for argument in network.forward.schema.arguments}
        self._network = network, {name: value for name, value in _ARGUMENTS.items() if name in names}
        return self._network


def frechet(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The Fréchet distance of Gaussians fitted to (N, D) and (M, D)."""
    mean, other = ours.mean(0), theirs.mean(0)
    covariance, covariance_other = (np.atleast_2d(np.cov(one, rowvar=False)) for one in (ours, theirs))
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    # the eigenvalues of S1 S2 are those of S1^½ S2 S1^½, which is symmetric
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariance_other @ root), 0)).sum()
    distance = ((mean - other) ** 2).sum() + np.trace(covariance) + np.trace(covariance_other) - 2 * shared
    return max(0.0, float(distance))


def _last(error: Exception) -> str:
    """The last line of an error of TorchScript: those before it are a traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _shape(found: Any) -> str:
    return str(tuple(found.shape)) if hasattr(found, "shape") else type(found).__name__
