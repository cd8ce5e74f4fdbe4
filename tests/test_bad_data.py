"""Unusable files in real runs: exact counts, a log, and one line if there are too many.

Whatever a file does to its decoder (an error, a segmentation fault, a kill, a hang), the run neither ends nor stalls.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ea_runtime.cli.main import run
from ea_runtime.plugins.host import set_host

CONFIG = """
[run]
recipe = "vae"
out = "run"
[data]
path = "set"
kinds = "pictures"
num_frames = 1
timeout = 3.0
[model]
ch = 4
ch_mult = [1, 1, 1, 2]
latent_channels = 4
layers_per_block = 1
norm_num_groups = 1
down_block_types = [
    "SpatialDownBlock3D", "SpatialTemporalDownBlock3D", "SpatialTemporalDownBlock3D", "SpatialTemporalDownBlock3D"
]
up_block_types = [
    "SpatialUpBlock3D", "SpatialTemporalUpBlock3D", "SpatialTemporalUpBlock3D", "SpatialTemporalUpBlock3D"
]
mini_batch_encoder = 9
mini_batch_decoder = 3
[loss]
perceptual = 0.0
adversarial = 0.0
[train]
steps = 10
batch_size = 10
lr = 1e-3
warmup = 2
save_every = 100
threads = 1
"""
#: Runs in every decoder process: a file's name says what happens to the process when it opens the file.
MISBEHAVE = """
import os, signal, sys, time
if "ea_data.children.child" in sys.orig_argv:
    def hook(event, arguments):
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            name = os.path.basename(os.fsdecode(arguments[0]))
            if name.startswith("segv"):
                os.kill(os.getpid(), signal.SIGSEGV)
            if name.startswith("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if name.startswith("hang"):
                time.sleep(600)
    sys.addaudithook(hook)
"""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    set_host(None)


def make_set(names: list[str], bad: set[str]) -> None:
    """Pictures of 16x16; bad ones are absent, empty, noise, or cut in the middle, in turn."""
    folder = Path("set")
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number, name in enumerate(names):
        path = folder / name
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
        if name in bad:
            data = path.read_bytes()
            path.unlink()
            if number % 4:
                path.write_bytes((b"", b"", b"noise" * 50, data[: len(data) // 2])[number % 4])
        rows.append({"file_path": name, "text": "a", "type": "image", "width": 16, "height": 16})
    (folder / "dataset.json").write_text(json.dumps(rows))


def train(capsys: pytest.CaptureFixture[str], *settings: str) -> tuple[int, list[str]]:
    code = run(["train", "vae", "config.toml", *(f"--set={setting}" for setting in settings)])
    return code, capsys.readouterr().err.splitlines()


def quarantined() -> list[dict[str, str]]:
    path = Path("run/quarantine.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def log() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]


def spread(percent: int) -> set[str]:
    chosen = np.random.default_rng(1).permutation(100)[:percent]
    return {f"{number}.png" for number in chosen.tolist()}


NAMES = [f"{number}.png" for number in range(100)]


@pytest.mark.slow
@pytest.mark.parametrize(("percent", "workers"), [(0, 0), (1, 0), (50, 0), (100, 0), (50, 2)])
def test_counts_are_exact_where_all_is_borne(
    percent: int, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """One epoch of 100 files in 10 steps."""
    bad = spread(percent)
    make_set(NAMES, bad)
    code, said = train(capsys, "train.bad_share=1.0", f"train.workers={workers}")
    assert code == 0
    assert sorted(line["path"] for line in quarantined()) == sorted(bad)
    assert all(line["reason"] and "\n" not in line["reason"] for line in quarantined())
    assert sum(line["bad"] for line in log()) == percent
    assert sum(line["used"] for line in log()) == 100 - percent
    assert sum(line.startswith("left out, ") for line in said) == percent


@pytest.mark.parametrize("percent", [1, 50, 100])
def test_too_many_end_the_run_with_one_line(percent: int, capsys: pytest.CaptureFixture[str]) -> None:
    """At the default share of 1% of 100 files, one bad file is tolerated."""
    bad = spread(percent)
    make_set(NAMES, bad)
    code, said = train(capsys)
    errors = [line for line in said if line.startswith("error: ")]
    found = [line["path"] for line in quarantined()]
    assert set(found) <= bad
    assert len(found) == len(set(found))
    if percent == 1:
        assert (code, errors, set(found)) == (0, [], bad)
        return
    assert code == 2
    used = sum(line["used"] for line in log())
    met = sum(line["samples"] for line in log()) + 10  # the step that ends the run has no log line
    assert errors == [
        f"error: {len(found)} files cannot be used (after {met - len(found)} samples that could), "
        "`train.bad_share` 0.01 of 100 samples allows 1; 'run/quarantine.jsonl' lists them: mend or "
        "remove them, or raise the share"
    ]
    assert used + len(found) <= met
    assert said[-1] == errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_what_befalls_a_decoder_costs_its_own_sample(
    workers: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SIGSEGV, SIGKILL and a hang in the decoder process, among good files: each file is counted once, by name."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(MISBEHAVE)
    monkeypatch.syspath_prepend(tmp_path / "site")  # decoders inherit this process's path
    worst = ["segv.png", "kill.png", "hang.png"]
    make_set([*worst, *NAMES[:17]], {"5.png"})
    code, said = train(
        capsys, "train.bad_share=0.5", "train.steps=4", f"train.workers={workers}", 'data.decode="child"'
    )
    assert code == 0, said[-3:]
    assert sorted(line["path"] for line in quarantined()) == sorted([*worst, "5.png"])
    reasons = {line["path"]: line["reason"] for line in quarantined()}
    assert "SIGSEGV" in reasons["segv.png"]
    assert "SIGKILL" in reasons["kill.png"]
    assert "longer than 3 s" in reasons["hang.png"]
    assert sum(line["used"] for line in log()) == 2 * 16  # two epochs


@pytest.mark.slow
def test_a_run_without_a_child_is_ended_by_such_a_file(tmp_path: Path) -> None:
    """The twin: decoding in the run's own process does not survive it."""
    import subprocess
    import sys

    (tmp_path / "site").mkdir()
    text = MISBEHAVE.replace('if "ea_data.children.child" in sys.orig_argv:', "if True:")
    (tmp_path / "site" / "sitecustomize.py").write_text(text)
    make_set(["segv.png", *NAMES[:3]], set())
    words = [
        sys.executable,
        "-m",
        "ea_runtime.cli.main",
        "train",
        "vae",
        "config.toml",
        '--set=data.decode="inline"',
    ]
    paths = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(words, env=environment, capture_output=True, timeout=170, check=False)
    assert done.returncode < 0
