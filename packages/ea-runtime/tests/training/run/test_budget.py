"""Unusable files: exact counts at any share, one line each, and a run that ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.training.run.budget import ErrorBudget

Bad = tuple[int, str, str]


def entry(number: int) -> Bad:
    return number, f"clips/{number}.mp4", "it is cut"


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def epochs(budget: ErrorBudget, size: int, bad: set[int], batch: int = 4, times: int = 3) -> None:
    """The whole set in order, several times."""
    for _ in range(times):
        for start in range(0, size, batch):
            members = range(start, min(start + batch, size))
            budget.count(sum(i not in bad for i in members), [entry(i) for i in members if i in bad])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_exact_counts_where_the_share_is_borne(share: float, tmp_path: Path) -> None:
    """0, 1, 50 and 100% of 200 files are bad, and exactly that share is allowed."""
    said: list[str] = []
    path = tmp_path / "quarantine.jsonl"
    budget = ErrorBudget(share, path, 200, said.append)
    bad = set(range(0, 200, round(1 / share))) if share else set()
    assert len(bad) == share * 200
    epochs(budget, 200, bad)
    assert list(budget.bad) == [entry(i)[1] for i in sorted(bad)]
    assert budget.used == 3 * (200 - len(bad))
    assert lines(path) == [{"path": entry(i)[1], "reason": "it is cut"} for i in sorted(bad)]
    assert said == [f"left out, it is cut: {entry(i)[1]}" for i in sorted(bad)]


@pytest.mark.parametrize(("percent", "stops_at"), [(0, None), (1, None), (2, 100), (50, 6), (100, 4)])
def test_more_than_the_share_ends_the_run(percent: int, stops_at: int | None, tmp_path: Path) -> None:
    """At 1% of 200, two bad files are tolerated. stops_at: samples seen when the third is met."""
    path = tmp_path / "run" / "quarantine.jsonl"
    budget = ErrorBudget(0.01, path, 200)
    bad = set(range(0, 200, 100 // percent)) if percent else set()
    if stops_at is None:
        epochs(budget, 200, bad)
        return
    with pytest.raises(UserError) as caught:
        epochs(budget, 200, bad, batch=2)
    seen = -(-(stops_at - 1) // 2) * 2 + (2 if percent == 2 else 0)
    found = [i for i in sorted(bad) if i < seen]
    text = str(caught.value)
    assert "\n" not in text
    assert text == (
        f"{len(found)} files cannot be used (after {seen - len(found)} samples that could), `train.bad_share` 0.01 of "
        f"200 samples allows 2; {str(path)!r} lists them: mend or remove them, or raise the share"
    )
    assert [line["path"] for line in lines(path)] == [entry(i)[1] for i in found]


def test_one_bad_file_in_the_first_batch_of_a_large_set_stops_nothing() -> None:
    budget = ErrorBudget(0.01, None, 10_000)
    budget.count(0, [entry(i) for i in range(100)])
    with pytest.raises(UserError, match=r"^101 files cannot be used .* allows 100: mend"):
        budget.count(3, [entry(100)])


def test_a_file_counts_once_whatever_is_said_about_it() -> None:
    said: list[str] = []
    budget = ErrorBudget(1.0, None, 10, said.append)
    same = (7, "clips/1.mp4", "another\nreason")
    budget.count(1, [entry(1), same])
    budget.count(1, [same, entry(2)])
    assert budget.bad == {"clips/1.mp4": "it is cut", "clips/2.mp4": "it is cut"}
    assert len(said) == 2
    odd = ErrorBudget(1.0, None, 10, said.append)
    odd.count(1, [same])
    assert said[-1] == "left out, another reason: clips/1.mp4"


def test_it_goes_on_where_the_checkpoint_is(tmp_path: Path) -> None:
    """Files found after the checkpoint are met again: neither lost nor written twice."""
    path = tmp_path / "quarantine.jsonl"
    budget = ErrorBudget(1.0, path, 10)
    budget.count(3, [entry(1)])
    state = json.loads(json.dumps(budget.state_dict()))
    budget.count(2, [entry(2), entry(3)])
    with path.open("a") as file:
        file.write('{"path": "to')  # killed while writing a line
    resumed = ErrorBudget(1.0, path, 10)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert [line["path"] for line in lines(path)] == ["clips/1.mp4"]
    resumed.count(2, [entry(1), entry(2), entry(3)])
    assert [line["path"] for line in lines(path)] == ["clips/1.mp4", "clips/2.mp4", "clips/3.mp4"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["quarantine.jsonl"]
    resumed.load_state_dict({"used": 0, "bad": []})
    assert not path.exists()


def test_a_new_run_forgets_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    path.write_text("old\n")
    budget = ErrorBudget(1.0, path, 10)
    budget.start()
    assert not path.exists()
    budget.start()


def test_a_share_that_is_none() -> None:
    with pytest.raises(UserError, match="`bad_share` must be between 0 and 1"):
        ErrorBudget(1.5)


@pytest.mark.parametrize("lost", ["distinct", "resume"])
def test_a_budget_that_counts_wrongly_is_noticed(lost: str, tmp_path: Path) -> None:
    """Twins: one counts a file in every epoch, one forgets its files on resume. The tests above catch both."""
    path = tmp_path / "quarantine.jsonl"

    class Twin(ErrorBudget):
        def count(self, used: int, bad: list[Bad]) -> None:
            if lost == "distinct":
                self.bad = {f"{path}#{len(self.bad)}": reason for path, reason in self.bad.items()}
            super().count(used, bad)

        def load_state_dict(self, state: dict[str, object]) -> None:
            if lost != "resume":
                super().load_state_dict(state)

    if lost == "distinct":
        with pytest.raises(UserError):
            epochs(Twin(0.01, None, 200), 200, {0, 100})
    else:
        budget = Twin(1.0, path, 10)
        budget.count(1, [entry(1)])
        resumed = Twin(1.0, path, 10)
        resumed.load_state_dict(budget.state_dict())
        resumed.count(1, [entry(1)])
        assert len(lines(path)) == 2
