"""Fixtures of the queue and its workers: a state folder, a worker in this process, and what `ea generate` makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ea_runtime.serve.catalogue import Catalogue
from ea_runtime.serve.jobs import Job, JobStore
from ea_runtime.serve.orders import make_order
from ea_runtime.serve.state import StateFolder

#: a request of `tiny` that takes a moment
QUICK: dict[str, Any] = {"prompt": "a red circle moves right", "num_frames": 9, "steps": 3, "seed": 3}


@dataclass
class Rig:
    """A store and a worker without a process of its own."""

    store: JobStore
    catalogue: Catalogue
    link: Any
    models: Any
    stop: Any
    make: Any

    def add(self, client: str = "me", **fields: Any) -> str:
        """Adds a job and returns its id."""
        return self.store.add(make_order({**QUICK, **fields}, self.catalogue), client).id

    def work(self) -> int:
        """Makes all jobs that wait; returns their number."""
        count = 0
        while (job := self.link.claim()) is not None:
            self.make(job)
            count += 1
        return count

    def ended(self, id: str) -> Job:
        """A job that has ended."""
        job = self.store.get(id)
        assert job is not None
        assert job.has_ended, job
        return job

    def made(self, id: str) -> bytes:
        """The bytes of a completed job's video or picture, its hash checked."""
        job = self.ended(id)
        assert job.result is not None, job
        content = (self.store.state.result(id) / job.result["files"]["video"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == job.result["sha256"]
        return content


@pytest.fixture(scope="session")
def models() -> Any:
    """`tiny` on the CPU, in float32, loaded once for all tests of a process."""
    pytest.importorskip("ea_vae")
    pytest.importorskip("ea_dit")
    from ea_runtime.serve.worker.models import Models

    return Models("cpu")


@pytest.fixture
def rig(tmp_path: Path, models: Any) -> Rig:
    """A worker in this process; LoRAs are in the folder `loras`, models in `models`."""
    from ea_runtime.serve.worker.link import StoreLink
    from ea_runtime.serve.worker.making_job import JobMaker
    from ea_runtime.serve.worker.stopping import Stop

    for name in ("loras", "models"):
        (tmp_path / name).mkdir()
    store = JobStore(StateFolder(tmp_path / "state"), max_queued=999, max_per_client=999)
    catalogue = Catalogue([tmp_path / "models"], [tmp_path / "loras"])
    link, stop = StoreLink(store, "cpu"), Stop()
    return Rig(store, catalogue, link, models, stop, JobMaker(link, models, catalogue, stop))


@pytest.fixture(autouse=True)
def _catalogues_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catalogues read their folders each time."""
    monkeypatch.setattr("ea_runtime.serve.catalogue._FRESH", 0.0)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """undisturbed(loras=[path:weight], **fields): the bytes that `ea generate` makes of a request."""
    from ea_runtime.cli import main

    folder = tmp_path_factory.mktemp("undisturbed")
    known: dict[str, bytes] = {}

    def make(loras: tuple[str, ...] = (), **fields: Any) -> bytes:
        settings = {**QUICK, **fields}
        key = json.dumps([settings, loras], sort_keys=True)
        if key not in known:
            kind = "png" if settings["num_frames"] == 1 else "mp4"
            target = folder / f"{len(known)}.{kind}"
            words = ["generate", settings.pop("prompt"), "--device", "cpu", "--dtype", "float32"]
            if not settings.pop("smooth", True):
                words.append("--no-smooth")
            for name, value in settings.items():
                words += [f"--{name.replace('_', '-')}", str(value)]
            for lora in loras:
                words += ["--lora", lora]
            assert main.run([*words, "-o", str(target)]) == 0
            known[key] = target.read_bytes()
        return known[key]

    return make


@pytest.fixture
def write_lora(tmp_path: Path, models: Any, rig: Rig) -> Callable[..., Path]:
    """write_lora("style", seed=1): a LoRA on every third layer of tiny's denoiser, strong enough to be seen."""
    import torch
    from safetensors.torch import save_file

    ea_lora = pytest.importorskip("ea_lora")
    from ea_runtime.generation.requests import ModelRequest

    entry = rig.catalogue.model("tiny")
    request = ModelRequest(num_frames=9, height=64, width=64, guidance_scale=2.0)
    denoiser = models.get(entry, request)[0].pipe.denoiser

    def write(name: str, seed: int = 0) -> Path:
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        layers = [(n, m) for n, m in ea_lora.find_targets(denoiser).items() if isinstance(m, torch.nn.Linear)]
        for path, layer in layers[seed % 2 :: 3]:
            key = f"lora_unet__{path.replace('.', '_')}"
            down = torch.randn(4, layer.in_features, generator=generator) / layer.in_features**0.5
            up = torch.randn(layer.out_features, 4, generator=generator) / 8
            tensors |= {
                f"{key}.lora_down.weight": down,
                f"{key}.lora_up.weight": up,
                f"{key}.alpha": torch.tensor(4.0),
            }
        target = tmp_path / "loras" / f"{name}.safetensors"
        save_file(tensors, target)
        return target

    return write
