"""Offloading of networks: each kind gives what resident weights give, and what saves nothing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ea_runtime.errors import UserError
from ea_runtime.generation.offload import group_offload, take_turns
from ea_runtime.generation.offload_modes import check_mode
from ea_runtime.text.t5 import T5Encoder

T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}


def own_t5() -> Any:
    from transformers import T5Config

    network = T5Encoder(T5Config(**T5))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def foreign_t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**T5)).eval()


def clip() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=32, patch_size=16, **sizes)).eval()


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("make", [own_t5, foreign_t5, clip])
@torch.no_grad()
def test_text_and_picture_encoders_can_be_offloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, kind: str
) -> None:
    torch.manual_seed(0)
    network = make()
    ids = {"input_ids": torch.arange(12)[None] + 2, "attention_mask": torch.ones(1, 12, dtype=torch.int64)}
    given = {"pixel_values": torch.randn(1, 3, 32, 32)} if make is clip else ids

    def run() -> torch.Tensor:
        found = network(**given)
        return found.image_embeds if make is clip else found.last_hidden_state

    wanted = run()

    def poisoned(one: torch.Tensor, **options: Any) -> torch.Tensor:
        return torch.full(one.shape, float("nan") if one.is_floating_point() else 0, dtype=one.dtype)

    # weights that wait are NaN, not what the memory held before
    monkeypatch.setattr(torch, "empty_like", poisoned)
    if make is foreign_t5 and kind == "leaf_level":
        with pytest.raises(UserError, match=r"encoder.embed_tokens.weight and shared.weight are one tensor"):
            group_offload(network, "cpu", kind, str(tmp_path))
        return
    group_offload(network, "cpu", kind, str(tmp_path))
    large = [p for p in network.parameters() if p.ndim == 2]
    assert sum(bool(p.isnan().all()) for p in large) > len(large) / 2
    assert torch.allclose(run(), wanted, rtol=1e-5, atol=1e-6)


def test_networks_take_turns() -> None:
    places: list[tuple[str, str]] = []

    class Moved(nn.Linear):
        """A network that says where it is moved."""

        def __init__(self, name: str) -> None:
            super().__init__(2, 2)
            self.name = name

        def to(self, *args: Any, **kwargs: Any) -> Any:
            places.append((self.name, str(args[0])))
            return super().to(*args, **kwargs)

    networks: list[nn.Module] = [Moved("text"), Moved("denoiser"), Moved("vae")]
    take_turns(networks, torch.device("cpu", 0))
    places.clear()
    networks[1](torch.ones(1, 2))
    assert places == [("text", "cpu"), ("vae", "cpu"), ("denoiser", "cpu:0")]


@pytest.mark.parametrize(
    ("mode", "device", "message"),
    [
        ("model", "cpu", "'group' works there"),
        ("sequential", "cpu", "'group' works there"),
        ("group", "mps", "works on cpu and cuda"),
        ("grup", "cpu", "must be one of auto, none, model, group, sequential, got 'grup'"),
    ],
)
def test_what_saves_nothing_is_refused(mode: str, device: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_mode(mode, device)
    assert check_mode("group", "cpu") == "group"
    assert check_mode("sequential", "cuda") == "sequential"
