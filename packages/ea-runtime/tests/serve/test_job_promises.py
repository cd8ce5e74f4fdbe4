"""The store of jobs at its edges: what is on the disk, what goes and what stays, and what a page or a change holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from ea_runtime.serve import jobs
from ea_runtime.serve.jobs import JobStore, QueueFull
from ea_runtime.serve.state import StateFolder, new_job_id


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(StateFolder(tmp_path), max_queued=99, max_per_client=99)


def added(store: JobStore, count: int = 1, client: str = "me") -> list[str]:
    return [store.add({}, client).id for _ in range(count)]


def claimed(store: JobStore) -> str:
    job = store.claim("cpu")
    assert job is not None
    return job.id


def state_of(store: JobStore, id: str) -> str:
    job = store.get(id)
    assert job is not None
    return job.state


def with_product(store: JobStore, id: str) -> Path:
    place = store.state.result(id)
    place.mkdir()
    return place


def changed(store: JobStore, since: int) -> set[str]:
    return {job.id for job in store.changes(since)[0]}


def test_how_many_may_wait(tmp_path: Path) -> None:
    usual = JobStore(StateFolder(tmp_path))
    assert (usual.max_queued, usual.max_per_client) == (64, 16)
    with pytest.raises(QueueFull) as error:
        JobStore(usual.state, max_queued=0).add({}, "me")
    assert str(error.value) == "the queue is full with 0 jobs; try again later"


@pytest.mark.parametrize(
    ("mean", "seconds"), [(None, 10), (0.0, 10), (0.2, 1), (1.0, 1), (2.1, 3), (3600, 3600), (3601, 3600)]
)
def test_when_to_come_again(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, mean: float | None, seconds: int
) -> None:
    """When a job of usual length has ended: within a second to an hour."""
    monkeypatch.setattr(jobs, "mean_seconds", lambda db: mean)
    store.max_queued = 0
    with pytest.raises(QueueFull) as error:
        store.add({}, "me")
    assert error.value.retry_after == seconds


def test_a_closed_store_opens_again(store: JobStore) -> None:
    added(store)
    store.close()
    assert store._database._local.connection is None
    assert store.version() == 1


def test_what_a_client_was_promised_is_on_the_disk(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim and a report need not be: after a power failure they are made again."""
    found: list[bool] = []
    writing = store._database.writing

    def note(*, durable: bool = False) -> Any:
        found.append(durable)
        return writing(durable=durable)

    monkeypatch.setattr(store._database, "writing", note)

    def is_durable(call: Any, *arguments: Any) -> bool:
        found.clear()
        call(*arguments)
        return found[0]

    assert is_durable(store.add, {}, "me")
    assert not is_durable(store.claim, "cpu")
    (job,) = store.list()[0]
    assert not is_durable(store.report, job.id, "denoising", 1, 2)
    assert is_durable(store.hand_back, job.id)
    assert is_durable(store.cancel, job.id)
    assert is_durable(store.delete, job.id)
    for end in (lambda id: store.finish(id, {}), lambda id: store.fail(id, "a", "b"), store.end_cancelled):
        added(store)
        assert is_durable(end, claimed(store))


def test_numbers_that_json_lacks_are_a_fault_of_the_caller(store: JobStore) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.add({"x": math.nan}, "me")
    added(store)
    with pytest.raises(ValueError, match="JSON"):
        store.finish(claimed(store), {"x": math.inf})


def test_pictures_of_a_job_that_was_not_added_are_removed(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError

    pictures = tmp_path / "upload"
    pictures.mkdir()
    monkeypatch.setattr(jobs, "next_version", fail)
    with pytest.raises(KeyError):
        store.add({}, "me", pictures=pictures)
    assert not pictures.exists()
    assert store.state.job_ids() == set()


def test_a_page_says_if_there_are_more(store: JobStore) -> None:
    added(store, 21)
    page, has_more = store.list()
    assert (len(page), has_more) == (20, True)
    page, has_more = store.list(21)
    assert (len(page), has_more) == (21, False)


def test_cancelling_removes_what_is_no_longer_needed_alone(store: JobStore) -> None:
    completed, again, at_work = added(store, 3)
    assert claimed(store) == completed
    product = with_product(store, completed)
    store.finish(completed, {})
    store.cancel(completed)
    assert product.exists()
    assert claimed(store) == again
    saved = with_product(store, again)
    store.hand_back(again)
    assert saved.exists()  # it continues there
    store.cancel(again)
    assert not saved.exists()
    assert claimed(store) == at_work
    saved = with_product(store, at_work)
    store.cancel(at_work)
    store.sweep()
    assert saved.exists()  # until its worker lets go


def test_a_job_that_is_gone_takes_no_more(store: JobStore) -> None:
    gone = new_job_id()
    assert not store.report(gone, "denoising", 1, 2)
    store.finish(gone, {})
    store.hand_back(gone)
    store.sweep()
    assert (store.get(gone), store.cancel(gone), store.delete(gone)) == (None, None, None)


def test_all_that_wait_are_among_the_changes_of_the_queue(store: JobStore) -> None:
    first, second, third = added(store, 3)
    assert changed(store, 10**9) == {first, second, third}
    one = JobStore(StateFolder(store.state.root / "one"))
    assert changed(one, 7) == set()
    (alone,) = added(one)
    assert changed(one, 7) == {alone}
    since = store.version()
    (other,) = added(store, client="other")
    assert changed(store, since) == {first, second, third, other}
    since = store.version()
    store.delete(first)
    assert changed(store, since) == {second, third, other}
    since = store.version()
    store.cancel(other)
    assert changed(store, since) == {second, third, other}
    since = store.version()
    assert claimed(store) == second
    assert changed(store, since) == {second, third}
    since = store.version()
    store.report(second, "denoising", 1, 2)
    assert changed(store, since) == {second}
    store.hand_back(second)
    assert changed(store, since) == {second, third}


def test_ids_of_deleted_jobs_and_turns_of_clients_are_bounded(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert jobs._KEPT_IDS == 10_000
    monkeypatch.setattr(jobs, "_KEPT_IDS", 2)
    ids = added(store, 4)
    for id in ids:
        store.delete(id)
    assert store.changes(0)[1] == ids[2:]
    with store._database.writing() as db:
        db.execute("UPDATE counters SET served = 10005")
        db.executemany("INSERT INTO clients (client, served) VALUES (?, ?)", [("old", 6), ("newer", 7)])
    added(store)
    claimed(store)
    with store._database.reading() as db:
        rows = db.execute("SELECT client, served FROM clients").fetchall()
    assert {row["client"]: row["served"] for row in rows} == {"newer": 7, "me": 10_006}


def test_sweeping_takes_the_row_of_a_deleted_job_that_has_ended(store: JobStore) -> None:
    """Its worker was killed between the end of the job and the removal of its row."""

    def rows() -> list[str]:
        with store._database.reading() as db:
            return [row["id"] for row in db.execute("SELECT id FROM jobs ORDER BY seq").fetchall()]

    deleted, waiting = added(store, 2)
    assert claimed(store) == deleted
    store.delete(deleted)
    store.sweep()
    assert rows() == [deleted, waiting]  # a worker is at it
    with store._database.writing() as db:
        db.execute("UPDATE jobs SET state = 'cancelled' WHERE id = ?", (deleted,))
    store.sweep()
    assert rows() == [waiting]
