"""With a LoRA on, a model looks like itself from everywhere."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ea_lora import load_lora, unload_lora
from ea_lora.beside import CHILD, carried

Write = Callable[..., Path]


def looks(module: Any) -> list[Any]:
    """Every name that a walk over the model gives."""
    ways = (module.named_parameters(), module.named_buffers(), module.named_modules())
    return [
        *(name for way in ways for name, _ in way),
        *module.state_dict(),
        repr(sorted(module.state_dict())),
    ]


def test_no_walk_over_the_model_shows_it(write_lora_file: Write, small: Any) -> None:
    pipe = small.make_pipe()
    before = looks(pipe.denoiser)
    load_lora(pipe, write_lora_file())
    assert looks(pipe.denoiser) == before
    pipe.denoiser.load_state_dict(pipe.denoiser.state_dict(), strict=True)
    assert sum(p.numel() for p in pipe.denoiser.parameters()) == sum(
        p.numel() for p in small.make_pipe().denoiser.parameters()
    )


def test_module_objects_stay_and_nothing_is_left(write_lora_file: Write, small: Any) -> None:
    pipe = small.make_pipe()
    before = {name: id(module) for name, module in pipe.denoiser.named_modules()}
    insides = {name: set(vars(module)) for name, module in pipe.denoiser.named_modules()}
    load_lora(pipe, write_lora_file())
    unload_lora(pipe)
    assert {name: id(module) for name, module in pipe.denoiser.named_modules()} == before
    assert {name: set(vars(module)) for name, module in pipe.denoiser.named_modules()} == insides
    assert not any(CHILD in module._modules for module in pipe.denoiser.modules())


def test_the_layers_are_peft_s_and_move_along(write_lora_file: Write, small: Any) -> None:
    from peft.tuners.lora import LoraLayer

    pipe = small.make_pipe()
    load_lora(pipe, write_lora_file(), 0.5)
    layer = carried(pipe.denoiser.proj_out, 0)
    assert isinstance(layer, LoraLayer)
    assert layer.scaling["default"] == pytest.approx(0.5 * small.alpha / small.rank)
    before = small.run(pipe)
    pipe.denoiser.double()
    assert layer.lora_A["default"].weight.dtype == torch.float64
    pipe.denoiser.float()
    assert all(torch.equal(*pair) for pair in zip(small.run(pipe), before, strict=True))
    pipe.denoiser.to("meta")
    assert layer.lora_A["default"].weight.is_meta


def test_a_model_with_a_lora_can_be_pickled(write_lora_file: Write, small: Any) -> None:
    pipe = small.make_pipe()
    load_lora(pipe, write_lora_file(), 0.5)
    twin = pickle.loads(pickle.dumps(pipe.denoiser))
    x = torch.randn(1, 4, 5, 6)
    with torch.inference_mode():
        assert torch.equal(twin(x), pipe.denoiser(x))


def test_loading_draws_no_random_numbers(write_lora_file: Write, small: Any) -> None:
    pipe = small.make_pipe()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_lora(pipe, write_lora_file())
    assert torch.equal(torch.rand(3), expected)


def test_a_compiled_model_keeps_its_lora(write_lora_file: Write, small: Any) -> None:
    plain, compiled = small.make_pipe(), small.make_pipe()
    path = write_lora_file()
    load_lora(plain, path, 0.5)
    load_lora(compiled, path, 0.5)
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        out = torch.compile(compiled.denoiser, backend="eager")(x)
        assert small.relative_error(out, plain.denoiser(x)) < 1e-6
