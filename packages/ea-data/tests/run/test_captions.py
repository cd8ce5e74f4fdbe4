"""Captioners that wait for a server: which clips they are asked about, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from ea_data.children.supervisor import Failure
from ea_data.profile import Part
from ea_data.protocols import Caption, FrameRequest, Frames
from ea_data.run.captions import CaptionEngine
from ea_data.run.engine import TaskEngine
from ea_data.run.worker import Task, TaskResult

FRAMES = Frames(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1))
LOOKS: dict[str, TaskResult | Failure] = {
    "seen": TaskResult([], frames=FRAMES),
    "damaged": TaskResult([("damaged", "caption", "1", {"error": "frame 3 cannot be decoded"})]),
    "full disk": TaskResult([], "no space left on device"),
    "crashed": Failure("crash", "its process died"),
}


class Looking:
    """An engine that decodes what LOOKS says."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, TaskResult | Failure]]:
        for task in tasks:
            assert task.stage == "look"
            yield task, LOOKS[task.record["clip_id"]]


def test_only_clips_with_frames_are_described() -> None:
    asked: list[str] = []

    class Server:
        needs, concurrency = FrameRequest("middle"), 2

        def __call__(self, frames: Frames, record: dict[str, Any]) -> Caption:
            asked.append(record["clip_id"])
            return Caption("a red circle", "test")

    part = cast("Part", SimpleNamespace(component=Server()))
    engine = CaptionEngine(cast("TaskEngine", Looking()), part, "1")
    tasks = [Task("caption", {"clip_id": name}) for name in LOOKS]
    found = {task.record["clip_id"]: (task.stage, result) for task, result in engine.run(tasks)}
    assert asked == ["seen"]
    assert {stage for stage, _ in found.values()} == {"caption"}
    assert {name: result for name, (_, result) in found.items() if name != "seen"} == {
        name: result for name, result in LOOKS.items() if name != "seen"
    }
    _, described = found["seen"]
    assert isinstance(described, TaskResult)
    caption = {"text": "a red circle", "model": "test", "prompt_hash": ""}
    assert described.entries == [("seen", "caption", "1", caption)]
