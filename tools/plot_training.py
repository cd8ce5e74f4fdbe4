"""Loss curves of training runs, from their log.jsonl: docs/images/training-curves.png.

    python tools/plot_training.py runs/vae-pictures runs/vae-clips runs/vae-clips-more runs/dit-align runs/dit-motion \
        runs/dit-finetune runs/dit-finetune-more

One panel per run, four in a row; each step's value and its running mean. Prints the table of docs/training.md: steps,
samples, time and the mean of the last hundred steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
#: steps in a mean
WINDOW = 50
#: panels in a row
COLUMNS = 4


def read_log(run: Path) -> list[dict[str, Any]]:
    """The steps among the lines of a run's log."""
    lines = (json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "step" in line and "loss" in line]


def running_mean(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """(N,) -> (N - window + 1,)."""
    window = min(window, len(values))
    return np.convolve(values, np.ones(window) / window, mode="valid")


def dress(ax: Axes, title: str) -> None:
    """Gives a panel of losses over steps its scale, title and labels."""
    ax.set_yscale("log")
    ax.set_title(title, fontsize=9)
    ax.set_xlabel("step", fontsize=8)
    ax.tick_params(labelsize=7, which="both")


def summary(name: str, steps: list[dict[str, Any]]) -> str:
    """One row of the table."""
    last = steps[-100:]
    told = f"loss {np.mean([one['loss'] for one in last]):.4f}"
    if "psnr" in steps[-1]:
        told += f", {np.mean([one['psnr'] for one in last]):.1f} dB"
    minutes = sum(one["seconds"] for one in steps) / 60
    samples = sum(one.get("samples", 0) for one in steps)
    return f"| {name} | {steps[-1]['step']:,} | {samples:,} | {minutes:.1f} min | {told} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, in the order of their stages")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "training-curves.png")
    arguments = parser.parse_args()
    for run in arguments.runs:
        if not (run / "log.jsonl").is_file():
            parser.error(f"{str(run)!r} holds no log.jsonl; give the folders that `ea train` wrote")

    columns = min(COLUMNS, len(arguments.runs))
    rows = -(-len(arguments.runs) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes[len(arguments.runs) :]:
        ax.remove()
    print("| run | steps | samples | time | at the end |\n|---|---|---|---|---|")
    for run, ax in zip(arguments.runs, axes, strict=False):
        steps = read_log(run)
        print(summary(run.name, steps))
        numbers = np.array([one["step"] for one in steps])
        losses = np.array([one["loss"] for one in steps])
        mean = running_mean(losses)
        ax.plot(numbers, losses, color="#c9d6ea", linewidth=0.5)
        ax.plot(numbers[len(numbers) - len(mean) :], mean, color="#2f5fa8", linewidth=1.2)
        dress(ax, run.name)
    axes[0].set_ylabel("loss", fontsize=8)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
