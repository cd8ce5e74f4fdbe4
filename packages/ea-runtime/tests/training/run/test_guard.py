"""The guard finds spikes in time and lets clean steps pass; guards that fall short are caught.

clean_losses.json: 1,800 (timestep, loss) of the bundled model on pictures and clips of its set, at uniform timesteps.
clean_runs.json: (loss, gradient norm) of every step of the five runs that made the first bundled model.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pytest

from ea_runtime.training.options import GuardOptions
from ea_runtime.training.run.guard import Guard, _level

HERE = Path(__file__).parent
LOSSES: dict[str, list[tuple[int, float]]] = json.loads((HERE / "clean_losses.json").read_text())
RUNS: dict[str, list[tuple[float, float]]] = json.loads((HERE / "clean_runs.json").read_text())
FULL = os.environ.get("EA_FULL") == "1"


class Step(NamedTuple):
    number: int
    group: str
    samples: list[float]
    timesteps: list[int]
    norm: float


def clean(steps: int, batch: int, seed: int, falls: bool = False) -> Iterator[Step]:
    """Steps as in training a DiT: batches of pictures or of clips, any timesteps, norms with outliers.

    falls: the loss first falls by a factor of 30 within 150 steps, like a fresh network's.
    """
    rng = random.Random(seed)
    for number in range(steps):
        kind = rng.choice(("image", "video"))
        factor = 1 + 29 * math.exp(-number / 30) if falls else 1.0
        pairs = rng.choices(LOSSES[kind], k=batch)
        samples = [max(loss, 1e-6) * factor * math.exp(0.1 * rng.gauss(0, 1)) for _, loss in pairs]
        norm = 0.05 * factor * math.exp(0.25 * rng.gauss(0, 1)) * (5 if rng.random() < 0.01 else 1)
        yield Step(number, kind, samples, [t for t, _ in pairs], norm)


def ramp(since: int) -> float:
    """Factor of the loss in step 1, 2, ... of a spike: 0.05 -> 0.2 -> 1.0."""
    return 4 ** (since / 5) if since <= 5 else min(20.0, 4 * 5 ** ((since - 5) / 5))


SPIKES: dict[str, Callable[[float, int], float]] = {
    "grows": lambda loss, since: loss * ramp(since),
    "grows by an amount": lambda loss, since: loss + 0.05 * (ramp(since) - 1),
    "at once": lambda loss, since: loss * 20,
}


def first_alarm(check: Callable[[Step], str], steps: Iterator[Step], onset: int, spike: str) -> int | None:
    """The step of the first verdict that is not "ok"."""
    for step in steps:
        since = step.number - onset + 1
        if since > 0:
            samples = [SPIKES[spike](loss, since) for loss in step.samples]
            step = step._replace(samples=samples, norm=step.norm * ramp(since))
        if check(step) != "ok":
            return step.number
    return None


def ask(guard: Guard) -> Callable[[Step], str]:
    def check(step: Step) -> str:
        return guard.check(
            step.number, mean(step.samples), step.norm, step.samples, step.timesteps, step.group
        )

    return check


@pytest.mark.parametrize("spike", SPIKES)
@pytest.mark.parametrize("batch", [4, 16])
def test_spikes_are_found_within_ten_steps(batch: int, spike: str) -> None:
    for seed in range(10 if FULL else 4):
        guard, onset = Guard(GuardOptions()), 120 + 7 * seed
        found = first_alarm(ask(guard), clean(onset + 11, batch, seed), onset, spike)
        assert found is not None, f"seed {seed}: not found"
        assert onset <= found < onset + 10
        assert guard.suspect_since is not None
        assert guard.suspect_since <= onset  # states saved since are not trusted
        assert guard.suspect_since > onset - 15
        assert not guard.is_clean


@pytest.mark.parametrize(("batch", "falls"), [(1, False), (4, True), (16, False), (16, True)])
def test_no_alarm_in_2000_clean_steps(batch: int, falls: bool) -> None:
    for seed in range(100, 110 if FULL else 101):
        guard, unclean = Guard(GuardOptions()), 0
        for step in clean(2000, batch, seed, falls):
            assert ask(guard)(step) == "ok", f"seed {seed}, step {step.number}"
            unclean += not guard.is_clean
        assert unclean < 100  # now and then a save waits for one step, no longer


@pytest.mark.parametrize("name", RUNS)
def test_no_alarm_in_the_runs_that_made_tiny(name: str) -> None:
    """Warm-up, the initial fall, the end of the cosine, a text encoder's loss down to 1e-5."""
    guard = Guard(GuardOptions())
    verdicts = {guard.check(number, loss, norm) for number, (loss, norm) in enumerate(RUNS[name])}
    assert verdicts == {"ok"}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("spike", SPIKES)
def test_spikes_in_those_runs_are_found_without_samples(name: str, spike: str) -> None:
    guard, onset = Guard(GuardOptions()), 400
    for number, (loss, norm) in enumerate(RUNS[name][:430]):
        since = number - onset + 1
        if since > 0:
            amount = 0.05 if "amount" in spike else 1.0
            loss = SPIKES[spike](loss / amount, since) * amount if amount == 1.0 else loss * ramp(since)
        if guard.check(number, loss, norm * (ramp(since) if since > 0 else 1)) != "ok":
            break
    noisy = name == "text"  # its loss jumps between 0.001 and 0.1 anyway
    assert onset <= number < onset + (30 if noisy else 10)


def test_phases_and_new_groups_do_not_alarm() -> None:
    """A new phase with three times the loss and twice the batch size."""
    guard = Guard(GuardOptions())
    for step in clean(300, 8, 3):
        assert ask(guard)(step._replace(group=f"0:{step.group}")) == "ok"
    for step in clean(300, 16, 4):
        samples = [3 * loss for loss in step.samples]
        moved = step._replace(group=f"1:{step.group}", samples=samples, number=300 + step.number)
        assert ask(guard)(moved) == "ok"
    found = first_alarm(
        ask(guard),
        (s._replace(group=f"1:{s.group}", samples=[3 * x for x in s.samples]) for s in clean(30, 16, 5)),
        5,
        "grows",
    )
    assert found is not None
    assert found < 15


def test_single_odd_batches_pass() -> None:
    guard = Guard(GuardOptions())
    for step in clean(600, 8, 6):
        odd = step.number % 50 == 49
        samples = [50 * loss for loss in step.samples] if odd else step.samples
        assert ask(guard)(step._replace(samples=samples, norm=step.norm * (30 if odd else 1))) == "ok"


@pytest.mark.parametrize("part", ["loss", "norm", "sample"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_is_skipped_at_once(part: str, value: float) -> None:
    for enabled in (True, False):
        guard = Guard(GuardOptions(enabled=enabled))
        assert guard.is_clean
        loss, norm, samples = 1.0, 1.0, [1.0, 1.0]
        if part == "loss":
            loss = value
        elif part == "norm":
            norm = value
        else:
            samples = [1.0, value]
        assert guard.check(0, loss, norm, samples, [1, 2]) == "skip"
        assert not guard.is_clean
        assert guard.check(1, 1.0, 1.0, [1.0, 1.0], [1, 2]) == "ok"
        assert guard.is_clean
        assert guard.suspect_since is None


def test_steps_that_are_not_finite_are_never_a_rise() -> None:
    guard = Guard(GuardOptions(skips=4))
    for number in range(40, 60):
        assert guard.check(number, math.nan, 1.0) == "skip"
        assert not guard.is_clean
        assert not guard.is_rising
    assert guard.suspect_since == 35


def test_half_of_a_batch_must_be_in_bins_that_are_known() -> None:
    """Rows are (bin, mean log loss, samples); the level is the mean over samples of the known bins."""
    medians = {0: 1.0, 2: 0.5}
    assert _level([(0, 3.0, 2), (1, 9.0, 2)], medians) == 2.0
    assert _level([(0, 3.0, 2), (1, 9.0, 3)], medians) is None
    assert _level([(0, 3.0, 1), (2, 4.5, 3)], medians) == (1 * 2.0 + 3 * 4.0) / 4
    assert _level([(0, 3.0, 3), (1, 9.0, 1), (2, 0.5, 1)], medians) == 6.0 / 4
    assert _level([(1, 9.0, 1)], medians) is None
    assert _level([], medians) is None


def test_what_is_suspected_reaches_five_steps_back() -> None:
    """After 40 equal steps one step of 20 times the loss is suspected, not alarmed, and three are a spike."""
    guard = Guard(GuardOptions())
    for number in range(40):
        assert guard.check(number, 1.0, 1.0) == "ok"
    assert (guard.is_clean, guard.is_rising, guard.suspect_since) == (True, False, None)
    verdicts = []
    for number in range(40, 44):
        verdicts.append(guard.check(number, 20.0, 1.0))
        assert (guard.is_clean, guard.is_rising, guard.suspect_since) == (False, True, 35)
    assert verdicts == ["ok", "ok", "ok", "spike"]
    early = Guard(GuardOptions())
    assert early.check(2, math.nan, 1.0) == "skip"
    assert early.suspect_since == 0


def test_losses_without_a_logarithm_say_nothing() -> None:
    guard = Guard(GuardOptions())
    rng = random.Random(0)
    assert {guard.check(n, rng.gauss(0, 1), 1.0) for n in range(500)} == {"ok"}
    assert guard.check(500, 1.0, 1.0, []) == "ok"


def test_it_goes_on_to_the_bit_after_json() -> None:
    """A guard saved and loaded at any step gives the same verdicts and state as one that was not."""
    steps, cuts = list(clean(200, 6, 8)), (0, 7, 60, 133, 199)
    whole, states = Guard(GuardOptions()), {}
    for step in steps:
        if step.number in cuts:
            states[step.number] = json.dumps(whole.state_dict())
        ask(whole)(step)
    for cut in cuts:
        resumed = Guard(GuardOptions())
        resumed.load_state_dict(json.loads(states[cut]))
        assert json.dumps(resumed.state_dict()) == states[cut]
        for step in steps[cut:]:
            ask(resumed)(step)
        assert resumed.state_dict() == whole.state_dict()
    assert len(states[199]) < 100_000


def test_a_rise_is_found_as_soon_after_a_resume() -> None:
    """The medians of bins are no part of the state: a loaded guard has them at its first step."""
    steps = [step if step.number < 200 else _risen(step) for step in clean(230, 6, 8)]
    whole, cut = Guard(GuardOptions()), 201
    for step in steps[:cut]:
        ask(whole)(step)
    resumed = Guard(GuardOptions())
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    verdicts = [(ask(whole)(step), ask(resumed)(step)) for step in steps[cut:]]
    assert all(one == other for one, other in verdicts)
    assert ("spike", "spike") in verdicts[:5]


def _risen(step: Step) -> Step:
    return step._replace(samples=[20 * loss for loss in step.samples], norm=20 * step.norm)


def test_many_groups_are_not_all_remembered() -> None:
    guard = Guard(GuardOptions())
    for step in clean(600, 4, 9):
        ask(guard)(step._replace(group=str(step.number % 200)))
    assert len(guard.state_dict()["groups"]) == 64


# Deliberately wrong guards: the checks above catch them.


class MeanOnly:
    """Compares the batch's mean loss with the mean of the last 100: blind to timesteps, so its threshold must be
    high."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.last: list[float] = []

    def __call__(self, step: Step) -> str:
        value = mean(step.samples)
        usual = mean(self.last[-100:]) if len(self.last) >= 20 else math.inf
        self.last.append(value)
        return "spike" if value > self.factor * usual else "ok"


def judge(make: Callable[[], Callable[[Step], str]]) -> tuple[int, int]:
    """(spikes found in time of 9, alarms in 3 clean runs of 700 steps)."""
    found = 0
    for number in range(9):
        onset = 120 + 7 * number
        at = first_alarm(make(), clean(onset + 11, 8, number), onset, list(SPIKES)[number % 3])
        found += at is not None and onset <= at < onset + 10
    alarms = sum(
        any(make_check(step) != "ok" for step in clean(700, 8, 100 + n))
        for n in range(3)
        for make_check in [make()]
    )
    return found, alarms


def test_a_guard_that_looks_at_the_mean_only_fails() -> None:
    assert judge(lambda: ask(Guard(GuardOptions()))) == (9, 0)
    results: list[Any] = [judge(lambda f=factor: MeanOnly(f)) for factor in (2.0, 4.0, 8.0, 16.0)]
    assert (9, 0) not in results
    assert all(alarms > 0 or found < 9 for found, alarms in results)


def test_a_guard_without_bins_or_groups_fails() -> None:
    """The same statistics over all timesteps at once: the tolerance grows with the spread, so it finds less."""

    def blind() -> Callable[[Step], str]:
        guard = Guard(GuardOptions())
        return lambda step: guard.check(step.number, mean(step.samples), step.norm)

    found, alarms = judge(blind)
    assert found < 9 or alarms > 0
