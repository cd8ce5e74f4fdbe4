from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ea_runtime.generation.requests import MAX_SEED
from ea_runtime.serve.catalogue import Catalogue
from ea_runtime.serve.orders import FIELDS, Limits, Refused, allowed_frames, fields_of, make_order


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    for name in ("style", "inks"):
        save_file({"x": np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors")
    return Catalogue(loras=[tmp_path])


def order(catalogue: Catalogue, limits: Limits | None = None, **fields: Any) -> dict[str, Any]:
    return make_order({"prompt": "a red circle", **fields}, catalogue, limits)


def refused(catalogue: Catalogue, limits: Limits | None = None, **fields: Any) -> Refused:
    with pytest.raises(Refused) as error:
        order(catalogue, limits, **fields)
    assert "\n" not in str(error.value)
    return error.value


def test_what_is_left_out_is_the_models_own(catalogue: Catalogue) -> None:
    made = order(catalogue)
    seed = made["settings"].pop("seed")
    assert 0 <= seed <= MAX_SEED
    assert made == {
        "settings": {
            "prompt": "a red circle",
            "negative_prompt": "",
            "num_frames": 18,
            "height": 64,
            "width": 64,
            "num_inference_steps": 20,
            "guidance_scale": 2.0,
            "sampler": "dpm++",
            "smooth": True,
        },
        "fps": 12,
        "model": "tiny",
        "loras": [],
        "kind": "mp4",
        "seconds": 1.5,
        "size": "64x64",
        "pictures": [],
    }


def test_every_field_arrives(catalogue: Catalogue) -> None:
    fields: dict[str, Any] = {
        "prompt": "a blue square",
        "negative_prompt": "grey",
        "model": "tiny",
        "size": "128x64",
        "num_frames": 45,
        "fps": 8,
        "seed": 7,
        "steps": 4,
        "guidance": 1.5,
        "sampler": "euler",
        "loras": [{"name": "style", "scale": 0.5}],
        "step_cache": "teacache:0.2",
        "smooth": False,
        "strength": 0.5,
        "fit": "pad",
        "prompts_at": [["27f", "a red circle"]],
        "window": 27,
        "loop": None,
        "join": "pixels",
    }
    made = make_order(fields, catalogue, pictures=["image_end"])
    assert made["pictures"] == ["image_end"]
    assert fields_of(made) == fields
    assert make_order(fields_of(made), catalogue, pictures=["image_end"]) == made
    with pytest.raises(Refused, match="input_reference") as error:
        make_order(fields, catalogue)
    assert error.value.param == "strength"
    assert set(fields) == set(FIELDS) - {"seconds"}


def test_text_as_forms_send_it_is_the_same(catalogue: Catalogue) -> None:
    numbers = {"num_frames": 9, "steps": 4, "guidance": 1.5, "fps": 8, "seed": 7, "smooth": False}
    texts = {
        "num_frames": "9",
        "steps": " 4 ",
        "guidance": "1.5",
        "fps": "8.0",
        "seed": "7",
        "smooth": "false",
    }
    loras = '[{"name": "style"}]'
    assert order(catalogue, **texts, loras=loras) == order(catalogue, **numbers, loras=[{"name": "style"}])
    assert order(catalogue, seed=7, negative_prompt=None, loras=None) == order(catalogue, seed=7)


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [("1", 9), (1.2, 18), ("0.01", 1), (0.2, 1), (1.125, 9), ("4", 45), ("63.9", 765), ("70", 837)],
)
def test_seconds_are_rounded_to_what_the_model_can_make(
    catalogue: Catalogue, seconds: Any, frames: int
) -> None:
    made = order(catalogue, seconds=seconds, fps=12)
    assert made["settings"]["num_frames"] == frames
    assert made["seconds"] == frames / 12
    assert made["kind"] == ("png" if frames == 1 else "mp4")


def test_longer_videos_are_made_in_windows(catalogue: Catalogue) -> None:
    made = order(catalogue, num_frames=1440, loop="true", prompts_at="60s: a blue circle")["settings"]
    assert (made["window"], made["loop"], made["prompts_at"]) == (18, True, [["720f", "a blue circle"]])
    assert "window" not in order(catalogue, num_frames=18, loop=False, window="36")["settings"]
    bad: list[tuple[dict[str, Any], str, str]] = [
        ({"num_frames": 90_000}, "size", "pixels"),
        ({"num_frames": 27, "window": 9}, "window", "at least 18"),
        ({"num_frames": 27, "window": 774}, "window", "at most 765"),
        ({"loop": "perhaps"}, "loop", "true or false"),
        ({"join": "pixels"}, "join", "in one piece"),
        ({"join": 3}, "join", "must be text"),
        ({"prompts_at": "0s: a"}, "prompts_at", "leave one out"),
        ({"prompts_at": "9s: a"}, "prompts_at", "18 frames"),
        ({"prompts_at": {"1s": "a"}}, "prompts_at", "must be such as"),
        ({"num_frames": 27, "prompts_at": "18f: a <lora:style:1>"}, "prompts_at", "lora"),
    ]
    for fields, param, words in bad:
        error = refused(catalogue, **fields)
        assert error.param == param, (fields, str(error))
        assert words in str(error), str(error)
    assert refused(catalogue, prompts_at="1s: " + "a" * 20_000).code == "too_large"


def test_num_frames_win_over_seconds(catalogue: Catalogue) -> None:
    assert order(catalogue, seconds="4", num_frames=9)["settings"]["num_frames"] == 9


def test_seeds(catalogue: Catalogue) -> None:
    assert (
        len({order(catalogue, seed=seed)["settings"]["seed"] for seed in ("random", -1, "-1", "", None)}) == 5
    )
    assert order(catalogue, seed=0)["settings"]["seed"] == 0


def test_loras_of_the_field_and_of_the_prompt(catalogue: Catalogue) -> None:
    made = make_order(
        {"prompt": "a <lora:inks:0.25>circle", "loras": [{"name": "style", "scale": 2}]}, catalogue
    )
    assert made["loras"] == [{"name": "style", "scale": 2.0}, {"name": "inks", "scale": 0.25}]
    assert made["settings"]["prompt"] == "a circle"


@pytest.mark.parametrize(
    ("fields", "code", "param", "says"),
    [
        ({"prompt": None}, "missing_value", "prompt", "needed"),
        ({"prompt": 3}, "invalid_value", "prompt", "int"),
        ({"prompt": "\ud800"}, "invalid_value", "prompt", "UTF-8"),
        ({"prompt": "x" * 20_000}, "too_large", "prompt", "20,000"),
        ({"negative_prompt": "é" * 10_000}, "too_large", "negative_prompt", "20,000"),
        ({"negative_prompt": "<lora:style:1>"}, "invalid_value", "negative_prompt", "lora"),
        ({"stepz": 3}, "unknown_field", "stepz", "did you mean 'steps'"),
        ({"model": "tini"}, "model_not_found", "model", "did you mean 'tiny'"),
        ({"model": "/etc"}, "model_not_found", "model", "/etc"),
        ({"size": "100x64"}, "invalid_value", "size", "64x64 or 128x64"),
        ({"size": "big"}, "invalid_value", "size", "WIDTHxHEIGHT"),
        ({"size": 64}, "invalid_value", "size", "text"),
        ({"size": "8192x8192", "num_frames": 9}, "too_large", "size", "pixels"),
        ({"seconds": 0}, "invalid_value", "seconds", "above 0"),
        ({"seconds": "9999"}, "invalid_value", "seconds", "use 765"),
        ({"seconds": "1e3"}, "invalid_value", "seconds", "number"),
        ({"seconds": float("nan")}, "invalid_value", "seconds", "finite"),
        ({"num_frames": 10}, "invalid_value", "num_frames", "use 9 or 18"),
        ({"num_frames": 9.0}, "invalid_value", "num_frames", "whole"),
        ({"num_frames": True}, "invalid_value", "num_frames", "number"),
        ({"fps": 0}, "invalid_value", "fps", "above 0"),
        ({"fps": "fast"}, "invalid_value", "fps", "number"),
        ({"steps": 0}, "invalid_value", "steps", "got 0"),
        ({"steps": 201}, "invalid_value", "steps", "from 1 to 200"),
        ({"guidance": -1}, "invalid_value", "guidance", "-1"),
        ({"sampler": "eulr"}, "invalid_value", "sampler", "did you mean 'euler'"),
        ({"sampler": 4}, "invalid_value", "sampler", "text"),
        ({"step_cache": "tea"}, "invalid_value", "step_cache", "teacache"),
        ({"step_cache": "teacache:x"}, "invalid_value", "step_cache", "NAME:THRESHOLD"),
        ({"smooth": "maybe"}, "invalid_value", "smooth", "true or false"),
        ({"seed": MAX_SEED + 1}, "invalid_value", "seed", "at most"),
        ({"seed": "lucky"}, "invalid_value", "seed", "random"),
        ({"seed": [1]}, "invalid_value", "seed", "random"),
        ({"loras": "style"}, "invalid_value", "loras", "list"),
        ({"loras": ["style"]}, "invalid_value", "loras", "style"),
        ({"loras": [{"name": "style", "weight": 1}]}, "invalid_value", "loras", "weight"),
        ({"loras": [{"name": "style", "scale": "much"}]}, "invalid_value", "loras", "much"),
        ({"loras": [{"name": "stile"}]}, "lora_not_found", "loras", "did you mean 'style'"),
        ({"loras": [{"name": "../style"}]}, "lora_not_found", "loras", "no LoRA"),
        ({"loras": [{"name": "style"}] * 9}, "too_large", "loras", "at most 8"),
        ({"prompt": "<lora:unknown>"}, "lora_not_found", "loras", "unknown"),
    ],
)
def test_refusals_name_the_field_and_the_remedy(
    catalogue: Catalogue, fields: dict[str, Any], code: str, param: str, says: str
) -> None:
    error = refused(catalogue, **fields)
    assert (error.code, error.param) == (code, param)
    assert says in str(error)


def test_the_caps_are_the_servers_own(catalogue: Catalogue) -> None:
    limits = Limits(prompt_bytes=20, pixels=64 * 64 * 18, steps=5, loras=1)
    assert order(catalogue, limits)["settings"]["num_inference_steps"] == 5, "the model's own number is above"
    assert refused(catalogue, limits, prompt="x" * 21).code == "too_large"
    assert refused(catalogue, limits, num_frames=27).code == "too_large"
    assert refused(catalogue, limits, steps=6).param == "steps"
    assert refused(catalogue, limits, loras=[{"name": "style"}] * 2).code == "too_large"


def test_oversized_requests_are_refused_at_once(catalogue: Catalogue) -> None:
    start = time.perf_counter()
    for number in range(50):
        bombs: list[dict[str, Any]] = [
            {"prompt": "<lora:" * 1_000_000},
            {"prompt": "x", "size": f"{10**8 + number}x{10**8}"},
            {"prompt": "x", "loras": "[" * 9_999},
            {"prompt": "x", "num_frames": 10**15},
            {"prompt": "x", "seconds": 999_999, "fps": 1000},
        ]
        for fields in bombs:
            with pytest.raises(Refused):
                make_order(fields, catalogue)
    assert (time.perf_counter() - start) / 250 < 0.1, "seconds a request"


def test_frames_that_may_be_asked_for(catalogue: Catalogue) -> None:
    entry = catalogue.model("tiny")
    assert allowed_frames(entry)[:4] == [1, 9, 18, 27]
    assert allowed_frames(entry)[-1] == 765
    assert allowed_frames(entry, pixels=64 * 64 * 20) == [1, 9, 18]
