"""A set that `ea data run` made goes straight into training: a dry run, and six steps, for every profile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
import torch

from ea_data.profile import NAMES, load
from ea_runtime.cli.main import run
from ea_runtime.plugins.host import set_host

CONFIG = """
[run]
recipe = "vae"
out = "run"
[data]
path = "set"
kinds = "videos"
num_frames = 9
size = 32
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
steps = 6
batch_size = 2
lr = 1e-3
warmup = 2
save_every = 100
threads = 1
"""
#: Components that need weights or a server -> what stands in for them here.
STAND_INS = {"clip-aesthetic": "technical", "raft": "dis", "openai": "draw"}


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    set_host(None)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two drawn raw videos."""
    folder = tmp_path_factory.mktemp("drawn") / "raw"
    assert run(["data", "draw-raw", "2", "-o", str(folder), "--height", "128", "--width", "160"]) == 0
    return folder


def stand_in(profile: str, path: Path) -> Path:
    """The profile with stand-ins, and with limits that a drawn clip of any size passes."""
    tables = load(profile)
    if tables["caption"]["name"] in STAND_INS:
        tables["caption"] = {"name": STAND_INS[tables["caption"]["name"]]}
    have = [one["name"] for one in tables["score"]]
    for one in tables["score"]:
        if one["name"] in STAND_INS:
            name = STAND_INS[one["name"]]
            one.clear()
            one["name"] = name
    tables["score"] = [one for i, one in enumerate(tables["score"]) if one["name"] not in have[:i]]
    for one in tables["filter"]:
        if "score" in one:
            one["score"] = STAND_INS.get(one["score"], one["score"])
        for limit, value in (("min", -1.0), ("max", 1e9), ("min_side", 32)):
            if limit in one:
                one[limit] = value
    path.write_text(tomli_w.dumps(tables))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("profile", NAMES)
def test_a_set_of_each_profile_trains(
    profile: str,
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = str(stand_in(profile, tmp_path / "profile.toml"))
    assert (
        run(["data", "run", str(raw), "-o", "set", "--profile", chosen, "--workers", "1", "--no-report"]) == 0
    )
    listed = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert len(listed) > 1
    assert {(entry["type"], entry["fps"]) for entry in listed} == {("video", 24.0)}
    (tmp_path / "run.toml").write_text(CONFIG)
    words = ["train", "vae", "run.toml", "--set=train.dtype=fp32", "--set=train.processes=1"]
    capsys.readouterr()
    assert run([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "videos" in told
    assert str(len(listed)) in told
    assert run(words) == 0
    rows = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6
    assert not any(row["skipped"] for row in rows)
