"""Layers that overflow in float16 stay float32 on every path to float16: load, engine, `to`, training, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from ea_runtime import VideoPipeline
from ea_runtime.export.trace import make_fake
from ea_runtime.machine.casting import cast, dtype_of
from ea_runtime.models.layout import bundled_folder
from ea_runtime.models.loading import load_parts
from ea_runtime.text.encoder import TextEncoder, train_tokenizer
from ea_runtime.training.update.precision import run_in

PROMPT = "a red circle moves right"
TOO_LARGE = 1e5  # float16 ends at 65,504


class Network(nn.Module):
    """A network whose `narrow` layer may be float16 and whose `wide` layer overflows in it."""

    _keep_in_fp32_modules: ClassVar[list[str]] = ["wide"]

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(4, 4)
        self.wide = nn.Sequential(nn.Linear(4, 4))
        nn.init.constant_(self.wide[0].weight, TOO_LARGE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wide(self.narrow(x).float())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A text encoder whose first `wo` exceeds float16."""
    tokenizer = train_tokenizer([PROMPT])
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes))
    with torch.no_grad():
        model.get_parameter("encoder.block.0.layer.1.DenseReluDense.wo.weight")[0, 0] = TOO_LARGE
    path = tmp_path_factory.mktemp("model")
    TextEncoder(model, tokenizer).save_pretrained(path)
    return path


def formats(model: Any) -> dict[bool, set[torch.dtype]]:
    """Dtypes of the `wo` weights (True) and of the other tensors (False)."""
    found: dict[bool, set[torch.dtype]] = {}
    for name, tensor in model.state_dict().items():
        found.setdefault(".wo." in name, set()).add(tensor.dtype)
    return found


WIDE = {True: {torch.float32}, False: {torch.float16}}


def test_a_text_encoder_moved_is_as_one_loaded(folder):
    loaded = TextEncoder.from_pretrained(folder, dtype=torch.float16)
    moved = TextEncoder.from_pretrained(folder).to(dtype=torch.float16)
    assert formats(loaded.model) == formats(moved.model) == WIDE
    assert formats(moved.to("cpu").model) == WIDE  # as while it waits there for its turn
    embeds = moved.encode([PROMPT]).embeds
    assert embeds.isfinite().all()
    assert torch.equal(embeds, loaded.encode([PROMPT]).embeds)
    moved.to("cpu", torch.bfloat16)
    assert formats(moved.model) == {True: {torch.bfloat16}, False: {torch.bfloat16}}


@pytest.mark.parametrize("network", ["ours", "transformers'"])
def test_a_pipeline_moved(folder, network):
    text = TextEncoder.from_pretrained(folder)
    if network == "transformers'":
        text.model = T5EncoderModel.from_pretrained(str(folder / "text_encoder"))
    pipe = VideoPipeline(denoiser=Network(), text=text).to(dtype="float16")
    assert formats(text.model) == WIDE
    assert pipe.dtype == torch.float16


def test_parts_loaded_and_an_engine():
    text = load_parts("tiny", dtype=torch.float16, parts=("text",)).text
    assert formats(text.model) == WIDE
    pipe = VideoPipeline.from_pretrained(bundled_folder("tiny"), dtype="float16", parts=("denoiser", "text"))
    assert formats(pipe.text.model) == WIDE


def test_any_network_cast_trained_and_traced():
    network = Network()
    x = torch.randn(2, 4)
    trained = run_in(network, torch.float16, x.half())
    assert {n: p.dtype for n, p in network.named_parameters()} == dict.fromkeys(
        network.state_dict(), torch.float32
    )
    wanted = {name: dtype_of(network, name, torch.float16) for name in network.state_dict()}
    assert sorted(set(map(str, wanted.values()))) == ["torch.float16", "torch.float32"]
    cast(network, "cpu", torch.float16)
    assert {name: tensor.dtype for name, tensor in network.state_dict().items()} == wanted
    assert network(x.half()).isfinite().all()
    assert torch.equal(network(x.half()), trained)
    with torch.device("meta"):
        assert make_fake(Network(), torch.float16).kinds == wanted
