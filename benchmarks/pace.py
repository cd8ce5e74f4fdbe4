"""The machine's own speed at a moment, measured with fixed work.

Other machines on the same host make everything 1.1 to 1.7 times slower for seconds or minutes. Fixed work
is timed before and after a run, so that a slow machine is not taken for a wrong prediction.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

#: seconds that each kind of work is repeated
_SECONDS = 0.1
#: measurements that find how fast the machine can be, and the seconds between them
_FIRST, _BETWEEN = 15, 2.0
#: the machine is quiet if fixed work takes at most this many times its shortest time
_QUIET = 1.1
#: seconds that a quiet machine is waited for, and tries to run on one
_PATIENCE, _TRIES = 1200.0, 20

Found = TypeVar("Found")


class Pace:
    """Times the operations that a generation consists of: convolutions, linear layers, memory passes and small calls.

    The tensors are made once, so that measuring takes no memory from the system and gives none back. threads: those of
    the work. idle: seconds without any work before a run.
    """

    def __init__(self, threads: int, idle: float) -> None:
        self.threads, self.idle = threads, idle
        draw = torch.Generator().manual_seed(0)
        image = torch.randn(1, 128, 5, 16, 16, generator=draw)
        weight = torch.randn(128, 128, 3, 3, 3, generator=draw)
        large, small = nn.Linear(768, 3072), nn.Linear(64, 64)
        many, few = torch.randn(1536, 768, generator=draw), torch.randn(8, 64, generator=draw)
        memory = torch.randn(2, 8 << 20, generator=draw)
        self._works: list[Callable[[], object]] = [
            lambda: F.conv3d(image, weight, None, 1, 1),
            lambda: large(many),
            lambda: torch.add(memory[0], 1, out=memory[1]),
            lambda: [small(few) for _ in range(100)],
        ]
        self._best = [math.inf] * len(self._works)
        for _ in range(_FIRST):
            self.is_quiet()
            time.sleep(_BETWEEN)

    def is_quiet(self) -> bool:
        """The machine is as fast as it has been; the kinds of work count by their geometric mean."""
        timers = [Timer("work()", globals={"work": work}, num_threads=self.threads) for work in self._works]
        with torch.inference_mode():
            now = [timer.blocked_autorange(min_run_time=_SECONDS).median for timer in timers]
        self._best = [min(pair) for pair in zip(now, self._best, strict=True)]
        slower = math.prod(one / best for one, best in zip(now, self._best, strict=True))
        return slower ** (1 / len(now)) <= _QUIET

    def undisturbed(self, run: Callable[[], Found]) -> tuple[Found, int]:
        """The result of a run that began and ended on a quiet machine, and the number of runs that did not.

        Raises TimeoutError.
        """
        for others in range(_TRIES):
            time.sleep(self.idle)
            self.wait()
            found = run()
            if self.is_quiet():
                return found, others
        raise TimeoutError(f"none of {_TRIES} runs ended on a quiet machine")

    def wait(self) -> None:
        """Returns once the machine is quiet. Raises TimeoutError if it stays busy."""
        stop = time.monotonic() + _PATIENCE
        while not self.is_quiet():
            if time.monotonic() > stop:
                raise TimeoutError(
                    f"other programs, or other machines on this host, were busy for {_PATIENCE:.0f} s"
                )
            time.sleep(_BETWEEN)
