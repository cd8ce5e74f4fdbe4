"""Attention through diffusers' dispatcher: the same bits for "native", and one line for what does not work here."""

from __future__ import annotations

from typing import Any

import diffusers.models.attention_dispatch as diffusers_dispatch
import pytest
import torch
from torch import Tensor

from ea_dit import Transformer3DModel


@pytest.fixture(scope="module")
def model() -> Transformer3DModel:
    torch.manual_seed(0)
    motion = {"num_attention_heads": 4, "temporal_position_encoding_max_len": 16}
    made = Transformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        cross_attention_dim=32,
        caption_channels=24,
        sample_size=8,
        motion_module_kwargs=motion,
    ).eval()
    for parameter in made.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.1)
    return made


@torch.no_grad()
def run(model: Transformer3DModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 3, 8, 8, generator=generator)
    text = torch.randn(1, 6, 24, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    return model(latents, 500, encoder_hidden_states=text, encoder_attention_mask=mask).sample


def test_native_gives_the_same_bits_through_the_dispatcher(
    model: Transformer3DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = run(model)
    names: list[str] = []
    real = diffusers_dispatch.dispatch_attention_fn

    def counted(*args: Any, **settings: Any) -> Tensor:
        names.append(settings["backend"].value)
        return real(*args, **settings)

    monkeypatch.setattr(diffusers_dispatch, "dispatch_attention_fn", counted)
    assert torch.equal(run(model), wanted)
    assert not names  # nothing was chosen
    model.set_attention_backend("native")
    names.clear()  # the choice was tried
    try:
        assert torch.equal(run(model), wanted)
        assert names == ["native"] * len(model.attentions) == ["native"] * 8
        # the twin: a backend that computes something else is seen
        monkeypatch.setattr(diffusers_dispatch, "dispatch_attention_fn", lambda q, k, v, **_: q + v.mean())
        assert not torch.equal(run(model), wanted)
    finally:
        model.reset_attention_backend()
    assert torch.equal(run(model), wanted)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("flahs", r"'flahs' is no backend.*did you mean flash\?"),
        ("flash_hub", r"'flash_hub' fetches its code from a server"),
        (
            "sage",
            r"'sage' (needs the package sageattention; run `pip install sageattention`|does not run on cpu)",
        ),
        ("_native_npu", r"'_native_npu' is not installed"),
        ("_native_cudnn", r"'_native_cudnn' does not run on cpu in float32"),
    ],
)
def test_what_does_not_work_is_one_line(model: Transformer3DModel, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words + r".*; what works here: .*native") as error:
        model.set_attention_backend(name)
    assert "\n" not in str(error.value)
    assert all(layer.dispatch is None for layer in model.attentions)


def test_heads_that_are_too_wide_keep_torchs_attention(
    model: Transformer3DModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ea_dit.network.dispatch as dispatch

    monkeypatch.setattr(dispatch, "check_backend", lambda name, device, dtype, channels: {8})
    monkeypatch.setattr(type(model.attentions[0]), "num_channels", property(lambda self: 144))
    try:
        model.set_attention_backend("flex")
        assert {layer.dispatch.backend for layer in model.attentions if layer.dispatch} == {"native"}
    finally:
        model.reset_attention_backend()
    assert "takes no heads of 144 channels: 8 of 8 layers" in caplog.text
