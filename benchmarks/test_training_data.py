"""Time that a training step waits for its data: batches of 64 clips of 18 frames, 64x64, as in training `tiny`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from ea_data.draw.write import DrawConfig, write_set
from ea_data.training.dataset import EasyAnimateSet
from ea_runtime.training.data.dataset import SetOptions, fetch_samples
from ea_runtime.training.latents.source import EncodedOptions, EncodedSource
from ea_runtime.training.recipe import Context

BATCH = 64
CLIPS = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drawn") / "set"
    write_set(path, DrawConfig(num_clips=CLIPS, num_pictures=1, num_frames=18, seed=1))
    return path


def rounds(fetch: Callable[[list[int], int], Any], count: int) -> list[float]:
    """Seconds per batch, of `count` batches."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(count):
        indices = rng.permutation(CLIPS)[:BATCH].tolist()
        since = time.perf_counter()
        fetch(indices, seed)
        found.append(time.perf_counter() - since)
    return found


def test_fetching(folder: Path, report: Callable[[str, dict[str, Any]], None], benchmark: Any) -> None:
    """Decoding (first epoch), kept frames (later epochs), latents from the cache, and encoding them."""
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"clips a batch": BATCH}
    for decode in ("inline", "child"):
        data = EasyAnimateSet(SetOptions(path=str(folder), num_frames=18, decode=decode))
        buckets = data.buckets()
        once = [list(range(start, start + BATCH)) for start in range(0, CLIPS, BATCH)]
        data.sample(CLIPS, 0, buckets[CLIPS])  # the child has started
        since = time.perf_counter()
        for indices in once:
            fetch_samples(data, indices, 0, buckets[0])
        figures[f"clips/s decoded, {decode}"] = round(CLIPS / (time.perf_counter() - since))
        kept = median(
            rounds(lambda indices, seed, d=data, b=buckets: fetch_samples(d, indices, seed, b[0]), 20)
        )
        figures[f"ms a batch, kept frames, {decode}"] = round(kept * 1e3, 2)
        data.close()
    context = Context(0, "cpu", folder, lambda line: None)
    options = EncodedOptions(path=str(folder), parts="tiny", num_frames=18, decode="inline")
    since = time.perf_counter()
    source = EncodedSource(options, context)
    figures["clips/s coded into the cache"] = round(CLIPS / (time.perf_counter() - since), 1)
    buckets = source.buckets()
    cached = median(rounds(lambda indices, seed: source.fetch(indices, seed, buckets[0]), 20))
    figures["ms a batch, cache"] = round(cached * 1e3, 2)
    figures["share of a step of 0.5 s, cache"] = round(cached / 0.5, 4)
    report("training_data", figures)
    benchmark.pedantic(lambda: source.fetch(list(range(BATCH)), 1, buckets[0]), rounds=5)
