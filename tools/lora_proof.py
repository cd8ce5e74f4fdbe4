"""The effect of a style LoRA on videos: one pipeline, the same prompts and seeds at weights 0, 0.5 and 1.

    ea data draw data/inkline --style outline --seed 7
    ea train lora configs/tiny/lora-inkline.toml
    python tools/lora_proof.py runs/lora-inkline/final/inkline.safetensors

Writes docs/images/lora-WEIGHT.png and docs/images/lora-verify.png (drawn by `ea lora verify --plot`), and
benchmarks/results/lora_proof.json: how filled shapes are (about 1 as the bundled model draws them, about 0 when
outlined), large and small ones apart (the hole in a small one is finer than the VAE's 8x8 pixels resolve well), and
how many of the prompts' attributes the videos show. Prints the table of docs/lora.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = (0.0, 0.5, 1.0)
#: measured clips that a sheet shows
SHOWN = 6
SIZES = ("large", "small")
ATTRIBUTES = ("colour", "shape", "size", "motion", "background")


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures as docs/lora.md has them."""
    asked = {
        name: text.split(" of ")[1]
        for one in figures.values()
        for name, text in one.items()
        if name in ATTRIBUTES
    }
    lines = [
        "| weight | middle of large shapes filled | of small ones | " + " | ".join(ATTRIBUTES) + " |",
        "|---" * (3 + len(ATTRIBUTES)) + "|",
    ]
    for weight, one in figures.items():
        fills = [
            "none seen" if one[f"fill {size}"] is None else f"{one[f'fill {size}']:.1%}" for size in SIZES
        ]
        counts = [one.get(name, "0 of 0").split(" of ")[0] for name in ATTRIBUTES]
        counts[-1] += f" of {asked.get(ATTRIBUTES[-1], 0)}"
        lines.append(f"| {weight} | " + " | ".join([*fills, *counts]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lora", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--num-prompts", type=int, default=12, help="held-out prompts, one video each")
    parser.add_argument("--seed", type=int, default=43, help="of the first video; the others count up")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--report", type=Path, default=ROOT / "benchmarks" / "results" / "lora_proof.json")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log = logging.getLogger("proof")
    log.setLevel(logging.INFO)

    from ea_data.draw.caption import sample_prompts
    from ea_data.draw.check import check_clip, summarise
    from ea_data.draw.sheet import save_sheet
    from ea_lora import load_lora, read_lora, unload_lora, verify_lora
    from ea_lora.card import Card
    from ea_lora.plot import save_plot
    from ea_runtime import VideoPipeline

    file = read_lora(arguments.lora)
    words = Card.from_metadata(file.metadata).trigger_words
    prompts = [", ".join((text, *words)) for text in sample_prompts(arguments.num_prompts, seed=0)]
    pipe = VideoPipeline.from_pretrained(arguments.model)
    started = time.perf_counter()
    lora = load_lora(pipe, file, WEIGHTS[0])
    log.info("%s (%.2f s)", lora.summary, time.perf_counter() - started)
    figures: dict[str, Any] = {}
    for weight in WEIGHTS:
        lora.weight = weight
        items, shown = [], []
        for number, prompt in enumerate(prompts):
            frames = pipe(prompt, seed=arguments.seed + number).frames
            assert frames is not None
            items.append(check_clip(prompt, frames[0], f"{number}"))
            shown.append((items[-1], frames[0]))
        report = summarise(items)
        fills = {"fill": report.fill}
        for size in SIZES:
            fills[f"fill {size}"] = summarise(item for item in items if item.asked.get("size") == size).fill
        arguments.out.mkdir(parents=True, exist_ok=True)
        shown.sort(key=lambda clip: clip[0].asked.get("size") != "large")  # stable: large shapes first
        save_sheet(arguments.out / f"lora-{weight:g}.png", shown[:SHOWN])
        figures[f"{weight:g}"] = {
            **{name: value if value is None else round(value, 3) for name, value in fills.items()},
            **{name: f"{right} of {asked}" for name, (right, asked) in report.counts.items() if asked},
        }
        log.info("weight %g: %s", weight, figures[f"{weight:g}"])
    unload_lora(pipe)
    proof = verify_lora(pipe, file)
    save_plot(arguments.out / "lora-verify.png", proof)
    record = {
        "lora": file.path.name,
        "metadata": dict(sorted(file.metadata.items())),
        "weights": figures,
        "probe": {name: round(moved, 4) for name, moved in proof.probe.items()},
    }
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    log.info("%s", table(figures))


if __name__ == "__main__":
    main()
