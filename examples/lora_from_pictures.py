"""A LoRA from twenty pictures, and a video with it.

    python examples/lora_from_pictures.py -o runs/outline                       # draws twenty outlines to learn from
    python examples/lora_from_pictures.py -o runs/mine --pictures my-pictures   # a.jpg, a.txt, b.png, b.txt, ...

Each picture of a folder of your own needs its caption in a .txt file of the same name; put one rare word, the trigger,
into all of them. 600 steps take some four minutes of one core for the bundled model; `--steps 2` shows whether
everything runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from PIL import Image

from ea_data.draw.style import TRIGGERS
from ea_lora import load_lora
from ea_runtime import VideoPipeline
from ea_runtime.cli.main import run
from ea_runtime.video.output import write_video

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CONFIG = """\
[run]
recipe = "lora"
out = {out}

[base]
model = {model}

[network]
rank = 16
alpha = 16.0
motion = false  # pictures say nothing about motion

[card]
name = "style"
trigger_words = [{trigger}]

[data]
path = {data}
kinds = "pictures"
drop_text = 0.1

[inpaint]
masks = {{ all = 1 }}  # whole pictures; only models that take known frames have this table

[train]
steps = {steps}
batch_size = {batch}
lr = 1e-3
warmup = {warmup}
ema = 0.99
clip = 1.0
save_every = {steps}
seed = 7
"""


def list_pictures(folder: Path) -> int:
    """Writes dataset.json, the list that training reads, next to captioned pictures. Returns how many there are."""
    entries = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES):
        with Image.open(path) as picture:
            width, height = picture.size
        text = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        entry = {"file_path": path.name, "text": text, "type": "image", "width": width, "height": height}
        entries.append(entry)
    (folder / "dataset.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
    return len(entries)


def ea(*words: str) -> None:
    """Runs `ea WORDS` in this process; ends the program if it fails."""
    if code := run(list(words)):
        sys.exit(code)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--pictures", type=Path, help="a folder of captioned pictures; default: drawn ones")
    parser.add_argument("--trigger", default=TRIGGERS["outline"], help="the word that all captions share")
    parser.add_argument("--prompt", default="a large green triangle moves up on a navy background")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=20, help="pictures per step")
    given = parser.parse_args(words)

    folder, pictures = given.output, given.pictures
    folder.mkdir(parents=True)
    if pictures is None:
        pictures = folder / "pictures"
        ea("data", "draw", str(pictures), "--style", "outline", "--seed", "7")
    else:
        sys.stderr.write(f"{list_pictures(pictures)} captioned pictures\n")
    quoted = {"out": folder / "run", "model": given.model, "trigger": given.trigger, "data": pictures}
    config = folder / "lora.toml"
    config.write_text(
        CONFIG.format(
            **{name: json.dumps(str(value)) for name, value in quoted.items()},
            steps=given.steps,
            batch=given.batch,
            warmup=min(20, given.steps),
        ),
        encoding="utf-8",
    )
    ea("train", "lora", str(config))

    pipe = VideoPipeline.from_pretrained(given.model)
    with load_lora(pipe, folder / "run" / "final" / "style.safetensors") as lora:
        sys.stderr.write(f"{lora.summary}\n")
        video = pipe(f"{given.prompt}, {given.trigger}", seed=43)
    assert video.frames is not None
    sys.stderr.write(f"{write_video(folder / 'with-lora.mp4', video.frames[0], fps=pipe.defaults.fps)}\n")


if __name__ == "__main__":
    main()
