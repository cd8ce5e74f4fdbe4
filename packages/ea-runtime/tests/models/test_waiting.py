"""Weights that wait in their files, in a network whose tensors get several number formats."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ea_runtime.models.waiting import Slot, WaitingGroup
from ea_runtime.models.weights import read_header


def test_tensors_that_need_no_cast_are_no_views_of_the_reader(tmp_path: Path) -> None:
    """float16 in the file; one of them becomes float32, as T5's `wo` does, so all are read into one memory in turn."""
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(4)))
    stored = {f"{n}.weight": torch.randn(3, 3).half() for n in range(4)}
    file = tmp_path / "model.safetensors"
    save_file(stored, file)
    formats = (torch.float16, torch.float32, torch.float16, torch.float16)
    slots = []
    for (name, owner), dtype in zip(module.named_children(), formats, strict=True):
        owner.to(dtype)
        slots.append(Slot(owner, "weight", f"{name}.weight", dtype))
    group = WaitingGroup(tuple(slots), read_header(file), "the test")
    for _ in range(2):
        group.pre_forward(module)
        for slot in slots:
            assert slot.tensor.dtype == slot.dtype
            assert torch.equal(slot.tensor, stored[slot.name].to(slot.dtype))
        group.post_forward(module, None)
        assert all(bool(slot.tensor.isnan().all()) for slot in slots)
