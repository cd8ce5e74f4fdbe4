"""Makes videos and is killed meanwhile, over and over; run by test_kills.py as a program.

    python killed_runs.py MODEL FOLDER STATE,NUMBER,SEED...

STATE: "whole", or a deliberately broken twin: "no-history" (the sampler's), "no-generators"; its files are in
FOLDER/STATE. Each video is made in a child that saves its place after every step and is killed (SIGKILL), in turn after
a random step of denoising, after a random frame and at a random moment, until one ends by itself; the twins are killed
in denoising only. NUMBER is the least number of kills. Prints a JSON object with one for each state: "videos" has one
{"sampler", "kills", "resumed", "same"} for each, `resumed` what each attempt found saved, `same` True if file and
frames' bytes equal an undisturbed run's; "left" lists what the folder holds besides videos and sidecars.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ea_runtime.files.hashes import content_hash
from ea_runtime.generation import groups, packing
from ea_runtime.generation.making import make_video
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.resolve import resolve
from ea_runtime.generation.run_files import read_state, state_folder
from ea_runtime.generation.run_state import RunState
from ea_runtime.generation.sidecar import plan_sidecar
from ea_runtime.models.hash import model_hash
from ea_runtime.video.output import plan_output

SAMPLERS = ["unipc", "euler-a", "dpm++", "pndm", "euler", "ddim"]
HISTORY = ("model_outputs", "last_sample", "lower_order_nums", "timestep_list", "ets", "cur_sample")


REAL = groups.put_back


def broken(state: str) -> None:
    """Loses a part of what is put back; nothing for "whole"."""

    def put_back(saved, scheduler, generators, predict, caching):
        if state == "no-generators":
            saved = {**saved, "generators": [torch.Generator().manual_seed(5).get_state()]}
        fresh = packing.attributes(scheduler)
        REAL(saved, scheduler, generators, predict, caching)
        if state == "no-history":
            packing.set_attributes(scheduler, {name: fresh[name] for name in HISTORY if name in fresh})

    groups.put_back = REAL if state == "whole" else put_back


def make(
    pipe: VideoPipeline,
    request: ModelRequest,
    path: Path,
    sha256: str,
    run: RunState | None = None,
    kill_after: tuple[str, int] | None = None,
) -> None:
    def on_step(phase: str, done: int, total: int) -> None:
        if (phase, done) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    output = plan_output(path, overwrite=True)
    sidecar = plan_sidecar(output)
    make_video(pipe, request, output, sidecar, model_sha256=lambda: sha256, on_step=on_step, run=run)


def saved(path: Path) -> str:
    """The files that killed runs of an output left."""
    folder = state_folder(path)
    found, frames = read_state(folder), folder / "frames.jsonl"
    count = frames.read_text().count("\n") if frames.is_file() else 0
    return f"{found.summary if found else 'nothing'}, {count} frames"


def killed_once(
    make_it: Callable[[tuple[str, int] | None], None], way: str, took: float, rng: random.Random
) -> bool:
    """Makes a video in a child; True if it was killed. took: seconds that a whole video takes."""
    after = {"step": ("denoising", rng.randrange(1, 16)), "frame": ("decoding", rng.randrange(1, 18))}.get(
        way
    )
    child = os.fork()
    if not child:
        try:
            make_it(after)
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
    if way == "moment":
        time.sleep(rng.uniform(0.1, 0.9) * took)
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def kill_all(
    pipe: VideoPipeline, model: str, folder: Path, state: str, number: int, seed: int
) -> dict[str, object]:
    """The object of one state."""
    rng, sha256 = random.Random(seed), model_hash(model)
    base = ModelRequest(prompt="a red circle moves right", model=model, dtype="float32", device="cpu", seed=5)
    videos, kills, attempt = [], 0, 0
    while kills < number and attempt < 40:
        sampler = SAMPLERS[attempt % len(SAMPLERS)]
        more = {"step_cache": "teacache:0.05"} if attempt % 2 else {}
        steps = replace(base, sampler=sampler, num_inference_steps=8, num_frames=18, **more)
        request = resolve(steps).request
        name = f"{attempt}-{sampler.replace('+', 'p')}.mp4"
        broken("whole")
        start = time.perf_counter()
        make(pipe, request, folder / "whole" / name, sha256)
        took = time.perf_counter() - start
        broken(state)
        path = folder / "killed" / name

        def make_it(
            after: tuple[str, int] | None, request: ModelRequest = request, path: Path = path
        ) -> None:
            run = RunState(state_folder(path), first_after=0, every=0, note=lambda _: None)
            make(pipe, request, path, sha256, run, after)

        found: list[str] = []
        own_kills = 0
        for way in itertools.cycle(["step", "frame", "moment"] if state == "whole" else ["step"]):
            found.append(saved(path))
            # after a while no more: a run that is killed at the same place for ever does not end
            if not killed_once(make_it, way if len(found) < 8 else "none", took, rng):
                break
            own_kills += 1
        same = path.is_file() and content_hash(path) == content_hash(folder / "whole" / name)
        videos.append({"sampler": sampler, "kills": own_kills, "resumed": found, "same": same})
        kills += own_kills
        attempt += 1
    left = [one.name for one in (folder / "killed").iterdir() if one.suffix not in (".mp4", ".json")]
    return {"videos": videos, "left": left}


def main(model: str, folder: Path, states: list[str]) -> None:
    torch.set_num_threads(1)
    pipe = VideoPipeline.from_pretrained(model, device="cpu", dtype="float32")
    found = {}
    for words in states:
        state, number, seed = words.split(",")
        found[state] = kill_all(pipe, model, folder / state, state, int(number), int(seed))
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
