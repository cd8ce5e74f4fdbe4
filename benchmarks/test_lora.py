"""The cost of an active LoRA: a denoising step without one, with one and with it merged, and changing its weight.

The widths are the published model's (1,152, rank 128) with fewer blocks and a short clip, to suit a CPU; the ratio
depends on width, rank and tokens, hardly on the number of blocks.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ea_lora import find_targets, load_lora, read_lora, write_lora
from ea_lora.layer import Layer
from ea_lora.matching import match_lora, networks_of
from ea_lora.merge import merge_weight

ROUNDS = 5
BLOCKS, LATENTS = 2, (1, 4, 3, 32, 32)


def make_model() -> Any:
    from ea_dit import Transformer3DModel

    torch.manual_seed(0)
    return Transformer3DModel(num_layers=BLOCKS, caption_channels=256, sample_size=64).eval()


def write_file(model: Any, path: Path, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layers = []
    for name, module in find_targets(model).items():
        outputs, inputs = module.weight.shape[:2]
        down = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        up = torch.randn(outputs, rank, generator=generator) * 0.01
        layers.append(Layer(name, "denoiser", name, down, up, torch.tensor(rank / 2)))
    write_lora(path, layers)


def seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def test_a_step_and_a_switch(benchmark: Any, report: Any, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    plain = make_model()
    write_file(plain, tmp_path / "style.safetensors", 128)
    file = read_lora(tmp_path / "style.safetensors")
    with_lora, merged = copy.deepcopy(plain), copy.deepcopy(plain)
    lora = load_lora(with_lora, file, 0.55)
    for match in match_lora(file, networks_of(merged)).matches:
        match.weight.data = merge_weight(match.weight.data, [(match.layer, 0.55)])
    latents, text = torch.randn(LATENTS), torch.randn(1, 120, 256)

    def step(model: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return model(latents, timestep=torch.tensor([500]), encoder_hidden_states=text).sample

        return run

    ways = {"none": step(plain), "active": step(with_lora), "merged": step(merged)}
    outputs = {name: way() for name, way in ways.items()}  # also the warm-up
    error = float((outputs["active"] - outputs["merged"]).norm() / outputs["merged"].norm())

    def measure() -> dict[str, float]:
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):  # interleaved: other load on the machine slows all of them alike
            for name, way in ways.items():
                times[name].append(seconds(way))
        return {name: statistics.median(values) for name, values in times.items()}

    steps = benchmark.pedantic(measure, rounds=1)
    other = copy.deepcopy(plain)
    switches = {
        "change its weight": [
            seconds(lambda w=w: setattr(lora, "weight", w)) for w in (0.1, 0.2, 0.3, 0.4, 0.5)
        ],
        "put on and take off": [seconds(lambda: load_lora(other, file, 0.55).unload()) for _ in range(3)],
    }
    report(
        "lora_step",
        {
            "layers": len(lora.matched),
            "step without": f"{steps['none']:.3f} s",
            "active over none": f"{steps['active'] / steps['none']:.3f}",
            "active over merged": f"{steps['active'] / steps['merged']:.3f}",
            **{name: f"{statistics.median(values) * 1e3:.2f} ms" for name, values in switches.items()},
            "active against merged": f"{error:.1e} relative",
        },
    )
    assert error < 1e-5
