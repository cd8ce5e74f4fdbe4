"""Initial networks of a run: a [model] table or a folder, each fault in one line."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ea_runtime.errors import UserError
from ea_runtime.plugins.host import Host
from ea_runtime.training.networks import build_network, load_network


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"chanels": 3}, "[model]: SmallVae has no key `chanels`; did you mean 'channels'?"),
        ({"channels": 2}, "[model] describes no SmallVae: `channels` must be 3 or more, got 2"),
        ({"channels": "x"}, "[model] describes no SmallVae: TypeError: "),
    ],
)
def test_wrong_tables(table: dict[str, Any], expected: str, small: ModuleType) -> None:
    with pytest.raises(UserError) as caught:
        build_network(small.SmallVae, table)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_a_table(small: ModuleType) -> None:
    assert build_network(small.SmallVae, {"channels": 5}).gain.shape == (5,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_folder_is_trained_on_in_float32(
    dtype: torch.dtype, parts: Path, small: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next((parts / "vae").glob("*.safetensors"))
    save_file({k: v.to(dtype) for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    monkeypatch.chdir(parts)
    for folder in (str(parts / "vae"), "vae", "vae/", "./vae"):
        network = load_network(small.SmallVae, folder, "vae")
        assert network.gain.dtype == torch.float32
        assert network.gain.requires_grad
        assert network.gain.tolist() == [1.0, -0.5, 2.0, 0.25]
    monkeypatch.chdir(parts / "vae")
    assert load_network(small.SmallVae, ".", "vae").gain.requires_grad


def test_folders_that_hold_no_such_network(
    parts: Path, small: ModuleType, small_host: Host, tmp_path: Path
) -> None:
    def told(folder: Path, part: str = "vae", cls: Any = small.SmallVae) -> str:
        with pytest.raises(UserError) as caught:
            load_network(cls, str(folder), part)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "which is no folder; train that part first" in told(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "has no VAE; expected empty/config.json" in told(tmp_path / "empty")
    assert "SmallVae" in told(parts / "vae", "denoiser")
    assert "must hold weights of class SmallDenoiser, got SmallVae in" in told(
        parts / "vae", cls=small.SmallDenoiser
    )
    weights = next((parts / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-3])
    told(parts / "vae")
    weights.rename(weights.with_suffix(".bin"))  # pickles are never read
    assert "ea models convert" in told(parts / "vae")
