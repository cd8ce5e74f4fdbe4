"""The effect of the U-ViT skips: the first denoiser stage with and without them, same seeds, same samples and noise.

    python tools/ablate_skips.py --out runs/ablation

Trains `configs/tiny/dit-align.toml` twice per seed (an existing run is used), then compares the losses
of the last steps and the pictures of 100 held-out prompts. Draws in training depend on (seed, step,
sample) alone, so both runs of a seed see the same pictures, timesteps and noise: losses are compared in pairs.
Writes benchmarks/results/skip_ablation.json and docs/images/skip-ablation.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from plot_training import dress, read_log, running_mean

ROOT = Path(__file__).resolve().parents[1]
NAMES = {True: "with skips", False: "without"}
#: number of last steps whose losses are compared
LAST = 100


def sets(changes: Iterable[str]) -> list[str]:
    """The changes as options, each after `--set`."""
    return [word for change in changes for word in ("--set", change)]


def train(config: Path, out: Path, seed: int, skips: bool, words: Sequence[str]) -> None:
    """One run, with `words` as further options of `ea train`."""
    changes = (f"run.out={out}", f"train.seed={seed}", f"model.enable_uvit={str(skips).lower()}")
    command = [sys.executable, "-m", "ea_runtime.cli.main", "train", "dit", str(config)]
    subprocess.run([*command, *sets(changes), *words], check=True)


def judge(parts: Path, transformer: Path, num_prompts: int) -> dict[str, str]:
    """Correct attributes in pictures of held-out prompts, as "93 of 100"."""
    from ea_data.draw.caption import sample_prompts
    from ea_data.draw.check import check_clip, summarise
    from ea_dit import Transformer3DModel
    from ea_runtime.generation.pipeline import VideoPipeline
    from ea_runtime.models.loading import load_parts

    loaded = load_parts(parts, parts=("vae", "text"))
    pipe = VideoPipeline(
        loaded.vae,
        Transformer3DModel.from_pretrained(transformer).eval(),
        loaded.text,
        scheduler_config=loaded.scheduler_config,
    )
    items = []
    for number, prompt in enumerate(sample_prompts(num_prompts, seed=0)):
        size: dict[str, Any] = {"num_frames": 1, "height": 64, "width": 64}
        made = pipe(prompt, **size, num_inference_steps=20, guidance_scale=2.0, seed=43 + number)
        assert made.frames is not None
        items.append(check_clip(prompt, made.frames[0], f"{number}"))
    # a picture shows no motion
    return {
        name: f"{right} of {asked}"
        for name, (right, asked) in summarise(items).counts.items()
        if name != "motion" and asked
    }


def plot(losses: dict[int, dict[bool, np.ndarray]], path: Path) -> None:
    """Running means of the losses, one panel per seed."""
    figure = Figure(figsize=(3.4 * len(losses), 2.8), layout="constrained")
    axes = figure.subplots(1, len(losses), squeeze=False, sharey=True)[0]
    for (seed, pair), ax in zip(losses.items(), axes, strict=True):
        for skips, colour in ((True, "#2f5fa8"), (False, "#d2691e")):
            mean = running_mean(pair[skips])
            steps = np.arange(len(mean)) + len(pair[skips]) - len(mean)
            ax.plot(steps, mean, color=colour, linewidth=1.1, label=NAMES[skips])
        dress(ax, f"seed {seed}")
    axes[0].set_ylabel("loss", fontsize=8)
    axes[-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "tiny" / "dit-align.toml")
    parser.add_argument("--parts", type=Path, default=Path("runs/parts"), help="VAE and text encoder")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-prompts", type=int, default=100)
    parser.add_argument("--report", type=Path, default=ROOT / "benchmarks" / "results" / "skip_ablation.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "images" / "skip-ablation.png")
    arguments = parser.parse_args()
    changes = [f"train.steps={arguments.steps}", f"train.batch_size={arguments.batch_size}"]
    words = sets([*changes, "train.sample_every=0", f"data.parts={arguments.parts}"])
    losses: dict[int, dict[bool, np.ndarray]] = {}
    rows: dict[str, Any] = {}
    for seed in arguments.seeds:
        losses[seed] = {}
        for skips in (True, False):
            out = arguments.out / f"{'with' if skips else 'without'}-{seed}"
            if not (out / "final").is_dir():
                train(arguments.config, out, seed, skips, words)
            losses[seed][skips] = np.array([one["loss"] for one in read_log(out)])
            last = losses[seed][skips][-LAST:]
            rows[f"seed {seed}, {NAMES[skips]}"] = {
                "loss": round(float(last.mean()), 5),
                **judge(arguments.parts, out / "final", arguments.num_prompts),
            }
            print(f"seed {seed}, {NAMES[skips]}: {rows[f'seed {seed}, {NAMES[skips]}']}", flush=True)
        change = losses[seed][True][-LAST:].mean() / losses[seed][False][-LAST:].mean() - 1
        rows[f"seed {seed}: loss with skips against without"] = f"{change:+.2%}"
    figures = {"steps": arguments.steps, "batch": arguments.batch_size, "compared": LAST, "runs": rows}
    arguments.report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    plot(losses, arguments.plot)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
