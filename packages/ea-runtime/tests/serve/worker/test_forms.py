"""Models of a server in the form that was asked for: the bytes and the record are those of `ea generate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ea_runtime.generation.recipe import read_embedded
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.models.layout import resolve_folder
from ea_runtime.models.quantize_layers import count_quantized, weight_bytes
from ea_runtime.planning.units import in_gb
from ea_runtime.serve.catalogue import Catalogue
from ea_runtime.serve.crew import Loading, Settings
from ea_runtime.serve.jobs import JobStore
from ea_runtime.serve.state import StateFolder
from ea_runtime.serve.supervisor import _Keeper
from ea_runtime.serve.worker.__main__ import _parser
from ea_runtime.serve.worker.models import Models

PICTURE: dict[str, Any] = {"num_frames": 1, "steps": 2, "size": "64x64"}
REQUEST = ModelRequest(
    model="tiny",
    prompt="a red circle",
    num_frames=9,
    height=64,
    width=64,
    num_inference_steps=2,
    guidance_scale=2.0,
    smooth=True,
    engine="torch",
    sampler="dpm++",
)


def with_models(rig: Any, loading: Loading, free: Callable[[torch.device], int] | None = None) -> Any:
    """The rig with a worker that holds models in a given form."""
    rig.models = rig.make.models = Models("cpu", free, loading)
    return rig


@pytest.mark.parametrize("form", [{"offload": "group"}, {"quantize": "fp8-unscaled"}])
def test_a_job_makes_what_the_command_makes(form: dict[str, str], rig: Any, undisturbed: Any) -> None:
    with_models(rig, Loading(**form))
    id = rig.add(**PICTURE)
    rig.work()
    assert rig.made(id) == undisturbed(**PICTURE, **form)
    sidecar = json.loads((rig.store.state.result(id) / "picture.json").read_text())
    assert sidecar["device"].get("quantize") == form.get("quantize")
    recipe = read_embedded(rig.store.state.result(id) / "picture.png", "png")
    # the file without its sidecar says it too
    assert recipe["device"].get("quantize") == form.get("quantize")
    pipe = rig.models._loaded["tiny"].pipe
    assert pipe.offload == form.get("offload", "none")
    # the twin: other weights, other bytes; waiting changes none
    assert (rig.made(id) == undisturbed(**PICTURE)) == ("offload" in form)
    assert bool(count_quantized(pipe.denoiser)) == ("quantize" in form)


def test_the_cheapest_way_that_fits_is_taken_for_each_job(tmp_path: Path) -> None:
    room = 1 << 40
    models = Models("cpu", lambda device: room, Loading(offload="auto"))
    entry = Catalogue().model("tiny")
    first, _ = models.get(entry, REQUEST)
    assert first.offload == first.pipe.offload == "none"
    room = -(1 << 40)  # nothing fits: the way that takes least
    small, seconds = models.get(entry, REQUEST)
    assert (small.offload, small.pipe.offload) == ("group", "group")
    assert seconds > 0
    assert models.get(entry, REQUEST) == (small, 0.0)
    room = 1 << 40
    again, _ = models.get(entry, REQUEST)
    assert again.offload == "none"


def test_room_is_made_for_the_weights_in_their_form() -> None:
    folder = resolve_folder(Catalogue().model("tiny").folder)

    def needed(loading: Loading) -> int:
        models = Models("cpu", None, loading)
        request = replace(REQUEST, quantize=loading.quantize)
        with_weights, without = (
            models._needed(folder, request, with_weights=one, offload=loading.offload)
            for one in (True, False)
        )
        return round((with_weights - without) / 1.1)

    plain, narrow, waiting = (
        needed(Loading(**form)) for form in ({}, {"quantize": "fp8-unscaled"}, {"offload": "group"})
    )
    pipe = Models("cpu", None, Loading("fp8-unscaled")).get(Catalogue().model("tiny"), REQUEST)[0].pipe
    held = sum(weight_bytes(part) for part in (pipe.vae, pipe.denoiser, pipe.text.model))
    assert narrow == pytest.approx(held, rel=0.02), in_gb(held)
    assert narrow < 0.7 * plain
    assert waiting < 0.7 * plain


def test_workers_are_started_with_the_form(tmp_path: Path) -> None:
    store = JobStore(StateFolder(tmp_path))
    for loading in (Loading(), Loading("text=nf4", "auto")):
        keeper: Any = _Keeper.__new__(_Keeper)
        keeper.store, keeper.name, keeper.device = store, "cpu", "cpu"
        keeper.settings = Settings(["cpu"], loading=loading)
        options = _parser().parse_args(keeper._command()[3:])
        assert Loading(options.quantize, options.offload) == loading
