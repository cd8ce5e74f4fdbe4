"""Each field of a request at its edges: what forms send as text, what is just taken, and what is just refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ea_runtime.errors import UserError
from ea_runtime.generation.requests import MAX_SEED
from ea_runtime.models.geometry import Geometry
from ea_runtime.models.layout import GenerationDefaults
from ea_runtime.serve.catalogue import Catalogue, ModelEntry
from ea_runtime.serve.orders import Limits, Refused, _frames_of, _refusing, allowed_frames, make_order


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("loras")
    save_file({"x": np.zeros(1, np.float32)}, folder / "style.safetensors")
    return Catalogue(loras=[folder])


def order(
    catalogue: Catalogue, limits: Limits | None = None, pictures: Iterable[str] = (), **fields: Any
) -> dict[str, Any]:
    return make_order({"prompt": "a red circle", "seed": 7, **fields}, catalogue, limits, pictures)


def test_an_empty_choice_of_a_form_is_none(catalogue: Catalogue) -> None:
    plain = order(catalogue)
    assert order(catalogue, step_cache="") == order(catalogue, step_cache="none") == plain
    assert order(catalogue, fit="") == plain
    found = order(catalogue, pictures=["image"], strength="0.5", fit="")["settings"]
    assert (found["strength"], "fit" in found) == (0.5, False)


@pytest.mark.parametrize(
    ("param", "fields", "words"),
    [
        ("fit", {"fit": 3}, "`fit` must be text, got 3"),
        ("num_frames", {"num_frames": "9.5"}, "`num_frames` must be a whole number, got '9.5'"),
        ("steps", {"steps": "x"}, "`steps` must be a whole number, got 'x'"),
        ("steps", {"steps": 4.0}, "got float 4.0"),
        ("window", {"num_frames": 27, "window": 18.0}, "got float 18.0"),
        ("guidance", {"guidance": "."}, "`guidance` must be a number, got '.'"),
        ("guidance", {"guidance": [1]}, "`guidance` must be a finite number below 1e15, got [1]"),
        ("guidance", {"guidance": 1001}, "`guidance` must be a finite number from 0 to 1000, got int 1001"),
        ("guidance", {"guidance": 10**400}, "must be a finite number below 1e15, got 1000"),
        ("strength", {"strength": "x"}, "`strength` must be a number, got 'x'"),
        ("steps", {"steps": 10**15}, "`steps` must be a finite number below 1e15"),
        ("steps", {"steps": 10**15 - 1}, "from 1 to 200"),
        ("seconds", {"seconds": True}, "`seconds` must be a finite number below 1e15, got True"),
        ("seconds", {"seconds": 1_000_001}, "`seconds` must be above 0 and at most 1,000,000, got 1,000,001"),
        ("fps", {"seconds": 1_000_000, "fps": 1e14}, "`fps` must be above 0 and at most 1000"),
        ("seed", {"seed": -1.0}, "`seed` must be a whole number"),
        ("loras", {"loras": {}}, "`loras` must be a list such as"),
        ("loras", {"loras": [7]}, "`loras` must be a list such as"),
        ("loras", {"loras": ["name"]}, "`loras` must be a list such as"),
        ("loras", {"loras": [{"scale": 1}]}, "`loras` must be a list such as"),
        ("loras", {"loras": "[]" + " " * 9_998}, "`loras` must be a list such as"),
        ("size", {"size": "16448x64", "num_frames": 9}, "at most 16,384 pixels a side"),
        ("prompts_at", {"prompts_at": 7}, "`prompts_at` must be such as"),
        ("prompts_at", {"prompts_at": '"9f: a"'}, "`prompts_at` must be such as"),
    ],
)
def test_a_value_that_is_none_is_one_line_about_its_field(
    catalogue: Catalogue, param: str, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(Refused) as error:
        order(catalogue, **fields)
    assert (error.value.code, error.value.param) == ("invalid_value", param)
    assert words in str(error.value)
    assert str(error.value).isprintable()


def test_the_whole_line(catalogue: Catalogue) -> None:
    with pytest.raises(Refused) as error:
        order(catalogue, smooth="maybe")
    assert str(error.value) == "`smooth` must be true or false, got 'maybe'"
    with pytest.raises(Refused) as error, _refusing():
        raise UserError("`offload` is none of these fields")
    assert (error.value.code, error.value.param) == ("invalid_value", None)
    with pytest.raises(Refused) as error, _refusing("steps"):
        raise Refused("too_large", "size", "as it is")
    assert (error.value.code, error.value.param, str(error.value)) == ("too_large", "size", "as it is")


def test_texts_by_time_have_the_caps_of_prompts(catalogue: Catalogue) -> None:
    def made(value: Any, most: int) -> Any:
        found = order(catalogue, Limits(prompt_bytes=most), prompt="x", num_frames=36, prompts_at=value)
        return found["settings"]["prompts_at"]

    assert made("9f: ab", 6) == [["9f", "ab"]]
    pairs = [["18f", "a"], ["27f", "b"]]
    assert made(pairs, 1) == pairs  # of each
    for value, most, code in (("9f: ab", 5, "too_large"), ([["9f", "ab"]], 1, "invalid_value")):
        with pytest.raises(Refused) as error:
            made(value, most)
        assert (error.value.code, error.value.param) == (code, "prompts_at")


def test_the_most_that_is_taken(catalogue: Catalogue) -> None:
    with pytest.raises(Refused, match="pixels") as error:
        order(catalogue, seconds=1_000_000)  # no length of that is wrong, but its pixels are too many
    assert error.value.param == "size"
    assert order(catalogue, loras="[]" + " " * 9_997)["loras"] == []
    eight = order(catalogue, loras=[{"name": "style"}] * 8)["loras"]
    assert eight == [{"name": "style", "scale": 1.0}] * 8
    assert order(catalogue, seed=MAX_SEED)["settings"]["seed"] == MAX_SEED
    with pytest.raises(Refused) as error:
        order(catalogue, Limits(prompt_bytes=3), prompt="\ud800")  # three bytes, but no UTF-8
    assert error.value.code == "invalid_value"
    with pytest.raises(AttributeError):
        Limits().steps = 3  # pyright: ignore[reportAttributeAccessIssue]


def entry(**geometry: Any) -> ModelEntry:
    defaults = GenerationDefaults(num_frames=18, height=64, width=64)
    return ModelEntry("a", "/a", defaults, replace(Geometry(), **geometry))


def test_the_longest_of_the_frames_to_choose_from() -> None:
    """In one piece, or ten times the model's own number."""
    assert allowed_frames(entry(max_latent_frames=255))[-2:] == [756, 765]
    assert allowed_frames(entry(max_latent_frames=6)) == [1, *range(9, 181, 9)]
    assert len(allowed_frames(entry(max_latent_frames=None), pixels=1 << 40)) == 4096
    assert allowed_frames(entry(), most=3) == [1, 9, 18]
    area = 64 * 64
    assert [allowed_frames(entry(), pixels=n * area)[-1] for n in (17, 18, 26)] == [9, 18, 18]


@pytest.mark.parametrize(
    ("geometry", "seconds", "frames"),
    [
        (Geometry(), 0.01, 1),
        (Geometry(), 5 / 12, 1),  # 5 frames: as far from 1 as from 9
        (Geometry(), 13.5 / 12, 9),  # between 9 and 18
        (Geometry(is_slice=True, chunk_frames=8, chunk_latents=2), 0.2, 1),
        (Geometry(is_slice=True, chunk_frames=8, chunk_latents=2), 11 / 12, 12),
        (Geometry(chunk_frames=1, chunk_latents=1), 0.01, 1),
        (Geometry(chunk_frames=1, chunk_latents=1), 5 / 12, 5),
    ],
)
def test_seconds_give_the_nearest_number_of_frames(geometry: Geometry, seconds: float, frames: int) -> None:
    assert _frames_of(seconds, 12, geometry) == frames
