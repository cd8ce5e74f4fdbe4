"""The scorer `raft`: motion by RAFT (Teed and Deng, 2020, arXiv:2003.12039), torchvision's network, local weights.

Random or foreign weights give numbers too, but meaningless ones. So the weights must be given and must fit the network
exactly, and before the first score the network must find the known shift of a trial picture.
"""

from __future__ import annotations

import logging
import math
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from ea_data.options import Options
from ea_data.protocols import FrameRequest, Frames, Score
from ea_data.score.motion import Strongest
from ea_data.score.weights import load_weights
from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.settings import missing_path

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

#: The shift of the trial picture in pixels (right, down), and how far off its median may be.
TRIAL_SHIFT = (6, -4)
TRIAL_ERROR = 1.5
_INSTALL = "raft: torchvision is not installed; install the one that was built for your torch"


class RaftOptions(Options):
    """weights: state dict of torchvision's raft_large or raft_small (.safetensors or .pth), a local file.

    fps: frames per second that are compared. max_side: pixels that the longer side is scaled down to. updates: of the
    flow, per pair. batch: pairs at once, without effect on scores. device: "cpu", "cuda", ...
    """

    weights: str = ""
    model: Literal["large", "small"] = "large"
    fps: float = Field(4.0, gt=0)
    max_side: int = Field(520, ge=128)
    updates: int = Field(12, ge=1, le=32)
    batch: int = Field(8, ge=1)
    device: str = "cpu"


class RaftScorer:
    """Mean flow between neighbouring frames in frame diagonals per second; the clip's value is the mean over its pairs.

    network: for tests, a module with the call of torchvision's RAFT: (before, after, num_flow_updates=) of float
    (B, 3, H, W) in -1..1 -> list of flows (B, 2, H, W) in pixels, the last of which counts.
    """

    version = "1"
    cost = 20_000.0
    videos_only = True

    def __init__(self, options: RaftOptions, network: torch.nn.Module | None = None) -> None:
        self.options = options
        self.needs = FrameRequest("fps", options.fps, options.max_side)
        self._network = network
        self._is_tried = False

    def missing(self) -> list[str]:
        lines = missing_path("raft", "weights", self.options.weights, "torchvision's raft_large state dict")
        return lines if find_spec("torchvision") or self._network is not None else [_INSTALL, *lines]

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """frames.pixels: uint8 (N, H, W, 3). Raises UserError if the network does not measure motion."""
        network = self._ready()
        pixels, lengths, strongest = frames.pixels, [], Strongest()
        for start in range(0, len(pixels) - 1, self.options.batch):
            stop = min(len(pixels) - 1, start + self.options.batch)
            flows = self._flow(network, pixels[start:stop], pixels[start + 1 : stop + 1])  # B 2 H W
            lengths += [
                strongest(field.transpose(1, 2, 0), second)
                for field, second in zip(flows, frames.seconds[start:stop], strict=True)
            ]
        return strongest.diagonal_score(lengths, frames)

    def _ready(self) -> torch.nn.Module:
        if self._network is None:
            self._network = self._load()
        if not self._is_tried:
            self._try_out(self._network)
            self._is_tried = True
        return self._network

    def _load(self) -> torch.nn.Module:
        if lines := self.missing():
            error = MissingPackageError if _INSTALL in lines else UserError
            raise error("; ".join(lines))
        flow = import_module("torchvision.models.optical_flow")
        network = getattr(flow, f"raft_{self.options.model}")(weights=None)
        load_weights(network, Path(self.options.weights), f"torchvision's raft_{self.options.model}")
        return network.to(self.options.device).eval()

    def _flow(self, network: torch.nn.Module, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) twice -> flow (B, 2, H, W) in pixels."""
        import torch
        from torch.nn.functional import pad

        height, width = before.shape[1:3]
        # RAFT needs sides that are multiples of 8, of 128 or more
        more = [max(128, -(-side // 8) * 8) - side for side in (height, width)]
        with torch.inference_mode():
            pair = [
                pad(_tensor(pixels, self.options.device), (0, more[1], 0, more[0]), mode="replicate")
                for pixels in (before, after)
            ]
            flow = network(*pair, num_flow_updates=self.options.updates)[-1]
        return flow[:, :, :height, :width].float().cpu().numpy()

    def _try_out(self, network: torch.nn.Module) -> None:
        """Raises UserError unless the network finds the shift of the trial picture."""
        right, down = TRIAL_SHIFT
        picture = _trial_picture()
        before, after = picture[16:-16, 16:-16], np.roll(picture, (down, right), (0, 1))[16:-16, 16:-16]
        flow = self._flow(network, before[None], after[None])[0]  # 2 H W
        found = np.median(flow.reshape(2, -1), axis=1)
        if not np.isfinite(flow).all() or math.hypot(found[0] - right, found[1] - down) > TRIAL_ERROR:
            raise UserError(
                f"raft: these weights do not measure motion: a picture shifted by ({right}, {down}) pixels "
                f"reads as ({found[0]:.1f}, {found[1]:.1f}); give trained weights for the network "
                f"raft_{self.options.model}"
            )
        logger.debug("raft: trial shift read as (%.2f, %.2f)", *found)


def _tensor(pixels: np.ndarray, device: str) -> torch.Tensor:
    import torch
    from einops import rearrange

    values = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return rearrange(values, "b h w c -> b c h w").float() / 127.5 - 1


def _trial_picture() -> np.ndarray:
    """A picture with detail at several sizes, uint8 (288, 288, 3); wraps around."""
    rng = np.random.default_rng(0)
    total = np.zeros((288, 288, 3), np.float32)
    for cell in (4, 12, 36):
        coarse = rng.normal(size=(288 // cell, 288 // cell, 3))
        total += np.kron(coarse, np.ones((cell, cell, 1))).astype(np.float32)
    for axis in (0, 1):
        total = (np.roll(total, 1, axis) + 2 * total + np.roll(total, -1, axis)) / 4
    return np.clip(128 + 32 * total, 0, 255).astype(np.uint8)
