"""LoRA on networks whose weights wait elsewhere, or are stored in 8 bits: the same as on resident, rounded weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ea_lora import load_lora, unload_lora
from ea_lora.beside import Beside, carried
from ea_runtime.generation.offload import group_offload
from ea_runtime.models.fp8 import store_in_fp8

Write = Callable[..., Path]


@pytest.mark.parametrize("comes_first", ["lora", "fp8"])
def test_narrow_weights_and_wide_matrices(write_lora_file: Write, small: Any, comes_first: str) -> None:
    pipe, rounded = small.make_pipe(), small.make_pipe()
    if comes_first == "lora":
        load_lora(pipe, write_lora_file())
    store_in_fp8(pipe.denoiser, "denoiser")
    if comes_first == "fp8":
        load_lora(pipe, write_lora_file())
    narrow = {name for name, p in pipe.denoiser.named_parameters() if p.dtype == torch.float8_e4m3fn}
    assert narrow
    for name, parameter in rounded.denoiser.named_parameters():
        if name in narrow:
            parameter.data = parameter.data.to(torch.float8_e4m3fn).float()
    plain = small.run(rounded)[0]
    load_lora(rounded, write_lora_file())
    wanted = small.run(rounded)[0]
    assert not torch.equal(wanted, plain)
    for _ in range(2):  # the second run follows a cast to the storage format
        assert torch.allclose(small.run(pipe)[0], wanted, rtol=1e-5, atol=1e-6)
    name = next(
        n for n, m in pipe.denoiser.named_modules() if "ea_loras" in m._modules and f"{n}.weight" in narrow
    )
    layer = carried(pipe.denoiser.get_submodule(name), 0)
    assert layer.lora_A["default"].weight.dtype == torch.float32


def test_matrices_that_follow_into_8_bits_are_caught(
    write_lora_file: Write, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: matrices that are cast with their module round, or do not compute at all."""

    def follow(beside: Beside, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Beside:
        for layer in beside.slots.values():
            layer._apply(fn, recurse)
        return beside

    monkeypatch.setattr(Beside, "_apply", follow)
    pipe = small.make_pipe()
    load_lora(pipe, write_lora_file())
    before = small.run(pipe)[0]
    store_in_fp8(pipe.denoiser, "denoiser")
    try:
        found = small.run(pipe)[0]
    except (RuntimeError, NotImplementedError):
        return
    assert not torch.allclose(found, before, atol=0.05)


@pytest.mark.parametrize("kind", ["leaf_level", "block_level", "accelerate"])
def test_offloaded_weights(write_lora_file: Write, small: Any, tmp_path: Path, kind: str) -> None:
    pipe, resident = small.make_pipe(), small.make_pipe()
    plain = small.run(resident)[0]
    if kind == "accelerate":
        from accelerate import cpu_offload

        cpu_offload(pipe.denoiser, torch.device("cpu"))
        assert next(pipe.denoiser.parameters()).is_meta
    else:
        group_offload(pipe.denoiser, "cpu", kind, str(tmp_path / "waiting"))
    load_lora(pipe, write_lora_file())
    load_lora(resident, write_lora_file())
    wanted = small.run(resident)[0]
    assert not torch.allclose(wanted, plain)
    assert torch.allclose(small.run(pipe)[0], wanted, rtol=1e-5, atol=1e-6)
    unload_lora(pipe)
    assert torch.allclose(small.run(pipe)[0], plain, rtol=1e-5, atol=1e-6)


def test_weights_that_are_nowhere_are_refused(write_lora_file: Write, small: Any) -> None:
    from ea_runtime.errors import UserError

    pipe = small.make_pipe()
    pipe.denoiser.to("meta")
    with pytest.raises(UserError, match="has no weights in memory"):
        load_lora(pipe, write_lora_file())
    assert isinstance(pipe.denoiser, nn.Module)
