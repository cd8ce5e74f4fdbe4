from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from ea_vae.convert import convert_state_dict, load_weights, read_checkpoint


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module.vae."])
def test_training_checkpoint(tmp_path, magvit, make_vae, prefix):
    weights = {f"{prefix}{key}": value for key, value in magvit.state_dict().items()}
    extra = {f"{prefix}loss.discriminator.main.0.weight": torch.zeros(3), "loss.logvar": torch.zeros(1)}
    torch.save({"state_dict": {**weights, **extra}, "global_step": 7}, tmp_path / "last.ckpt")
    vae = make_vae()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
    load_weights(vae, read_checkpoint(tmp_path / "last.ckpt"))
    for key, value in magvit.state_dict().items():
        assert torch.equal(vae.state_dict()[key], value)


def test_safetensors(tmp_path, magvit):
    save_file(magvit.state_dict(), tmp_path / "vae.safetensors")
    assert read_checkpoint(tmp_path / "vae.safetensors").keys() == magvit.state_dict().keys()


def test_slice_vae_takes_magvit_weights(magvit, sliced):
    load_weights(sliced, convert_state_dict(magvit.state_dict()))
    assert torch.equal(sliced.quant_conv.weight, magvit.quant_conv.weight)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_pickles_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("zip.ckpt", None), ("raw.bin", pickle.dumps({"state_dict": Evil()}, protocol=2))):
        if content is None:
            torch.save({"state_dict": Evil()}, name)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as plain tensors") as caught:
            read_checkpoint(name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_errors(tmp_path, magvit, make_vae):
    with pytest.raises(ValueError, match="does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="must hold a mapping of names to tensors, got list"):
        read_checkpoint(tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="is it a VAE's"):
        convert_state_dict({"pos_embed.proj.weight": torch.zeros(1)})
    weights = magvit.state_dict()
    del weights["encoder.conv_in.bias"]
    with pytest.raises(ValueError, match=r"it lacks encoder\.conv_in\.bias; check the config"):
        load_weights(magvit, weights)
    with pytest.raises(ValueError, match=r"it has other shapes for .* and .* more; check the config"):
        load_weights(make_vae(ch=8), magvit.state_dict())
