from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from ea_dit.weights.convert import load_checkpoint, strip_wrappers, unwrap_checkpoint


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: name,
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"model.transformer.{name}",
        lambda name: name.replace(
            "transformer_blocks.0.", "transformer_blocks.0._checkpoint_wrapped_module."
        ),
        lambda name: name.replace("transformer_blocks.0.", "transformer_blocks.0._fsdp_wrapped_module."),
    ],
)
@pytest.mark.parametrize("kind", ["pt", "safetensors", "nested"])
def test_wrapped_checkpoints_load(make_model, tmp_path, wrap, kind: str) -> None:
    model = make_model(num_layers=3)
    wrapped = {wrap(name): value for name, value in model.state_dict().items()}
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(wrapped, path)
    else:
        torch.save({"epoch": 3, "state_dict": wrapped} if kind == "nested" else wrapped, path)
    other = make_model(num_layers=3)
    other.load_state_dict(load_checkpoint(path))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_averaged_weights_come_first() -> None:
    tensor, averaged = torch.zeros(1), torch.ones(1)
    found = unwrap_checkpoint({"state_dict": {"w": tensor}, "ema_state_dict": {"module": {"w": averaged}}})
    assert found["w"] is averaged


def test_a_prefix_that_some_names_lack_stays() -> None:
    weights = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert set(strip_wrappers(weights)) == {"module.a", "b"}
    assert strip_wrappers({}) == {}


def test_two_names_for_one_tensor_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'a\.w' and 'a\._orig_mod\.w' for 'a\.w'"):
        strip_wrappers({"a.w": torch.zeros(1), "a._orig_mod.w": torch.zeros(1)})


def test_a_file_without_weights_is_refused(tmp_path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match="must hold tensors"):
        load_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match="must hold a dictionary, got list"):
        load_checkpoint(path)


def test_pickled_code_never_runs(tmp_path) -> None:
    canary = tmp_path / "canary"

    class Attack:
        def __reduce__(self):
            return (canary.touch, ())

    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {"w": Attack()}}, path)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        load_checkpoint(path)
    assert not canary.exists()
