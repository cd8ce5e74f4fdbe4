"""The guard's numbers: step by step those of a slow reference that follows its formulas, and each limit by itself."""

from __future__ import annotations

import json
import math
import random
from statistics import median
from typing import Any

import pytest

from ea_runtime.training.options import GuardOptions
from ea_runtime.training.run import guard as module
from ea_runtime.training.run.guard import Guard


class Reference:
    """r, x and S of the guard's docstring over whole lists; nothing is forgotten, so only short streams fit."""

    def __init__(self, bins: int = 20, factor: float = 1.5, limit: float = 1.75, sigmas: float = 5.0) -> None:
        self.count, self.factor, self.limit, self.sigmas = bins, factor, limit, sigmas
        self.bins: dict[int, list[float]] = {}
        self.peaks: dict[int, float] = {}
        self.groups: dict[str, list[tuple[dict[int, list[float]], float]]] = {}
        self.sum = 0.0

    def level(self, row: dict[int, list[float]]) -> float | None:
        """Mean over the samples in bins of 8 steps or more; None if less than half are."""
        known = {place: logs for place, logs in row.items() if len(self.bins.get(place, [])) >= 8}
        samples = sum(len(logs) for logs in known.values())
        if not samples or samples < sum(len(logs) for logs in row.values()) / 2:
            return None
        total = sum(
            (sum(logs) / len(logs) - median(self.bins[place][-64:])) * len(logs)
            for place, logs in known.items()
        )
        return total / samples

    def check(self, loss: float, norm: float, samples: Any, timesteps: Any, group: str) -> str:
        values = [loss] if samples is None else samples
        floor = 0.01 if timesteps is None else 0.001
        row: dict[int, list[float]] = {}
        for number, value in enumerate(values):
            place = 0 if timesteps is None else timesteps[number] * self.count // 1000
            if value > 0:
                row.setdefault(place, []).append(math.log(value + floor * self.peaks.get(place, 0.0)))
        if not row:
            return "ok"
        excess = self.excess(row, norm, group)
        for place, logs in row.items():
            self.bins.setdefault(place, []).append(sum(logs) / len(logs))
            if len(self.bins[place]) >= 8:
                self.peaks[place] = max(self.peaks.get(place, 0.0), math.exp(median(self.bins[place][-64:])))
        self.groups.setdefault(group, []).append((row, math.log(norm)))
        if excess is None:
            return "ok"
        self.sum = max(0.0, self.sum + min(excess, 1 / 3))
        return "spike" if self.sum > 1 else "ok"

    def excess(self, row: dict[int, list[float]], norm: float, group: str) -> float | None:
        level = self.level(row)
        if level is None:
            return None
        past = self.groups.get(group, [])[-48:]
        levels = [one for one in (self.level(old) for old, _ in past) if one is not None]
        if len(levels) < 16:
            return (level - math.log(8)) / self.limit
        usual = median(levels)
        sigma = 1.4826 * median(abs(one - usual) for one in levels)
        samples = sum(len(logs) for logs in row.values())
        limit = max(self.limit, self.sigmas * sigma * math.sqrt(max(1, 6 / samples)))
        allowed = max(math.log(self.factor), sigma)
        rise = level - usual
        norms = [one for _, one in past]
        center = median(norms)
        jump = math.log(norm) - center
        jump -= max(math.log(3), 4 * 1.4826 * median(abs(one - center) for one in norms))
        witness = 0.5 * min(max(jump, 0), 1) if rise > 0.5 * allowed else 0
        return (rise - allowed + witness) / limit


@pytest.mark.parametrize("batch", [1, 4, 9])
@pytest.mark.parametrize("kind", ["timesteps", "samples", "loss"])
@pytest.mark.parametrize("options", [{}, {"bins": 3, "factor": 1.2, "limit": 0.5, "sigmas": 2.0}])
def test_each_step_is_judged_as_the_formulas_say(batch: int, kind: str, options: dict[str, Any]) -> None:
    draw = random.Random(f"{batch} {kind} {options}")
    guard, reference = Guard(GuardOptions(**options)), Reference(**options)
    spikes = 0
    for step in range(260):
        timesteps = [draw.randrange(1000) for _ in range(batch)]
        rise = 1.0 if step % 90 < 75 else 1.0 + 1.5 * (step % 90 - 74)
        samples = [math.exp(draw.gauss(-4 + one / 300, 0.4)) * rise for one in timesteps]
        if draw.random() < 0.02:
            samples[0] = 0.0
        norm = math.exp(draw.gauss(0, 0.3)) * (
            draw.choice((4.0, 40.0)) if rise > 1 or draw.random() < 0.05 else 1.0
        )
        loss = sum(samples) / batch
        group = draw.choice("ab")
        arguments = {
            "timesteps": (loss, norm, samples, timesteps, group),
            "samples": (loss, norm, samples, None, group),
            "loss": (loss, norm, None, None, group),
        }[kind]
        verdict = guard.check(step, *arguments)
        assert verdict == reference.check(*arguments), step
        assert guard._sum == pytest.approx(reference.sum, abs=1e-9), step
        assert guard.is_rising is (guard._sum >= 1 / 3)
        spikes += verdict == "spike"
        if verdict == "spike":
            guard._sum = reference.sum = 0.0
            guard._since = None
    assert spikes > 0 or kind != "loss"


def test_each_sample_has_its_timestep() -> None:
    for timesteps in ([5], [5, 6, 7]):
        with pytest.raises(ValueError, match="zip"):
            Guard(GuardOptions()).check(0, 1.0, 1.0, [1.0, 2.0], timesteps)


def test_the_numbers_of_the_docstring() -> None:
    assert (module.WINDOW, module.GROUP_WINDOW) == (64, 48)
    assert (module.LEARN_BIN, module.LEARN_GROUP, module.MAX_GROUPS, module.MARGIN) == (8, 16, 64, 5)
    assert (module.SMALL, module._FLOOR, module._MAD_TO_SIGMA) == (6, 1e-3, 1.4826)


def state(**changes: Any) -> dict[str, Any]:
    return {"bins": [], "groups": {}, "peaks": [], "sum": 0.0, "skips": 0, "since": None, **changes}


@pytest.mark.parametrize(
    ("total", "skips", "is_clean", "is_rising"),
    [(0.0, 0, True, False), (0.33, 0, True, False), (1 / 3, 0, False, True), (0.0, 1, False, False)],
)
def test_what_may_be_saved_as_good(total: float, skips: int, is_clean: bool, is_rising: bool) -> None:
    guard = Guard(GuardOptions())
    guard.load_state_dict(state(sum=total, skips=skips))
    assert (guard.is_clean, guard.is_rising) == (is_clean, is_rising)


@pytest.mark.parametrize(("since", "suspect"), [(None, None), (0, 0), (4, 0), (5, 0), (6, 1), (100, 95)])
def test_five_steps_before_count_as_bad_too(since: int | None, suspect: int | None) -> None:
    guard = Guard(GuardOptions())
    guard.load_state_dict(state(since=since))
    assert guard.suspect_since == suspect


def test_skipped_steps_are_counted_until_one_is_finite() -> None:
    guard = Guard(GuardOptions())
    for step, (loss, norm, samples) in enumerate(
        (
            (math.nan, 1.0, [1.0]),
            (1.0, math.inf, [1.0]),
            (1.0, 1.0, [1.0, -math.inf]),
            (-math.inf, 1.0, None),
        ),
        10,
    ):
        assert guard.check(step, loss, norm, samples) == "skip"
    assert (guard.state_dict()["skips"], guard.state_dict()["since"]) == (4, 10)
    assert guard.check(14, 1.0, 1.0, [1.0]) == "ok"
    assert (guard.state_dict()["skips"], guard.state_dict()["since"]) == (0, None)
    rising = Guard(GuardOptions())
    rising.load_state_dict(state(sum=0.5, since=3))
    assert rising.check(9, math.nan, 1.0) == "skip"
    rising.check(10, 0.0, 1.0)
    assert rising.state_dict()["since"] == 3  # what was suspected before still is


def test_a_rise_is_suspected_from_its_first_step_and_forgotten_when_it_is_over() -> None:
    guard = Guard(GuardOptions())
    for step in range(60):
        guard.check(step, 1.0 + 0.01 * (step % 3), 1.0)
        assert guard.state_dict()["since"] is None
    for step in (60, 61):
        assert guard.check(step, 3.0, 1.0) == "ok"
        assert guard.state_dict()["since"] == 60
    for step in range(62, 75):
        guard.check(step, 0.5, 1.0)
    assert (guard.state_dict()["since"], guard.state_dict()["sum"]) == (None, 0.0)


@pytest.mark.parametrize(("loss", "excess"), [(7.0, 0.0), (9.0, math.log(9 / 8) / 1.75), (99.0, 1 / 3)])
def test_in_a_new_group_only_a_rise_by_a_factor_of_8_counts(loss: float, excess: float) -> None:
    guard = Guard(GuardOptions())
    for step in range(20):
        guard.check(step, 1.0, 1.0, group="known")
    assert [place for place, _ in guard.state_dict()["bins"]] == [0]  # the bin of all without timesteps
    guard.check(20, loss, 1.0, group="new")
    assert guard.state_dict()["sum"] == pytest.approx(
        excess, rel=0.1
    )  # the floor takes a hundredth of the loss


def test_a_guard_that_is_off_skips_alone() -> None:
    guard = Guard(GuardOptions(enabled=False))
    for step in range(40):
        assert guard.check(step, 1.0 if step < 30 else 1e6, 1.0) == "ok"
    assert guard.check(40, math.nan, 1.0) == "skip"
    assert guard.check(41, 1.0, 1.0) == "ok"
    assert guard.state_dict() == state()


def test_its_state_is_whole_and_bounded() -> None:
    guard = Guard(GuardOptions(bins=4))
    for step in range(200):
        guard.check(step, 1.0, 2.0, [0.5 + step % 7, 1.5], [step % 1000, 999 - step], f"group {step % 70}")
    found = json.loads(json.dumps(guard.state_dict()))
    assert [place for place, _ in found["bins"]] == [0, 3]
    assert {len(values) for _, values in found["bins"]} == {64}
    assert len(found["groups"]) == 64
    assert list(found["groups"])[-1] == f"group {199 % 70}"
    assert next(iter(found["groups"])) == f"group {136 % 70}"
    again = Guard(GuardOptions(bins=4))
    again.load_state_dict(found)
    assert again._medians == guard._medians  # made again, not saved
    assert json.loads(json.dumps(again.state_dict())) == found
    for step in range(200, 290):
        one = (step, 1.0, 2.0, [0.5 + step % 5, 3.0], [step % 1000, 500], "group 3")
        assert guard.check(*one) == again.check(*one)
        assert guard.state_dict() == again.state_dict()
    assert len(again.state_dict()["groups"]["group 3"]) == 48
    for part in found:
        with pytest.raises(KeyError):
            Guard(GuardOptions()).load_state_dict({key: value for key, value in found.items() if key != part})
