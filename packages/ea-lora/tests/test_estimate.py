"""The predicted memory against what torch really allocates, on a small network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ea_lora.adapters import adapt
from ea_lora.estimate import count_kept, predict
from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.plugins.host import get_host

SIZES = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 4, "cross_attention_dim": 64}
SIZES |= {"sample_size": 8, "caption_channels": 24, "motion_module_type": "Vanilla", "enable_uvit": True}
SHAPE = (6, 16, 16)


@pytest.fixture
def make() -> Any:
    """make() -> a small adapted denoiser and its adapters; on the meta device where that is the default."""
    try:
        record = get_host().find_class("denoisers", "Transformer3DModel")
    except (MissingPackageError, UserError) as error:
        pytest.skip(str(error))
    if record is None:
        pytest.skip("no package here has V2's denoiser")

    def build() -> tuple[Any, Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = record.build()(**SIZES)
            return network, {"lora": adapt(network, rank=8)}

    return build


def inputs() -> tuple[torch.Tensor, dict[str, Any]]:
    text = torch.randn(1, 120, SIZES["caption_channels"])
    named = {
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.ones(1, 120),
    }
    return torch.randn(1, 4, *SHAPE), named


def allocated(run: Any) -> tuple[int, int]:
    """Bytes that `run` left allocated, and the most at any moment, over what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        kept = run()
    events = [e for e in told.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    del kept
    return total, peak


def test_activations_are_what_a_forward_pass_leaves_allocated(make: Any) -> None:
    network, _ = make()
    latents, named = inputs()
    left, _ = allocated(lambda: network(latents, **named).sample)
    counted = count_kept(network, lambda: network(latents, **named)).activations(checkpointing=False)
    with torch.device("meta"):
        twin, twins = make()
    predicted = predict(twin, twins, SHAPE, dtype=torch.float32, checkpointing=False)["activations"]
    assert predicted == pytest.approx(left, rel=0.15)
    assert counted == pytest.approx(left, rel=0.15)


def test_the_peak_of_a_step_with_checkpointing(make: Any) -> None:
    network, _ = make()
    network.enable_gradient_checkpointing()
    network.train()
    latents, named = inputs()

    def step() -> None:
        network(latents, **named).sample.square().mean().backward()

    step()  # gradients of the adapters are there from now on
    _, peak = allocated(step)
    with torch.device("meta"):
        twin, twins = make()
    parts = predict(twin, twins, SHAPE, dtype=torch.float32, checkpointing=True)
    predicted = parts["activations"] + parts["gradients of activations"]
    assert predicted == pytest.approx(peak, rel=0.3)
    plain = predict(twin, twins, SHAPE, dtype=torch.float32, checkpointing=False)["activations"]
    assert parts["activations"] < plain / 2


def test_parts_add_up_and_offloading_saves_frozen_weights(make: Any) -> None:
    with torch.device("meta"):
        network, adapters = make()
    trained = sum(p.numel() for p in adapters["lora"].parameters())
    parts = predict(network, adapters, SHAPE)
    assert parts["peak"] == sum(size for name, size in parts.items() if name != "peak")
    assert parts["Adam moments (fp32)"] == 8 * trained
    less = predict(network, adapters, SHAPE, offload=4)
    assert 0 < less["frozen weights"] < parts["frozen weights"]
    assert less["activations"] == parts["activations"]


def test_a_denoiser_of_v3_is_counted_with_its_known_frames(make: Any) -> None:
    record = get_host().find_class("denoisers", "Transformer3DModel")
    assert record is not None
    motion = {"num_attention_heads": 4}
    v3 = {
        "in_channels": 12,
        "basic_block_type": "global_motionmodule",
        "motion_module_kwargs_even": motion,
        "motion_module_kwargs_odd": {**motion, "attention_block_types": ["Temporal_Self", "Global_Self"]},
    }
    with torch.device("meta"):
        of_v2 = predict(*make(), SHAPE)
        network = record.build()(**SIZES, **v3)
        of_v3 = predict(network, {"lora": adapt(network, rank=8)}, SHAPE)
    assert of_v3["frozen weights"] > of_v2["frozen weights"]
    assert of_v3["activations"] == pytest.approx(of_v2["activations"], rel=0.2)
