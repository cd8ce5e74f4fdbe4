"""The state in a checkpoint: what is saved comes back bit-exact, and what is of another recipe is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ea_runtime.errors import UserError
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.run.state import load_state, save_state
from ea_runtime.training.update.average import WeightAverage
from ea_runtime.training.update.optimizers import TurnOptimizer

POSITION = {"step": 3, "order": [1, 2], "nested": {"a": None, "b": 0.1}}


class Run:
    """A module in channels last with a buffer and a frozen layer, its average, and two turns' optimisers."""

    def __init__(self, seed: int, width: int = 4, dtype: str = "fp32") -> None:
        torch.manual_seed(seed)
        self.network = nn.Sequential(
            nn.Conv3d(2, width, 3), nn.BatchNorm3d(width), nn.Flatten(), nn.Linear(width, 3)
        )
        self.network.to(memory_format=torch.channels_last_3d)
        self.critic = nn.Linear(3, 1)
        self.modules: dict[str, nn.Module] = {"network": self.network, "critic": self.critic}
        options = TrainOptions(steps=9, batch_size=2, lr=1e-2, muon_lr=1e-2, dtype=dtype)  # pyright: ignore[reportArgumentType]
        matrix = [self.network[3].weight]
        rest = [p for p in self.network.parameters() if p is not matrix[0]]
        groups: list[dict[str, Any]] = [
            {"params": rest, "kind": "adamw", "name": "rest"},
            {"params": matrix, "kind": "muon", "name": "matrix"},
            {"params": list(self.critic.parameters()), "kind": "adamw", "name": "critic", "turn": "critic"},
        ]
        self.turns = [
            TurnOptimizer(groups, "model", options, first=True),
            TurnOptimizer(groups, "critic", options, first=False),
        ]
        self.averages = {"network": WeightAverage(self.network, 0.9)}

    def step(self, seed: int) -> float:
        torch.manual_seed(seed)
        loss = self.critic(self.network(torch.randn(2, 2, 3, 3, 3))).square().mean()
        for turn in self.turns:
            turn.zero_grad()
        loss.backward()
        for turn in self.turns:
            turn.set_rate(0.1 * seed)
            turn.finish_gradients()
            turn.step()
        self.averages["network"].update()
        return loss.item()

    def save(self, folder: Path | None) -> None:
        save_state(folder, modules=self.modules, averages=self.averages, turns=self.turns, position=POSITION)

    def load(self, folder: Path) -> dict[str, Any]:
        return load_state(folder, modules=self.modules, averages=self.averages, turns=self.turns)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run = Run(0)
    for seed in (1, 2, 3):
        run.step(seed)
    run.save(tmp_path)
    return tmp_path


def states(run: Run) -> dict[str, torch.Tensor]:
    """Every tensor of a run by its place."""
    found = {
        f"{name}/{key}": value
        for name, part in run.modules.items()
        for key, value in part.state_dict().items()
    }
    found |= {f"average/{key}": value for key, value in run.averages["network"].state_dict().items()}
    for turn in run.turns:
        for number, optimizer in enumerate(turn.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                for key, value in values.items():
                    found[f"{turn.turn}/{number}/{index}/{key}"] = torch.as_tensor(value)
    return found


def test_a_run_that_was_loaded_is_the_run_that_was_saved(saved: Path) -> None:
    one, other = Run(0), Run(5)
    for seed in (1, 2, 3):
        one.step(seed)
    assert other.load(saved) == POSITION
    for _ in range(2):
        expected, found = states(one), states(other)
        assert expected.keys() == found.keys()
        assert len(expected) > 30
        for key, value in expected.items():
            assert torch.equal(value, found[key]), key
            assert value.dtype == found[key].dtype, key
            assert value.stride() == found[key].stride(), key
        for turns in zip(one.turns, other.turns, strict=True):
            for pair in zip(*(turn.optimizers for turn in turns), strict=True):
                groups = [optimizer.state_dict()["param_groups"] for optimizer in pair]
                assert groups[0] == groups[1]
        assert one.step(4) == other.step(4)
    assert one.averages["network"].updates == other.averages["network"].updates == 5


def test_moments_have_the_layout_of_their_weights(saved: Path) -> None:
    """Files hold them contiguous; arithmetic over mixed layouts need not round alike."""
    kernel = load_file(saved / "state.safetensors")["weight/network/0.weight"]
    assert kernel.is_contiguous()
    run = Run(5)
    run.load(saved)
    weight = run.network[0].weight
    assert not weight.is_contiguous()
    (moments,) = [
        kept for turn in run.turns for one in turn.optimizers for p, kept in one.state.items() if p is weight
    ]
    assert [moments[key].stride() for key in ("mean", "square")] == [weight.stride()] * 2


def test_two_plain_files_are_written_and_nothing_that_runs_code(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["state.json", "state.safetensors"]
    text = (saved / "state.json").read_text(encoding="utf-8")
    assert text.startswith('{\n "position": {\n  "step": 3,')
    assert text.endswith("}\n")
    table = json.loads(text)
    assert table["position"] == POSITION
    assert list(table["turns"]) == ["model", "critic"]
    names = load_file(saved / "state.safetensors").keys()
    assert {name.split("/")[0] for name in names} == {"weight", "average", "optimizer"}


def test_weights_that_two_layers_share_are_saved_for_each(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    save_state(tmp_path, modules={"tied": tied}, averages={}, turns=[], position=POSITION)
    wanted = tied[0].weight.detach().clone()
    with torch.no_grad():
        tied[0].weight.zero_()
    assert load_state(tmp_path, modules={"tied": tied}, averages={}, turns=[]) == POSITION
    assert torch.equal(tied[0].weight, wanted)
    assert tied[1].weight is tied[0].weight


def test_a_process_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Run(0).save(None)
    assert not list(tmp_path.iterdir())


def changed(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "state.safetensors")
    change(tensors)
    save_file(tensors, folder / "state.safetensors")


def refused(folder: Path, run: Run | None = None) -> str:
    with pytest.raises(UserError) as error:
        (run or Run(0)).load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_checkpoints_of_other_networks_are_refused(saved: Path) -> None:
    other = Run(0, width=5)
    line = refused(saved, other)
    assert "is of another 'network': '0.weight' has shape [4, 2, 3, 3, 3], expected [5, 2, 3, 3, 3]" in line
    named = Run(0)
    named.modules["else"] = nn.Linear(1, 1)
    assert "has no module 'else'; it belongs to another recipe" in refused(saved, named)


def test_a_missing_and_a_stray_tensor_are_refused(saved: Path) -> None:
    changed(saved, lambda tensors: tensors.pop("weight/critic/bias"))
    assert "is of another 'critic': 1 keys differ, 'bias' first" in refused(saved)
    changed(
        saved,
        lambda tensors: tensors.update(
            {"weight/critic/zzz": torch.ones(1), "weight/critic/b": torch.ones(1)}
        ),
    )
    assert "is of another 'critic': 3 keys differ, 'b' first" in refused(saved)


@pytest.mark.parametrize("change", ["no turn", "fewer optimisers", "more optimisers"])
def test_other_turns_are_refused(saved: Path, change: str) -> None:
    table = json.loads((saved / "state.json").read_text())
    if change == "no turn":
        del table["turns"]["critic"]
    else:
        listed = table["turns"]["critic"]["optimizers"]
        table["turns"]["critic"]["optimizers"] = [] if change == "fewer optimisers" else listed * 2
    (saved / "state.json").write_text(json.dumps(table))
    assert "does not fit the turn 'critic'; it is of another recipe" in refused(saved)


def test_the_loss_scale_comes_back(tmp_path: Path) -> None:
    run, again = Run(0, dtype="fp16"), Run(1, dtype="fp16")
    for turn, scale in zip(run.turns, (8.0, 32.0), strict=True):
        turn.scaler.load_state_dict({**turn.scaler.state_dict(), "scale": scale, "_growth_tracker": 3})
    run.save(tmp_path)
    again.load(tmp_path)
    assert [turn.scaler.state_dict()["scale"] for turn in again.turns] == [8.0, 32.0]
    assert {turn.scaler.state_dict()["_growth_tracker"] for turn in again.turns} == {3}
