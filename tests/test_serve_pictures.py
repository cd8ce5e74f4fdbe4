"""A video from a picture through `ea serve`: the real client sends it, the first frame shows it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ea_data.draw.caption import caption
from ea_data.draw.scene import render, sample_scene
from ea_runtime.serve.catalogue import Catalogue
from ea_runtime.serve.http.app import App
from ea_runtime.serve.http.server import make_server, open_socket
from ea_runtime.serve.http.service import Service
from ea_runtime.serve.jobs import JobStore
from ea_runtime.serve.state import StateFolder
from ea_runtime.video.reader import read_frames

#: dB between the picture and the first frame: the VAE's own loss and H.264's are above it
LEAST = 28.0


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, JobStore]]:
    """The address of a server, and its store."""
    state = StateFolder(tmp_path / "state")
    store = JobStore(state)
    ready = threading.Event()
    server = make_server(App(Service(store, state, Catalogue())), ready.set)
    bound = open_socket("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        assert ready.wait(20)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1", store
    finally:
        server.should_exit = True
        thread.join(20)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a / 255.0 - b / 255.0) ** 2)))


def test_the_first_frame_is_the_picture(served: tuple[str, JobStore], tmp_path: Path) -> None:
    from openai import OpenAI

    from ea_runtime.serve.worker.link import StoreLink
    from ea_runtime.serve.worker.making_job import JobMaker
    from ea_runtime.serve.worker.models import Models
    from ea_runtime.serve.worker.stopping import Stop

    address, store = served
    scene = sample_scene(43, 5)
    first = render(scene, 64, 64, 18)[0]
    Image.fromarray(first).save(tmp_path / "first.png")
    link, catalogue, stop = StoreLink(store, "cpu"), Catalogue(), Stop()
    make = JobMaker(link, Models("cpu"), catalogue, stop)
    with warnings.catch_warnings(), OpenAI(base_url=address, api_key="x", max_retries=0) as client:
        warnings.simplefilter("ignore", DeprecationWarning)
        extra = {"size": "64x64", "num_frames": 18, "steps": 10, "seed": 3}
        with (tmp_path / "first.png").open("rb") as file:
            video = client.videos.create(
                prompt=caption(scene, 43, 5),
                model="tiny",
                input_reference=file,
                extra_body=extra,
            )
        plain = client.videos.create(prompt=caption(scene, 43, 5), model="tiny", extra_body=extra)
        while (job := link.claim()) is not None:
            make(job)
        found = []
        for one in (video, plain):
            assert client.videos.retrieve(one.id).status == "completed"
            place = tmp_path / f"{one.id}.mp4"
            client.videos.download_content(one.id).write_to_file(place)
            found.append(psnr(next(iter(read_frames(place))), first))
    assert found[0] >= LEAST, found
    assert found[1] < LEAST, "the twin: without the picture it is another frame"
