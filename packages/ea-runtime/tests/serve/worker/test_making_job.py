from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ea_runtime.serve.worker import making_job


@pytest.fixture
def swapped(rig: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """swapped(function): replaces how the link reports; the function gets the real one."""

    def swap(function: Any) -> None:
        real = rig.link.report
        monkeypatch.setattr(rig.link, "report", lambda *words: function(real, *words))

    return swap


def weights_hash(pipe: Any) -> str:
    digest = hashlib.sha256()
    for part in (pipe.vae, pipe.denoiser, pipe.text.model):
        for name, tensor in sorted(part.state_dict().items()):
            if "lora" not in name.lower():
                digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def pipe_of(rig: Any) -> Any:
    return rig.models._loaded["tiny"].pipe


def test_a_job_makes_what_the_command_makes(rig: Any, undisturbed: Any) -> None:
    video, picture = rig.add(), rig.add(num_frames=1, seed=5)
    other: dict[str, Any] = {"fps": 8, "guidance": 3, "sampler": "euler-a", "size": "128x64", "smooth": False}
    unlike = rig.add(**other, negative_prompt="grey")
    windows: dict[str, Any] = {"num_frames": 36, "prompts_at": "18f: a blue square"}
    long = rig.add(**windows)
    assert rig.work() == 4
    assert rig.made(video) == undisturbed()
    assert rig.made(unlike) == undisturbed(**other, negative="grey")
    assert rig.made(picture) == undisturbed(num_frames=1, seed=5)
    assert rig.made(long) == undisturbed(**windows)
    assert rig.made(video) != undisturbed(seed=4), "the twin: another seed"


def test_products(rig: Any) -> None:
    id = rig.add(num_frames=18, size="128x64")
    rig.work()
    job = rig.ended(id)
    files = job.result["files"]
    assert files == {
        "video": "video.mp4",
        "sidecar": "video.json",
        "thumbnail": "thumbnail.webp",
        "spritesheet": "spritesheet.jpg",
    }
    folder = rig.store.state.result(id)
    assert {path.name for path in folder.iterdir()} == set(files.values())
    assert {name: job.result[name] for name in ("frames", "width", "height")} == {
        "frames": 18,
        "width": 128,
        "height": 64,
    }
    assert job.result["bytes"] == (folder / "video.mp4").stat().st_size
    assert job.result["timings"].keys() >= {"text", "denoising", "decoding", "writing"}
    with Image.open(folder / "thumbnail.webp") as picture:
        assert (picture.format, picture.size) == ("WEBP", (128, 64))
        assert b"trainedAlgorithmicMedia" in picture.info["xmp"]
    with Image.open(folder / "spritesheet.jpg") as sheet:
        assert (sheet.format, sheet.size) == ("JPEG", (4 * 128, 4 * 64))
        assert b"trainedAlgorithmicMedia" in sheet.info["xmp"]
        assert np.asarray(sheet).std() > 10, "it shows something"


def test_cancelling_takes_at_most_one_step(rig: Any, swapped: Any) -> None:
    passes: list[int] = []
    cancelled_at = 4
    id = rig.add(steps=12)

    def report(real: Any, job: Any, phase: str, done: int, total: int) -> bool:
        if phase == "denoising":
            passes.append(done)
            if done == cancelled_at:
                answer = real(job, phase, done, total)
                rig.store.cancel(id)  # comes just after the worker looked
                return answer
        return real(job, phase, done, total)

    swapped(report)
    rig.work()
    assert rig.ended(id).state == "cancelled"
    assert max(passes) <= cancelled_at + 1
    assert not rig.store.state.result(id).exists()
    passes.clear()
    cancelled_at = 99  # the twin: nobody cancels
    rig.add(steps=12)
    rig.work()
    assert max(passes) == 12


def test_a_deleted_job_stops_and_leaves_nothing(rig: Any, swapped: Any) -> None:
    id = rig.add(steps=9)

    def report(real: Any, job: Any, phase: str, done: int, total: int) -> bool:
        if (phase, done) == ("decoding", 3):
            rig.store.delete(id)
        return real(job, phase, done, total)

    swapped(report)
    rig.work()
    assert rig.store.get(id) is None
    assert rig.store.state.job_ids() == set()


@pytest.mark.parametrize("place", [("denoising", 5), ("decoding", 4), ("loading", 1), ("text", 1)])
def test_a_drain_saves_the_place_and_the_next_worker_resumes_there(
    rig: Any, swapped: Any, undisturbed: Any, place: tuple[str, int]
) -> None:
    id = rig.add(steps=9)
    seen: list[tuple[str, int]] = []

    def report(real: Any, job: Any, phase: str, done: int, total: int) -> bool:
        seen.append((phase, done))
        if (phase, done) == place:
            rig.stop.set()
        return real(job, phase, done, total)

    swapped(report)
    rig.make(rig.link.claim())
    back = rig.store.get(id)
    assert (back.state, back.attempts, back.position) == ("queued", 0, 1)
    first, seen[:] = list(seen), []
    assert first[-1] == place, "within one step"
    rig.stop._event.clear()
    place = ("", 0)
    rig.work()
    assert rig.made(id) == undisturbed(steps=9)
    passes = [done for phase, done in seen if phase == "denoising" and done]
    if first[-1][0] == "denoising":
        assert passes == [5, 6, 7, 8, 9], "it resumed after the last pass, and did not start over"
    elif first[-1][0] == "decoding":
        assert passes == [9], "no pass ran again"


def test_what_fails_fails_in_one_line_and_the_next_job_is_right(
    rig: Any, undisturbed: Any, write_lora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = write_lora("style")
    gone, bad_steps, broken = (
        rig.add(loras=[{"name": "style"}]),
        rig.add(sampler="pndm", steps=200),
        rig.add(),
    )
    request = dict(rig.store.get(broken).request, settings={"unknown": 3})
    with rig.store._database.writing() as db:
        import json

        db.execute("UPDATE jobs SET request = ? WHERE id = ?", (json.dumps(request), broken))
    good = rig.add()
    lora.unlink()
    rig.work()
    assert rig.ended(gone).error_code == "lora_not_found"
    assert rig.ended(broken).error_code == "internal_error"
    for id in (gone, broken):
        message = rig.ended(id).error_message
        assert "\n" not in message
        assert str(rig.store.state.root.parent) not in message
        assert not rig.store.state.result(id).exists()
    assert rig.ended(bad_steps).has_ended
    assert rig.made(good) == undisturbed()


def test_a_model_deleted_meanwhile(rig: Any, tmp_path: Path) -> None:
    from ea_runtime.models.layout import bundled_folder

    mine = Path(shutil.copytree(bundled_folder("tiny"), tmp_path / "models" / "mine"))
    first, second, third = rig.add(model="mine"), rig.add(model="mine"), rig.add(model="mine", seed=9)
    rig.make(rig.link.claim())
    assert rig.ended(first).state == "completed"
    (mine / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    rig.make(rig.link.claim())
    job = rig.ended(second)
    assert job.error_code == "model_unusable"
    assert "'mine' cannot be loaded" in job.error_message
    assert str(tmp_path) not in job.error_message
    shutil.rmtree(mine)
    rig.make(rig.link.claim())
    job = rig.ended(third)
    assert (job.error_code, "no model is called 'mine'" in job.error_message) == ("model_not_found", True)


def test_a_full_disk_fails_the_job_and_leaves_nothing(
    rig: Any, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ea_runtime.video import writers

    real, count = writers.Mp4Writer.add, 0

    def add(self: Any, frame: Any) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, frame)

    monkeypatch.setattr(writers.Mp4Writer, "add", add)
    full, good = rig.add(), rig.add()
    rig.work()
    job = rig.ended(full)
    assert (job.error_code, job.error_message) == (
        "disk_full",
        "the server's disk is full; free some space there, then ask again",
    )
    assert not rig.store.state.result(full).exists()
    assert rig.made(good) == undisturbed()


@pytest.mark.parametrize("where", ["text", "denoising 2", "decoding", "products"])
def test_after_running_out_of_memory_the_next_request_is_right(
    rig: Any, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    rig.add()
    rig.work()
    pipe, before = pipe_of(rig), weights_hash(pipe_of(rig))
    count = 0
    is_failing = True

    def failing(real: Any, at: int) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if is_failing and count >= at:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return real(*args, **kwargs)

        return wrapped

    if where == "text":
        monkeypatch.setattr(pipe.text.model, "forward", failing(pipe.text.model.forward, 1))
    elif where == "decoding":
        monkeypatch.setattr(pipe.vae, "iter_decode", failing(pipe.vae.iter_decode, 1))
    elif where == "products":
        monkeypatch.setattr(making_job, "make_products", failing(making_job.make_products, 1))
    else:
        monkeypatch.setattr(pipe.denoiser, "forward", failing(pipe.denoiser.forward, 2))
    short = rig.add()
    rig.work()
    job = rig.ended(short)
    assert job.error_code == "out_of_memory"
    assert "\n" not in job.error_message
    if where != "products":
        assert "try num_frames=1" in job.error_message, "it names what fits"
    is_failing = False
    good = rig.add()
    rig.work()
    assert rig.made(good) == undisturbed()
    assert weights_hash(pipe_of(rig)) == before


def test_out_of_memory_is_tried_again_without_the_other_models(
    rig: Any, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[str] = []
    monkeypatch.setattr(
        rig.models, "drop_others", lambda entry: not dropped and not dropped.append(entry.name)
    )
    real, count = making_job.make_video, 0

    def make_video(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(making_job, "make_video", make_video)
    id = rig.add()
    rig.work()
    assert dropped == ["tiny"]
    assert rig.made(id) == undisturbed()


def test_a_lost_device_fails_the_job_and_ends_the_worker(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(making_job, "make_video", lost)
    id = rig.add()
    with pytest.raises(making_job.DeviceLost):
        rig.work()
    assert rig.ended(id).error_code == "internal_error"


def test_a_store_that_cannot_be_written_for_a_while_loses_nothing(
    rig: Any, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ea_runtime.serve.jobs import StoreError

    monkeypatch.setattr(making_job, "_INSIST_EVERY", 0.01)
    real, tries = rig.store.finish, 0

    def finish(*args: Any) -> None:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise StoreError("the disk is full")
        real(*args)

    monkeypatch.setattr(rig.store, "finish", finish)
    monkeypatch.setattr(rig.store, "report", lambda *args: (_ for _ in ()).throw(StoreError("full")))
    id = rig.add()
    rig.work()
    assert rig.made(id) == undisturbed()


def test_many_clients_some_failing_leave_no_trace(
    rig: Any, undisturbed: Any, write_lora: Any, request: pytest.FixtureRequest
) -> None:
    """RELIABILITY row 5: 200 requests of 16 clients, 30% failing; the whole under EA_FULL=1."""
    style, inks = write_lora("style", 1), write_lora("inks", 2)
    rig.add()
    rig.work()
    before = weights_hash(pipe_of(rig))
    draw = random.Random(5)
    kinds: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({}, ()),
        ({"seed": 8, "num_frames": 1}, ()),
        ({"loras": [{"name": "style", "scale": 0.7}]}, (f"{style}:0.7",)),
        ({"loras": [{"name": "inks"}, {"name": "style", "scale": 1.5}]}, (str(inks), f"{style}:1.5")),
        ({"loras": [{"name": "style", "scale": 1.5}, {"name": "inks"}]}, (f"{style}:1.5", str(inks))),
        ({"sampler": "euler-a", "guidance": 1.0}, ()),
        ({"step_cache": "teacache:0.3", "steps": 6}, ()),
    ]
    total = 200 if os.environ.get("EA_FULL") else 24
    failing = [lambda job: {"prompt": 3}, lambda job: {"seed": -5}, lambda job: {"sampler": "none"}]
    jobs: list[tuple[str, dict[str, Any], tuple[str, ...]]] = []
    broken: list[str] = []
    for number in range(total):
        fields, loras = kinds[number % len(kinds)] if number < len(kinds) else draw.choice(kinds)
        id = rig.add(client=f"client {number % 16}", **fields)
        if draw.random() < 0.3:
            wrong = draw.choice(failing)(number)
            order = rig.store.get(id).request
            order = {**order, "settings": {**order["settings"], **wrong}}
            with rig.store._database.writing() as db:
                db.execute("UPDATE jobs SET request = ? WHERE id = ?", (json.dumps(order), id))
            broken.append(id)
        else:
            jobs.append((id, fields, loras))
    assert rig.work() == total
    assert broken
    for id in broken:
        assert rig.ended(id).state == "failed"
    for id, fields, loras in jobs:
        solo = {name: value for name, value in fields.items() if name != "loras"}
        assert rig.made(id) == undisturbed(loras, **solo), fields
    assert len({rig.made(id) for id, *_ in jobs}) == len({str(kind) for _, *kind in jobs}), (
        "they differ by kind"
    )
    rig.models._loaded["tiny"].loras.put([])
    assert weights_hash(pipe_of(rig)) == before
