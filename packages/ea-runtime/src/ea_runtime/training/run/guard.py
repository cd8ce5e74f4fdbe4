"""Guards a run against bad steps: values that are not finite, and spikes of the loss.

Plain DiT training is known to spike (0.05 -> 0.2 -> 1.0 within some steps). The loss of a single step says little:
between timestep 0 and 999 it changes by a factor of 10,000, and a batch has only some timesteps. So each sample is
compared with others in the same bin of timesteps:

    r = log(loss) - median of its bin             over the last WINDOW steps that had the bin
    x = mean of r over the batch - median of the same for the last steps of its group, as seen from now
    S = max(0, S + min((x - allowance) / limit, 1 / 3))    a cumulative sum (Page 1954); alarm where S > 1

Medians and their deviations (MAD) are robust: a spike hardly moves the level that it is compared with. A single odd
batch cannot raise the alarm, a lasting rise by a factor of 2 does within some steps. The logarithm makes the test one
of factors; a small floor (`_FLOOR` of the highest median so far, 10 times that without timesteps) keeps the noise of a
nearly vanished loss from counting. The gradient's norm is a witness: if it has jumped too, the rise counts more. Alone
it never raises the alarm, since clipping makes it harmless.

A group is whatever shifts the level without being a fault: kind of the batch, its size, the phase. A new group is
learned before it counts (until then only a rise by a factor of 8 does), so a phase may begin anywhere, and a warm-up,
which only lowers the loss, raises no alarm.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

from ea_runtime.training.options import GuardOptions
from ea_runtime.training.run.loss_bins import bin_of

#: Steps in a bin's median, and those that a group remembers.
WINDOW, GROUP_WINDOW = 64, 48
#: A bin or a group with fewer steps is being learned.
LEARN_BIN, LEARN_GROUP = 8, 16
#: Groups that are remembered; the one not seen for longest is forgotten.
MAX_GROUPS = 64
#: Steps before a rise was noticed that also count as bad.
MARGIN = 5
#: Batches below this size are noisier than their deviation shows; their limit is raised.
SMALL = 6
_FLOOR = 1e-3
_MAD_TO_SIGMA = 1.4826

Row = list[tuple[int, float, int]]  # (bin, mean log loss, samples) of one step


class Guard:
    """Judges steps in order; its verdicts depend only on the steps seen, so a resumed run gets the same ones."""

    def __init__(self, options: GuardOptions) -> None:
        self.options = options
        self._bins: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}  # of every bin that has been seen often enough
        self._groups: dict[str, deque[tuple[Row, float]]] = {}
        self._peaks: dict[int, float] = {}
        self._sum = 0.0
        self._skips = 0
        self._since: int | None = None

    @property
    def is_clean(self) -> bool:
        """True if the present state may be saved as good: nothing is suspected."""
        return self._skips == 0 and self._sum < 1 / 3

    @property
    def is_rising(self) -> bool:
        """True if a lasting rise of the loss is suspected. A skipped step changed nothing and does not count."""
        return self._sum >= 1 / 3

    @property
    def suspect_since(self) -> int | None:
        """Steps done before the suspected rise began, with a margin; None if nothing is suspected.

        A checkpoint of that step or an earlier one is good.
        """
        return None if self._since is None else max(0, self._since - MARGIN)

    def check(
        self,
        step: int,
        loss: float,
        grad_norm: float,
        samples: Sequence[float] | None = None,
        timesteps: Sequence[int] | None = None,
        group: str = "",
    ) -> Literal["ok", "skip", "spike"]:
        """Judges a step before its update is applied.

        step: steps done before this one. loss, grad_norm: of the whole batch, before clipping.
        samples: each sample's loss; without them, `loss` is taken. timesteps: theirs, 0..999; without them all
        samples share a bin. group: see above.
        "ok": apply it. "skip": it is not finite, drop it. "spike": the weights count as bad; go back to a state of
        `suspect_since` or earlier, with the guard's state of then.
        """
        values = list(samples) if samples is not None else [loss]
        if not all(map(math.isfinite, (loss, grad_norm, *values))):
            self._skips += 1
            if self._since is None:
                self._since = step
            return "skip"
        if self._skips:
            self._skips = 0
            if self._sum == 0.0:
                self._since = None
        if not self.options.enabled:
            return "ok"
        row = self._row(values, timesteps)
        if not row:
            return "ok"
        excess = self._excess(row, grad_norm, group)
        self._remember(row, grad_norm, group)
        if excess is None:
            return "ok"
        if self._sum == 0.0:
            self._since = step
        self._sum = max(0.0, self._sum + min(excess, 1 / 3))
        if self._sum == 0.0:
            self._since = None
        return "spike" if self._sum > 1.0 else "ok"

    def state_dict(self) -> dict[str, Any]:
        """Its whole state, for JSON, which keeps floats bit-exact."""
        return {
            "bins": [[place, list(values)] for place, values in sorted(self._bins.items())],
            "groups": {
                name: [[list(map(list, row)), norm] for row, norm in rows]
                for name, rows in self._groups.items()
            },
            "peaks": sorted(map(list, self._peaks.items())),
            "sum": self._sum,
            "skips": self._skips,
            "since": self._since,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a `state_dict`, also after a trip through JSON. Raises KeyError if a part is missing."""

        def row(pairs: list[list[Any]]) -> Row:
            return [(int(place), float(value), int(count)) for place, value, count in pairs]

        self._bins = {int(place): deque(map(float, values), maxlen=WINDOW) for place, values in state["bins"]}
        self._groups = {
            name: deque(((row(pairs), float(norm)) for pairs, norm in rows), maxlen=GROUP_WINDOW)
            for name, rows in state["groups"].items()
        }
        self._peaks = {int(place): float(value) for place, value in state["peaks"]}
        self._medians = {}
        for place in self._bins:
            self._update_median(place)
        self._sum, self._skips, self._since = float(state["sum"]), state["skips"], state["since"]

    def _row(self, values: list[float], timesteps: Sequence[int] | None) -> Row:
        """The step's mean log loss by bin. A loss of 0 or less has no logarithm and is ignored."""
        places, floor = [0] * len(values), 10 * _FLOOR
        if timesteps is not None:
            places = [bin_of(timestep, self.options.bins) for timestep in timesteps]
            floor = _FLOOR
        found: dict[int, list[float]] = {}
        for place, value in zip(places, values, strict=True):
            if value > 0.0:
                found.setdefault(place, []).append(math.log(value + floor * self._peaks.get(place, 0.0)))
        return [(place, sum(logs) / len(logs), len(logs)) for place, logs in sorted(found.items())]

    def _excess(self, row: Row, grad_norm: float, group: str) -> float | None:
        """The step's excess over what is allowed, in parts of the limit; None: nothing to compare with."""
        medians = self._medians
        level = _level(row, medians)
        if level is None:
            return None
        before = self._groups.get(group, ())
        levels = [past for rows, _ in before if (past := _level(rows, medians)) is not None]
        factor, limit = math.log(self.options.factor), self.options.limit
        if len(levels) < LEARN_GROUP:
            return (level - math.log(8.0)) / limit
        usual, sigma = _center_and_sigma(levels)
        small = math.sqrt(max(1.0, SMALL / sum(count for _, _, count in row)))
        limit = max(limit, self.options.sigmas * sigma * small)
        rise, allowed = level - usual, max(factor, sigma)
        norm, norm_sigma = _center_and_sigma([past for _, past in before])
        jump = _log(grad_norm) - norm - max(math.log(3.0), 4.0 * norm_sigma)
        witness = 0.5 * min(max(jump, 0.0), 1.0) if rise > 0.5 * allowed else 0.0
        return (rise - allowed + witness) / limit

    def _update_median(self, place: int) -> None:
        if len(self._bins[place]) >= LEARN_BIN:
            self._medians[place] = value = median(self._bins[place])
            self._peaks[place] = max(self._peaks.get(place, 0.0), math.exp(value))

    def _remember(self, row: Row, grad_norm: float, group: str) -> None:
        for place, value, _ in row:
            self._bins.setdefault(place, deque(maxlen=WINDOW)).append(value)
            self._update_median(place)
        rows = self._groups.pop(group, None) or deque(maxlen=GROUP_WINDOW)
        rows.append((row, _log(grad_norm)))
        self._groups[group] = rows  # last: the most recently seen
        while len(self._groups) > MAX_GROUPS:
            del self._groups[next(iter(self._groups))]


def _level(row: Row, medians: dict[int, float]) -> float | None:
    """Mean of log loss minus its bin's median over the samples whose bin is known; None if half are not."""
    known = [(value - medians[place], count) for place, value, count in row if place in medians]
    total = sum(count for _, count in known)
    if 2 * total < sum(count for _, _, count in row) or not total:
        return None
    return sum(value * count for value, count in known) / total


def _center_and_sigma(values: list[float]) -> tuple[float, float]:
    """Median, and the standard deviation that the median absolute deviation corresponds to."""
    center = median(values)
    return center, _MAD_TO_SIGMA * median(abs(value - center) for value in values)


def _log(value: float) -> float:
    return math.log(max(value, 1e-30))
