"""The rule depends on shapes alone, measurements are remembered, unknown choices are refused."""

from __future__ import annotations

import json
import time

import pytest
import torch

from ea_vae.network import choice
from ea_vae.network.conv import CausalConv3d


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(choice.VARIABLE, raising=False)


def rule(shape, channels, **kind):
    # CPU tensors that take no memory
    x, weight = (torch.empty_strided(t, [0] * 5) for t in (shape, (channels, shape[1], 3, 3, 3)))
    return choice.by_rule(x, weight, **{"causal": True, "enlarges": False} | kind)


def test_the_rule():
    assert rule((1, 4, 3, 4, 4), 4) == "direct"
    assert rule((1, 512, 3, 8, 8), 512) == "direct"  # summing so many weights costs more than it saves
    assert rule((1, 512, 3, 16, 16), 512) == "summed"
    assert rule((1, 64, 3, 32, 32), 64) == "summed"
    assert rule((1, 64, 3, 16, 16), 64) == "direct"
    assert rule((1, 512, 1, 8, 8), 512) == "summed"
    assert rule((1, 512, 1, 7, 9), 512) == "direct"
    assert rule((1, 64, 1, 2, 2), 64) == "summed"  # few weights are summed at once
    assert rule((1, 64, 1, 1, 3), 64) == "direct"
    assert rule((1, 512, 3, 16, 16), 512, enlarges=True) == "both"
    assert rule((1, 512, 3, 16, 16), 512, enlarges=True, causal=False) == "phase"
    assert rule((1, 512, 3, 8, 8), 512, enlarges=True) == "summed"
    assert rule((1, 4, 2, 4, 4), 4, causal=False) == "summed"
    tiles = {"has_tiles": True}
    assert rule((1, 128, 9, 64, 64), 128, **tiles) == "winograd"
    assert rule((1, 512, 1, 32, 32), 512, **tiles) == "winograd"
    assert rule((1, 512, 3, 16, 16), 512, **tiles) == "summed"  # its taps would cost more than it saves
    assert rule((1, 32, 9, 64, 64), 32, **tiles) == "summed"
    assert rule((1, 512, 3, 16, 16), 512, enlarges=True, **tiles) == "winograd"
    assert rule((1, 128, 5, 32, 32), 128, enlarges=True, **tiles) == "both"


def test_the_rule_never_asks_a_clock(make_vae, noise, monkeypatch):
    def no_clock():
        raise AssertionError("the default looked at a clock")

    monkeypatch.setattr(time, "perf_counter", no_clock)
    vae, z = make_vae(ch=16), noise(1, 4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(vae.decode(z).sample, vae.decode(z).sample)


@torch.no_grad()
def test_measuring_is_done_once_and_remembered(noise, monkeypatch):
    conv, x = CausalConv3d(2, 3), noise(1, 2, 5, 4, 4)
    conv.rewrites = "measure"
    asked = []
    monkeypatch.setattr(choice, "fastest", lambda forms: asked.append(list(forms)) or "summed")
    conv(x)
    conv(x + 1)
    assert asked == [["direct", "summed", "winograd"]]
    conv(x, "causal", True)
    assert asked[1:] == [["direct", "summed", "phase", "both", "winograd"]]
    stored = json.loads(choice.cache_file().read_text())
    assert len(stored) == 2
    assert all(torch.__version__ in key and "float32" in key for key in stored)
    choice.memory.cache_clear()  # as in another process
    conv(x)
    assert len(asked) == 2


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"key": 3}'])
@torch.no_grad()
def test_a_lost_or_damaged_memory_is_made_again(noise, damage):
    conv, x = CausalConv3d(2, 3), noise(1, 2, 5, 4, 4)
    conv.rewrites = "measure"
    choice.cache_file().parent.mkdir(parents=True)
    choice.cache_file().write_text(damage)
    choice.memory.cache_clear()
    assert torch.allclose(conv(x), conv._run("plain", x, "causal"), atol=1e-5)
    assert next(iter(json.loads(choice.cache_file().read_text()).values())) in (
        "direct",
        "summed",
        "winograd",
    )


@torch.no_grad()
def test_a_cache_that_cannot_be_written_is_reported(noise, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EA_CACHE", str(tmp_path / "file"))
    conv = CausalConv3d(2, 3)
    conv.rewrites = "measure"
    conv(noise(1, 2, 5, 4, 4))
    assert "cannot be written" in caplog.text


def test_the_first_of_two_processes_wins(tmp_path):
    first, second = (choice.Memory(tmp_path / "memory.json") for _ in range(2))
    assert first._add("shape", "summed") == "summed"
    assert second._add("shape", "direct") == "summed"


def test_other_words_are_refused(make_vae, noise, monkeypatch):
    with pytest.raises(
        ValueError, match="`rewrites` must be one of rule, measure, always, plain, got 'fast'"
    ):
        make_vae().set_rewrites("fast")
    monkeypatch.setenv(choice.VARIABLE, "quick")
    with pytest.raises(ValueError, match="`EA_VAE_REWRITES` must be one of"), torch.no_grad():
        CausalConv3d(2, 3)(noise(1, 2, 3, 4, 4))


def test_the_environment_chooses_unless_the_network_does(monkeypatch):
    monkeypatch.setenv(choice.VARIABLE, "plain")
    assert choice.current(None) == "plain"
    assert choice.current("always") == "always"
    monkeypatch.delenv(choice.VARIABLE)
    assert choice.current(None) == "rule"
