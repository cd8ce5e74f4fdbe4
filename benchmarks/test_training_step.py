"""A training step of `tiny`'s denoiser: with the cache, without it, and as in the reference's script.

All three train the same network on the same clips (18 frames, 64x64) in float32 with AdamW, clipping and averages.
They take turns, so other load on the machine slows all of them alike. The reference's loop gets decoded clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from baselines.training import Diffusion, Loop

from ea_data.draw.write import DrawConfig, write_set
from ea_dit import add_noise, training_loss
from ea_dit.training.options import DitOptions
from ea_dit.training.recipe import DitRecipe
from ea_runtime.models.layout import resolve_folder
from ea_runtime.models.loading import load_parts
from ea_runtime.training.data.workers import Fetcher
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Context
from ea_runtime.training.run.loop import Trainer

BATCH, CLIPS, ROUNDS = 4, 16, 5
RATE = 2e-5


def test_a_step(tmp_path: Path, report: Callable[..., None], benchmark: Any) -> None:
    torch.set_num_threads(1)
    the_losses_are_the_same()
    write_set(tmp_path / "set", DrawConfig(num_clips=CLIPS, num_frames=18, seed=1))
    waits: dict[str, list[float]] = {"off": [], "make": []}
    ways = {
        "plain loop": plain_loop(tmp_path),
        "without the cache": our_loop(tmp_path, "off", waits["off"]),
        "with the cache": our_loop(tmp_path, "make", waits["make"]),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}

    def measure() -> None:
        for turn in range(ROUNDS + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if turn:
                    times[name].append(time.perf_counter() - started)

    benchmark.pedantic(measure, rounds=1)
    figures: dict[str, Any] = {"clips a batch": BATCH}
    figures |= {f"s a step, {name}": float(f"{median(values):.4g}") for name, values in times.items()}
    for name in ("without the cache", "with the cache"):
        ratios = [a / b for a, b in zip(times["plain loop"], times[name], strict=True)]
        figures[f"plain loop / {name}"] = round(median(ratios), 2)
    ratios = [a / b for a, b in zip(times["without the cache"], times["with the cache"], strict=True)]
    figures["without / with the cache"] = round(median(ratios), 2)
    for name, way in (("without the cache", "off"), ("with the cache", "make")):
        share = median(wait / whole for wait, whole in zip(waits[way][1:], times[name], strict=True))
        figures[f"data's share of a step, {name}"] = round(share, 4)
    report("training_step", figures)


def plain_loop(folder: Path) -> Callable[[], None]:
    parts = load_parts("tiny", dtype=torch.float32, parts=("vae", "text", "denoiser"))
    loop = Loop(parts.vae, parts.text, parts.denoiser.train().requires_grad_(True), RATE)
    context = Context(0, "cpu", folder / "plain", lambda line: None)
    source = DitRecipe(options(folder, "off"), context).source
    bucket = source.buckets()[0]
    batches = [source.fetch(list(range(i, i + BATCH)), 0, bucket).tensors for i in range(0, CLIPS, BATCH)]
    turn = iter(range(10_000))

    def step() -> None:
        batch = batches[next(turn) % len(batches)]
        loop.step(batch["frames"], batch["captions"])

    return step


def our_loop(folder: Path, cache: str, waits: list[float]) -> Callable[[], None]:
    """Steps of the training loop itself: order, fetching, gradients, guard, averages and the log line."""
    out = folder / f"run-{cache}"
    recipe = DitRecipe(options(folder, cache), Context(0, "cpu", out, lambda line: None))
    train = TrainOptions(
        steps=1000, batch_size=BATCH, lr=RATE, weight_decay=3e-2, eps=1e-10, ema=0.9999, threads=1
    )
    trainer = Trainer(recipe, train, out, {"train": {}})
    trainer._open(False)
    if cache == "off":  # decoded in advance, as for the plain loop
        recipe.fetch(list(range(CLIPS)), 0, 0)
    fetcher = Fetcher(recipe.fetch, trainer._jobs_of, 0, train.steps)
    log = trainer.folder.open_log()

    def step() -> None:
        verdict, line, _ = trainer._one_step(fetcher)
        assert verdict == "ok"
        log.line(line)
        waits.append(line["wait"])

    return step


def options(folder: Path, cache: str) -> DitOptions:
    return DitOptions.model_validate(
        {
            "stage": "finetune",
            "init": {"folder": str(resolve_folder("tiny") / "transformer")},
            "data": {"path": str(folder / "set"), "parts": "tiny", "num_frames": 18, "cache": cache},
        }
    )


def the_losses_are_the_same() -> None:
    """Asserts that the plain loop's loss is ours, so that both sides do the same work."""
    rng = torch.Generator().manual_seed(0)
    start, noise = (torch.randn(4, 4, 3, 8, 8, generator=rng) for _ in range(2))
    output = torch.cat([noise, torch.zeros_like(noise)], dim=1) + 0.1 * torch.randn(
        4, 8, 3, 8, 8, generator=rng
    )
    t = torch.tensor([0, 3, 500, 999])
    ours = training_loss(output, start, noise, t)["loss"]
    noisy = Diffusion().noisy(start, t, noise)
    torch.testing.assert_close(noisy, add_noise(start, noise, t), rtol=1e-4, atol=1e-5)
    theirs = Diffusion().loss(output, start, noisy, noise, t)
    assert np.allclose(ours.numpy(), theirs.numpy(), rtol=2e-2, atol=1e-3), (ours, theirs)
