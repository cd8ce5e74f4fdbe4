"""The T5 encoder's graph, and the object that runs it in the model's place: token ids and mask in, states out."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.export.parts import Graph, Input, Run, Size
from ea_runtime.text.encoder import MAX_LENGTH

parts = ("text",)


class Encode(nn.Module):
    """ids (1, L) and mask (1, L), int64 -> states (1, L, D)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state


def graphs(part: str, network: Any, size: Size) -> list[Graph]:
    """The one graph; it does not depend on the video's size."""
    shape = (1, MAX_LENGTH)
    inputs = {"ids": Input(shape, torch.int64), "mask": Input(shape, torch.int64)}
    vocabulary = network.config.vocab_size
    blocks = tuple(f"model.encoder.block.{i}" for i in range(network.config.num_layers))

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        ids = torch.randint(3, vocabulary, shape, generator=generator)
        mask = torch.zeros(shape, dtype=torch.int64)
        mask[:, :17] = 1
        return {"ids": ids * mask, "mask": mask}

    return [Graph("text", part, Encode(network), inputs, ("states",), blocks, draw)]


def attach(network: nn.Module, runs: Mapping[str, Run]) -> ExportedT5:
    """The object that a TextEncoder holds in T5's place."""
    return ExportedT5(network, runs["text"])


class ExportedT5:
    """Called as T5Encoder is; `.last_hidden_state` is float32 on the CPU."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, network: Any, run: Run) -> None:
        self.config = network.config
        self.network = network
        self.run = run

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        length = self.run.graphs["text"]["ids"][1]
        if input_ids.shape[1] != length:
            raise UserError(f"the bundle's text encoder takes {length} tokens, got {input_ids.shape[1]}")
        rows = [
            self.run("text", {"ids": ids[None], "mask": mask[None]})["states"]
            for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]
        return SimpleNamespace(last_hidden_state=torch.cat(rows))

    def eval(self) -> ExportedT5:
        """It has no other mode."""
        return self

    def to(self, device: Any = None, dtype: Any = None) -> ExportedT5:
        """Ignored: the engine chooses its device and format."""
        return self
