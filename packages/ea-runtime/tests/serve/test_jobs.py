from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ea_runtime.errors import UserError
from ea_runtime.serve import jobs
from ea_runtime.serve.jobs import JobStore, QueueFull, StoreError
from ea_runtime.serve.state import StateFolder, new_job_id


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(StateFolder(tmp_path))


def claimed(store: JobStore, worker: str = "cpu") -> jobs.Job:
    job = store.claim(worker)
    assert job is not None
    return job


def got(store: JobStore, id: str) -> jobs.Job:
    job = store.get(id)
    assert job is not None
    return job


def with_files(store: JobStore, id: str) -> list[Path]:
    """A file in each place that a job may have."""
    places = [store.state.run(id) / "state", store.state.result(id) / "video.mp4", store.state.preview(id)]
    for place in places:
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"x")
    return places


def test_a_job_from_its_request_to_its_result(store: JobStore) -> None:
    request = {"settings": {"prompt": "ein roter Kreis — 红"}, "fps": 24}
    new = store.add(request, "me", remixed_from="video_x")
    assert (new.state, new.position, new.progress, new.attempts) == ("queued", 1, 0, 0)
    assert (new.request, new.client, new.remixed_from) == (request, "me", "video_x")
    job = claimed(store)
    assert (job.id, job.state, job.phase, job.worker, job.attempts) == (
        new.id,
        "in_progress",
        "loading",
        "cpu",
        1,
    )
    assert job.position is None
    assert job.started_at is not None
    assert store.report(job.id, "denoising", 10, 20)
    assert got(store, job.id).progress == 42
    assert store.report(job.id, "decoding", 1, 2)
    seen = got(store, job.id)
    assert (seen.phase, seen.done, seen.total, seen.progress) == ("decoding", 1, 2, 89)
    store.finish(job.id, {"files": {"video": "video.mp4"}})
    ended = got(store, job.id)
    assert (ended.state, ended.progress, ended.worker, ended.has_ended) == ("completed", 100, None, True)
    assert ended.result == {"files": {"video": "video.mp4"}}
    assert ended.completed_at is not None
    assert store.claim("cpu") is None


def test_progress_never_falls(store: JobStore) -> None:
    job = store.add({}, "me")
    claimed(store)
    store.report(job.id, "denoising", 15, 20)
    before = got(store, job.id).progress
    store.recover("cpu")
    claimed(store)
    store.report(job.id, "loading", 0, 1)
    assert got(store, job.id).progress == before


def test_an_ended_job_takes_no_more(store: JobStore) -> None:
    job = store.add({}, "me")
    claimed(store)
    store.finish(job.id, {"sha256": "right"})
    assert not store.report(job.id, "denoising", 1, 2)
    store.finish(job.id, {"sha256": "late"})
    store.fail(job.id, "late", "late")
    store.hand_back(job.id)
    ended = got(store, job.id)
    assert (ended.state, ended.result, ended.error_code) == ("completed", {"sha256": "right"}, None)


def test_a_failure_is_one_line_and_leaves_no_files(store: JobStore) -> None:
    job = store.add({}, "me")
    claimed(store)
    places = with_files(store, job.id)
    store.fail(job.id, "out_of_memory", "memory\n ran out")
    failed = got(store, job.id)
    assert (failed.state, failed.error_code, failed.error_message) == (
        "failed",
        "out_of_memory",
        "memory ran out",
    )
    assert not any(place.exists() for place in places)


def test_a_completed_job_keeps_its_products_alone(store: JobStore) -> None:
    job = store.add({}, "me")
    claimed(store)
    run, product, preview = with_files(store, job.id)
    store.finish(job.id, {})
    assert product.exists()
    assert not run.exists()
    assert not preview.exists()


def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    store = JobStore(StateFolder(tmp_path), max_queued=3, max_per_client=2)
    store.add({}, "a")
    store.add({}, "a")
    with pytest.raises(QueueFull, match="2 of your jobs"):
        store.add({}, "a")
    store.add({}, "b")
    with pytest.raises(QueueFull, match="full with 3 jobs") as error:
        store.add({}, "c")
    assert error.value.retry_after == 10
    claimed(store)
    store.add({}, "c")
    assert store.counts()["queued"] == 3


def test_many_clients_at_once_are_admitted_exactly(tmp_path: Path) -> None:
    store = JobStore(StateFolder(tmp_path), max_queued=20, max_per_client=100)
    outcomes: list[str] = []

    def ask(client: int) -> None:
        try:
            store.add({}, f"client {client}")
            outcomes.append("taken")
        except QueueFull:
            outcomes.append("full")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {"taken": 20, "full": 80}
    assert store.counts()["queued"] == 20


def test_clients_take_turns(store: JobStore) -> None:
    for client in "aaabbc":
        store.add({}, client)
    assert [job.position for job in store.list(order="asc")[0]] == [1, 4, 6, 2, 5, 3]
    assert [claimed(store).client for _ in range(6)] == list("abcaba")
    store.add({}, "a")
    store.add({}, "b")
    assert [claimed(store).client for _ in range(2)] == ["b", "a"]


def test_pages(store: JobStore) -> None:
    ids = [store.add({}, "me").id for _ in range(5)]
    page, has_more = store.list(2)
    assert ([job.id for job in page], has_more) == ([ids[4], ids[3]], True)
    page, has_more = store.list(2, after=ids[3])
    assert ([job.id for job in page], has_more) == ([ids[2], ids[1]], True)
    store.delete(ids[1])
    page, has_more = store.list(2, after=ids[1])
    assert ([job.id for job in page], has_more) == ([ids[0]], False)
    page, has_more = store.list(9, order="asc", after=ids[0])
    assert ([job.id for job in page], has_more) == (ids[2:], False)
    claimed(store)
    assert [job.id for job in store.list(states=["in_progress"])[0]] == [ids[0]]
    assert store.list(states=[]) == ([], False)
    with pytest.raises(UserError, match=r"`after`.*video_0"):
        store.list(after="video_0")


def test_cancelling(store: JobStore) -> None:
    waiting, at_work = store.add({}, "me").id, None
    cancelled = store.cancel(waiting)
    assert cancelled is not None
    assert cancelled.state == "cancelled"
    assert store.claim("cpu") is None
    at_work = store.add({}, "me").id
    claimed(store)
    assert store.report(at_work, "denoising", 1, 9)
    asked = store.cancel(at_work)
    assert asked is not None
    assert (asked.state, asked.cancel_requested) == ("in_progress", True)
    assert not store.report(at_work, "denoising", 2, 9)
    places = with_files(store, at_work)
    store.end_cancelled(at_work)
    assert got(store, at_work).state == "cancelled"
    assert not any(place.exists() for place in places)
    again = store.cancel(at_work)
    assert again is not None
    assert again.state == "cancelled"
    assert store.cancel(new_job_id()) is None


def test_deleting(store: JobStore) -> None:
    ended, waiting, at_work = (store.add({}, "me").id for _ in range(3))
    claimed(store)
    store.finish(ended, {})
    places = with_files(store, ended)
    assert store.delete(ended) is not None
    assert not any(place.exists() for place in places)
    store.cancel(waiting)
    assert store.delete(waiting) is not None
    assert claimed(store).id == at_work
    places = with_files(store, at_work)
    assert store.delete(at_work) is not None
    assert store.get(at_work) is None
    assert store.list() == ([], False)
    assert sum(store.counts().values()) == 0
    assert all(place.exists() for place in places), "its worker is still at it"
    assert not store.report(at_work, "denoising", 1, 2)
    store.finish(at_work, {})
    assert not any(place.exists() for place in places)
    assert store.delete(at_work) is None
    assert store.state.job_ids() == set()


def test_changes(store: JobStore) -> None:
    first, second = store.add({}, "me").id, store.add({}, "me").id
    found, gone, version = store.changes(0)
    assert ([job.id for job in found], gone) == ([first, second], [])
    assert store.version() == version
    assert store.changes(version) == ([], [], version)
    claimed(store)
    found, _, version = store.changes(version)
    assert {job.id: job.position for job in found} == {first: None, second: 1}, (
        "the place of the other changed"
    )
    store.report(first, "denoising", 1, 5)
    found, _, after = store.changes(version)
    assert [job.id for job in found] == [first]
    assert after > version
    store.delete(second)
    found, gone, version = store.changes(after)
    assert (found, gone) == ([], [second])
    assert store.changes(10**9)[2] == version
    assert [job.id for job in store.changes(10**9)[0]] == [first]


def test_a_worker_that_was_stopped_counts_nothing(store: JobStore) -> None:
    old, new = store.add({}, "me").id, store.add({}, "other").id
    for release in (lambda: store.recover("cpu"), lambda: store.hand_back(old)):
        for _ in range(3):
            job = claimed(store)
            assert (job.id, job.attempts) == (old, 1), "back at the head of the queue"
            store.report(old, "denoising", 3, 9)
            release()
            back = got(store, old)
            assert (back.state, back.attempts, back.position, back.worker) == ("queued", 0, 1, None)
    store.cancel(old)
    assert claimed(store).id == new
    store.recover("another worker")
    assert got(store, new).state == "in_progress"


def test_a_job_that_kills_its_worker_twice_at_the_same_place_fails(store: JobStore) -> None:
    id = store.add({}, "me").id
    for done in (4, 4):
        assert claimed(store).id == id
        store.report(id, "denoising", done, 9)
        store.recover("cpu", died="SIGSEGV")
    failed = got(store, id)
    assert (failed.state, failed.error_code) == ("failed", "worker_died")
    assert failed.error_message is not None
    assert "SIGSEGV" in failed.error_message
    assert "denoising, 4 of 9" in failed.error_message
    assert failed.attempts == 2


def test_deaths_at_other_places_are_forgiven_up_to_a_limit(store: JobStore) -> None:
    id = store.add({}, "me").id
    for done in range(jobs.MAX_DEATHS):
        assert got(store, id).state == "queued"
        claimed(store)
        store.report(id, "denoising", done, 99)
        store.recover("cpu", died="exit code 1")
    failed = got(store, id)
    assert (failed.state, failed.error_code) == ("failed", "worker_died")
    assert f"{jobs.MAX_DEATHS} times" in str(failed.error_message)


def test_a_cancelled_or_deleted_job_is_not_taken_up_again(store: JobStore) -> None:
    cancelled, deleted = store.add({}, "me").id, store.add({}, "me").id
    claimed(store)
    claimed(store)
    assert store.workers() == ["cpu"]
    store.cancel(cancelled)
    store.delete(deleted)
    places = with_files(store, deleted)
    store.recover("cpu", died="SIGKILL")
    assert got(store, cancelled).state == "cancelled"
    assert store.get(deleted) is None
    assert not any(place.exists() for place in places)
    assert store.claim("cpu") is None
    assert store.workers() == []


def test_sweeping_removes_what_kills_leave(store: JobStore) -> None:
    unknown, completed, waiting = new_job_id(), store.add({}, "me").id, store.add({}, "me").id
    claimed(store)
    store.finish(completed, {})
    gone = with_files(store, unknown)
    run, product, preview = with_files(store, completed)
    kept = with_files(store, waiting)
    store.sweep()
    assert not any(place.exists() for place in [*gone, run, preview])
    assert all(place.exists() for place in [product, *kept])


def test_sweeping_leaves_the_pictures_of_a_job_that_is_being_added(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = tmp_path / "upload"
    upload.mkdir()
    (upload / "image.png").write_bytes(b"x")
    is_moved, is_seen = threading.Event(), threading.Event()
    next_version, writing = jobs.next_version, store._database.writing

    def late(*args: Any, **options: Any) -> int:  # the folder has its name, the row does not exist yet
        is_moved.set()
        assert is_seen.wait(60)
        return next_version(*args, **options)

    def sweeping(**options: Any) -> Any:
        if threading.current_thread() is not adding:
            is_seen.set()
        return writing(**options)

    monkeypatch.setattr(jobs, "next_version", late)
    monkeypatch.setattr(store._database, "writing", sweeping)
    adding = threading.Thread(target=store.add, args=({}, "me"), kwargs={"pictures": upload})
    adding.start()
    assert is_moved.wait(60)
    store.sweep()
    adding.join()
    [job], _ = store.list()
    assert (store.state.pictures(job.id) / "image.png").exists()


def test_a_job_that_was_put_back_started_when_it_first_did(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(jobs, "time", SimpleNamespace(time=lambda: now[0]))
    job = store.add({}, "me")
    claimed(store)
    store.hand_back(job.id)
    now[0] = 300.0
    assert claimed(store).started_at == 100
    now[0] = 310.0
    store.finish(job.id, {})
    assert (got(store, job.id).started_at, got(store, job.id).completed_at) == (100, 310)
    assert store.mean_seconds() == 10  # of the worker that finished it


def test_seconds_of_the_last_jobs(store: JobStore) -> None:
    assert store.mean_seconds() is None
    job = store.add({}, "me")
    claimed(store)
    store.finish(job.id, {})
    seconds = store.mean_seconds()
    assert seconds is not None
    assert 0 <= seconds < 5


WORKER = """
import sys
from ea_runtime.serve.jobs import JobStore
from ea_runtime.serve.state import StateFolder
store, name = JobStore(StateFolder(sys.argv[1])), sys.argv[2]
while (job := store.claim(name)) is not None:
    for done in range(5):
        assert store.report(job.id, "denoising", done, 5)
    store.finish(job.id, {"by": name})
    print(job.id, flush=True)
"""


def test_several_processes_share_the_jobs(tmp_path: Path) -> None:
    store = JobStore(StateFolder(tmp_path), max_queued=99, max_per_client=99)
    ids = [store.add({"number": number}, f"client {number % 3}").id for number in range(60)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), f"cuda{n}"], stdout=subprocess.PIPE, text=True
        )
        for n in range(3)
    ]
    said = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert sorted(id for one in said for id in one) == sorted(ids), "each once"
    assert store.counts()["completed"] == 60


def test_a_database_of_another_version_is_refused(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    JobStore(state).close()
    with sqlite3.connect(state.database) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match=r"version 99.*--state") as error:
        JobStore(state)
    assert "\n" not in str(error.value)


def test_a_damaged_database_is_one_line(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.database.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=r"jobs.sqlite.*--state") as error:
        JobStore(state)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_one_line_and_changes_nothing(store: JobStore) -> None:
    job = store.add({}, "me")
    connection = store._database._connection()
    connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(StoreError, match="full"):
        store.add({"prompt": "x" * 400_000}, "other")
    assert got(store, job.id).position == 1
