"""Jobs that start from pictures: the bytes of `ea generate --image`, kills in the middle, what is said of places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ea_runtime.serve.orders import make_order
from ea_runtime.serve.worker.making_job import Saving

REQUEST: dict[str, Any] = {
    "prompt": "a red circle moves right",
    "num_frames": 18,
    "size": "64x64",
    "steps": 6,
    "seed": 3,
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a first and a last picture."""
    folder = tmp_path / "sent"
    folder.mkdir()
    for name, colour in (("image", "red"), ("image_end", "blue")):
        picture = Image.new("RGB", (80, 64), "white")
        picture.paste(colour, (20, 20, 44, 44))
        picture.save(folder / f"{name}.png")
    return folder


def add(rig: Any, folder: Path, names: list[str], **fields: Any) -> str:
    """A job that starts from duplicates of the folder's pictures."""
    order = make_order({**REQUEST, **fields}, rig.catalogue, pictures=names)
    place = rig.store.state.uploads / "some"
    place.mkdir()
    for name in names:
        (place / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes())
    return rig.store.add(order, "me", pictures=place).id


def test_a_job_makes_what_the_command_makes(rig: Any, undisturbed: Any, pictures: Path) -> None:
    first, last = pictures / "image.png", pictures / "image_end.png"
    plain = add(rig, pictures, ["image"])
    both = add(rig, pictures, ["image", "image_end"], strength=0.5, fit="pad")
    assert rig.work() == 2
    assert rig.made(plain) == undisturbed(**REQUEST, image=str(first))
    wanted = {"image": str(first), "image_end": str(last), "strength": "0.5", "fit": "pad"}
    assert rig.made(both) == undisturbed(**REQUEST, **wanted)
    assert rig.made(plain) != undisturbed(**REQUEST, image=str(last)), "the twin: another picture"
    assert str(rig.store.state.root).encode() not in rig.made(plain)


def test_a_kill_in_the_middle_resumes(
    rig: Any, undisturbed: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.make.saving = Saving(0.0, 0.0)
    id = add(rig, pictures, ["image"])
    real, passes = rig.link.report, list[int]()

    def report(job: Any, phase: str, done: int, total: int) -> bool:
        answer = real(job, phase, done, total)
        if phase == "denoising":
            passes.append(done)
            if len(passes) == 4:
                raise KeyboardInterrupt  # as a kill: nothing is tidied
        return answer

    monkeypatch.setattr(rig.link, "report", report)
    with pytest.raises(KeyboardInterrupt):
        rig.work()
    before = passes[-1]
    assert (rig.store.state.run(id) / "state.json").exists()
    assert (rig.store.state.pictures(id) / "image.png").exists()
    rig.store.recover("cpu", died="SIGKILL")
    assert rig.work() == 1
    assert passes[4] >= before - 1, "it went on where it was"
    assert rig.made(id) == undisturbed(**REQUEST, image=str(pictures / "image.png"))


def test_a_picture_that_is_gone_is_one_line_without_places(rig: Any, pictures: Path) -> None:
    id = add(rig, pictures, ["image"])
    (rig.store.state.pictures(id) / "image.png").unlink()
    rig.work()
    job = rig.ended(id)
    assert job.state == "failed"
    assert "picture" in job.error_message
    assert "\n" not in job.error_message
    assert str(rig.store.state.root) not in job.error_message


def test_pictures_stay_as_long_as_their_job(rig: Any, pictures: Path) -> None:
    done, cancelled, deleted = (add(rig, pictures, ["image"], steps=1) for _ in range(3))
    rig.store.cancel(cancelled)
    rig.store.delete(deleted)
    rig.work()
    rig.store.sweep()
    state = rig.store.state
    assert [state.pictures(id).exists() for id in (done, cancelled, deleted)] == [True, True, False]
    assert np.asarray(Image.open(state.pictures(done) / "image.png")).shape == (64, 80, 3)
    rig.store.delete(done)
    assert not state.pictures(done).exists()
