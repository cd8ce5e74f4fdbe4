"""Workers on a Ray cluster of this machine alone share the jobs of a folder."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.serve.catalogue import Catalogue
from ea_runtime.serve.crew import Settings
from ea_runtime.serve.jobs import JobStore
from ea_runtime.serve.orders import make_order
from ea_runtime.serve.ray_workers import RayWorkers, manager
from ea_runtime.serve.ray_workers.head import Head, read_files
from ea_runtime.serve.ray_workers.link import RayLink
from ea_runtime.serve.state import StateFolder

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra `ray` of ea-runtime)"
)
FIELDS: dict[str, Any] = {"prompt": "a red circle moves right", "num_frames": 9, "steps": 16}
PATIENCE = 400.0


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited too long until {what}"
        time.sleep(0.01)
    return found


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayWorkers]:
    """Two workers, not yet started."""
    pytest.importorskip("ea_vae")
    pytest.importorskip("ea_dit")
    manager.import_ray()
    import ray

    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")
    store = JobStore(StateFolder(tmp_path), max_queued=99, max_per_client=99)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    crew = RayWorkers(store, Settings(save_first=0.0, save_every=0.0), address="local", count=2)
    yield crew
    crew.drain(60.0)
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@needs_ray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
def test_two_workers_share_six_jobs_and_one_is_killed(crew: RayWorkers, undisturbed: Any) -> None:
    store, seeds = crew.store, range(6)
    ids = [store.add(make_order({**FIELDS, "seed": seed}, Catalogue()), "me").id for seed in seeds]
    crew.start()
    first = crew._members[0]
    wait_until(lambda: len(store.workers()) == 2, "both workers have a job")

    def saved() -> Any:
        """The first worker's job once its place has reached the head."""
        jobs, _ = store.list(99, states=["in_progress"])
        job = next((job for job in jobs if job.worker == first.name), None)
        is_saved = job is not None and (store.state.run(job.id) / "state.json").is_file()
        return job if is_saved else None

    job = wait_until(saved, "the place of a job is saved on the head")
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: first.deaths == 1, "the death is noticed")
    wait_until(lambda: all(store.get(id).has_ended for id in ids), "all jobs end")  # pyright: ignore
    jobs, _ = store.list(99, order="asc")
    assert [(one.id, one.state) for one in jobs] == [(id, "completed") for id in ids]
    assert sum(one.attempts for one in jobs) <= 7
    for id, seed in zip(ids, seeds, strict=True):
        made = (store.state.result(id) / "video.mp4").read_bytes()
        assert made == undisturbed(**{**FIELDS, "seed": seed})
        names = {path.name for path in store.state.result(id).iterdir()}
        assert names == {"video.mp4", "video.json", "thumbnail.webp", "spritesheet.jpg"}
    assert not store.state.run(job.id).exists()


class Local:
    """As Ray: calls of an actor that is an object here."""

    class exceptions:
        class RayTaskError(Exception):
            pass

    @staticmethod
    def get(answer: Any) -> Any:
        return answer

    @staticmethod
    def put(value: Any) -> Any:
        return value


class Handle:
    """As Ray's handle of an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)
        return type("Method", (), {"remote": staticmethod(method)})


def test_states_and_results_travel_through_the_link(tmp_path: Path) -> None:
    head = Head(str(tmp_path / "state"))
    store = head._store
    links = [RayLink(Local, Handle(head), f"ray-{n}", tmp_path / f"node-{n}") for n in range(2)]
    sent = tmp_path / "sent"
    sent.mkdir()
    (sent / "image.png").write_bytes(b"a picture")
    id = store.add({"pictures": ["image"]}, "me", pictures=sent).id
    job = links[0].claim()
    assert job is not None
    places = links[0].open(job)
    assert (places.pictures / "image.png").read_bytes() == b"a picture"
    assert tmp_path / "node-0" in places.pictures.parents
    (places.run / "denoising-3.safetensors").write_bytes(b"latents")
    (places.run / "frames.raw").write_bytes(b"large")
    (places.run / "state.json").write_bytes(b"{}")
    assert links[0].report(job, "denoising", 3, 9)
    assert read_files(store.state.run(id)).keys() == {"denoising-3.safetensors", "state.json"}
    store.recover("ray-0", died="the loss of its process")
    again = links[1].claim()
    assert again is not None
    places = links[1].open(again)
    assert (places.run / "denoising-3.safetensors").read_bytes() == b"latents"
    assert (places.pictures / "image.png").read_bytes() == b"a picture"
    (places.result / "video.mp4").write_bytes(b"video")
    links[1].show(again, b"picture")
    assert store.state.preview(id).read_bytes() == b"picture"
    links[1].finish(again, {"files": {"video": "video.mp4"}})
    assert (store.state.result(id) / "video.mp4").read_bytes() == b"video"
    assert not places.result.exists(), "the node keeps nothing"
    assert not places.pictures.exists()
    assert (store.state.pictures(id) / "image.png").exists()
    assert not store.state.run(id).exists()
    job = store.get(id)
    assert job is not None
    assert job.state == "completed"


def test_a_worker_that_asks_again_gets_its_job_again(tmp_path: Path) -> None:
    head = Head(str(tmp_path))
    id = head._store.add({}, "me").id
    for _ in range(3):  # the answer was lost
        job = head.claim("ray-0")
        assert job is not None
        assert (job.id, job.attempts) == (id, 1)


def test_files_of_a_job_are_names_alone(tmp_path: Path) -> None:
    head = Head(str(tmp_path / "state"))
    id = head._store.add({}, "me").id
    head.claim("ray-0")
    with pytest.raises(ValueError, match="a name alone"):
        head.save(id, {"../../escaped": b"x"})
    assert not (tmp_path / "escaped").exists()


def test_without_ray_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(manager, "import_module", missing)
    with pytest.raises(MissingPackageError, match=r"ea-runtime\[ray\]") as error:
        manager.import_ray()
    assert "\n" not in str(error.value)


def test_a_cluster_that_cannot_be_joined_is_one_line() -> None:
    class Broken:
        @staticmethod
        def init(**options: Any) -> None:
            raise ConnectionError("could not find\nany running Ray instance")

    with pytest.raises(UserError, match=r"'10.0.0.1:1' cannot be joined: could not find.*HOST:PORT") as error:
        manager.join(Broken, "10.0.0.1:1")
    assert "\n" not in str(error.value)
