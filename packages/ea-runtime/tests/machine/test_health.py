"""Findings of `ea doctor` on sound and broken machines."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ea_runtime.cli.main import run
from ea_runtime.machine import device, health
from ea_runtime.machine.canary import Canary, Verdict
from ea_runtime.machine.health import checks
from ea_runtime.machine.trials import trials
from ea_runtime.testing.formats import broken_convolution

Doctor = Callable[..., tuple[int, list[dict[str, str]]]]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """doctor(tried=False): exit code and checks. tried: False skips the canaries' trials."""

    def call(tried: bool = False) -> tuple[int, list[dict[str, str]]]:
        if not tried:
            monkeypatch.setattr(Canary, "verdict", lambda self, one: Verdict())
        code = run(["doctor", "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def lines(found: list[dict[str, str]], name: str) -> list[tuple[str, str]]:
    return [(row["state"], row["text"]) for row in found if row["name"] == name]


def test_this_machine_is_fit(doctor: Doctor) -> None:
    code, found = doctor()
    assert code == 0
    names = [row["name"] for row in found]
    wanted = [
        "torch",
        "processor",
        "bf16 on cpu",
        "fp16 on cpu",
        "devices",
        "video",
        "memory",
        "disk",
        "packages",
    ]
    assert [name for name in dict.fromkeys(names) if "cuda" not in name] == wanted
    assert torch.__version__ in lines(found, "torch")[0][1]
    assert "ea-runtime 0." in lines(found, "packages")[0][1]


def test_it_fits_a_screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Canary, "verdict", lambda self, one: Verdict())
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) <= 24
    assert out[0].startswith("ok  torch           ")


def test_a_broken_kernel_ends_with_1(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """On any processor: bf16 counts as supported, and small trials replace the full ones."""
    monkeypatch.setattr(device, "has_bf16", lambda name: name == "cpu")
    few = [one for one in trials(torch.bfloat16) if "128x" not in one.shapes and "1152" not in one.shapes]
    monkeypatch.setattr("ea_runtime.machine.trials.trials", lambda dtype: few)
    assert doctor(tried=True)[0] == 0
    with broken_convolution("weight gradient", at=lambda x, weight: weight.shape[0] == 3):
        code, found = doctor(tried=True)
    assert code == 1
    (first, told), (_, second) = lines(found, "bf16 on cpu")
    assert first == "broken"
    assert told == f"wrong in 1 of {len(few)} trials; runs compute these in fp32 instead"
    assert (
        second == "weight gradient of convolution 1x3x1x32x32, 1x64x3x32x32, 3x64x3x3x3 (relative error inf)"
    )


def test_what_limits_the_processor_is_told(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    code, found = doctor()
    assert code == 0
    assert lines(found, "processor")[1] == ("note", "limited by ONEDNN_MAX_CPU_ISA=AVX2")
    assert lines(found, "bf16 on cpu") == [
        ("note", "no arithmetic for it here: emulated, many times slower than fp32")
    ]


def test_a_full_disk_and_a_missing_codec(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(health.shutil, "disk_usage", lambda path: usage(10, 10, 5 * 10**8))
    monkeypatch.setattr(health, "ENCODERS", ("libx264", "nosuch"))
    monkeypatch.setattr(health, "DECODERS", ("h264", "nothing"))
    code, found = doctor()
    assert code == 1
    assert lines(found, "disk")[0] == ("broken", "0.5 GB free in this folder")
    assert "cannot write nosuch: reinstall av" in lines(found, "video")[0][1]
    assert lines(found, "video")[1] == ("note", "cannot read nothing")


def test_a_part_that_fails_does_not_hide_the_others(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    def _video() -> Any:
        raise ImportError("libav is gone")
        yield

    monkeypatch.setattr(health, "_video", _video)
    code, found = doctor()
    assert code == 1
    assert lines(found, "video") == [("broken", "ImportError: libav is gone")]
    assert lines(found, "packages")


def test_a_cache_that_cannot_be_written_is_a_note(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(health.os, "access", lambda path, mode: False)
    code, found = doctor()
    assert code == 0
    assert "cannot be written" in lines(found, "disk")[1][1]


def test_checks_are_made_one_by_one() -> None:
    assert next(iter(checks())).name == "torch"


@pytest.mark.parametrize("words", [["doctor", "--nosuch"], ["doctor", "extra"]])
def test_wrong_words_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
