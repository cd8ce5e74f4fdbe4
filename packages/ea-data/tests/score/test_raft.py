"""`raft` scores with a network that measures motion, and refuses any other."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ea_data.protocols import Frames
from ea_data.score.motion import dis_flow
from ea_data.score.raft import RaftOptions, RaftScorer
from ea_data.score.weights import load_weights
from ea_runtime.errors import MissingPackageError, UserError


class MeasuringNetwork(nn.Module):
    """Called as torchvision's RAFT is, with DIS inside: flows that are right, but no RAFT."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = dis_flow("medium")
        self.calls: list[tuple[tuple[int, ...], int]] = []

    def forward(
        self, before: torch.Tensor, after: torch.Tensor, num_flow_updates: int = 12
    ) -> list[torch.Tensor]:
        self.calls.append((tuple(before.shape), num_flow_updates))
        assert before.min() >= -1
        assert before.max() <= 1
        gray = [((pictures.mean(1) + 1) * 127.5).byte().numpy() for pictures in (before, after)]
        flows = np.stack([self.flow(a, b) for a, b in zip(*gray, strict=True)]).transpose(0, 3, 1, 2)
        return [torch.zeros_like(torch.from_numpy(flows)), torch.from_numpy(flows)]  # the last one counts


class RandomNetwork(nn.Module):
    """As a RAFT whose weights were never trained: flows of some size that have nothing to do with the pictures."""

    def forward(
        self, before: torch.Tensor, after: torch.Tensor, num_flow_updates: int = 12
    ) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(len(before), 2, *before.shape[2:], generator=generator)]


def shifted(step: int, count: int = 4, height: int = 150, width: int = 250) -> Frames:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 5, width // 5, 3))
    picture = np.kron(coarse, np.ones((5, 5, 1))).astype(np.uint8)
    return Frames(np.stack([np.roll(picture, step * n, 1) for n in range(count)]), np.arange(count) / 4)


def test_flow_becomes_frame_diagonals_a_second_at_any_batch() -> None:
    network = MeasuringNetwork()
    frames = shifted(3)
    scores = [RaftScorer(RaftOptions(batch=batch), network)(frames, {}) for batch in (1, 2, 8)]
    assert scores[0] == scores[1] == scores[2]
    assert scores[0].value == pytest.approx(3 * 4 / np.hypot(150, 250), rel=0.15)
    assert len(scores[0].values) == 3
    sizes = {size[2:] for size, _ in network.calls}
    assert sizes == {(256, 256), (152, 256)}  # the trial picture; sides that 8 divides


def test_one_frame_does_not_move() -> None:
    assert RaftScorer(RaftOptions(), MeasuringNetwork())(shifted(3, count=1), {}).value == 0


def test_random_weights_refuse_to_score() -> None:
    with pytest.raises(
        UserError, match=r"do not measure motion: a picture shifted by \(6, -4\) pixels reads as"
    ):
        RaftScorer(RaftOptions(), RandomNetwork())(shifted(3), {})


def test_weights_that_are_not_there_are_named_before_anything_runs() -> None:
    lines = RaftScorer(RaftOptions()).missing()
    assert any("`weights` is not set" in line for line in lines)
    (line,) = [one for one in RaftScorer(RaftOptions(weights="/no/raft.pth")).missing() if "weights" in one]
    assert "'/no/raft.pth'" in line
    with pytest.raises(UserError, match="weights"):
        RaftScorer(RaftOptions())(shifted(3), {})


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_without_torchvision_it_says_so(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "raft.safetensors")
    scorer = RaftScorer(RaftOptions(weights=str(tmp_path / "raft.safetensors")))
    assert len(scorer.missing()) == 1
    with pytest.raises(MissingPackageError, match="torchvision is not installed"):
        scorer(shifted(3), {})


def test_torchvision_s_network_with_random_weights_refuses(tmp_path: Path) -> None:
    flow = pytest.importorskip("torchvision.models.optical_flow", reason="torchvision is not installed")

    torch.manual_seed(0)
    path = tmp_path / "raft.pth"
    torch.save(flow.raft_small(weights=None).state_dict(), path)
    scorer = RaftScorer(RaftOptions(weights=str(path), model="small", updates=2))
    assert scorer.missing() == []
    with pytest.raises(UserError, match="do not measure motion"):
        scorer(shifted(3), {})


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"weight": torch.zeros(2, 3)}, "lacks 'bias'"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, r"is \(2, 4\)"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "x": torch.zeros(1)}, "holds 'x'"),
    ],
)
def test_weights_must_fit_exactly(tmp_path: Path, state: dict[str, torch.Tensor], told: str) -> None:
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=told):
        load_weights(nn.Linear(3, 2), tmp_path / "w.safetensors", "a linear layer")


class Payload:
    def __reduce__(self) -> tuple:
        return (Path("pwned").touch, ())


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Payload()}, "w.pth")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_weights(nn.Linear(3, 2), Path("w.pth"), "a linear layer")
    assert not Path("pwned").exists()
