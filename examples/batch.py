"""Many prompts with one model: a video of each, and all of them next to each other in one animated picture.

    python examples/batch.py --gallery gallery.webp
    python examples/batch.py prompts.txt -o clips

The model is loaded once. Prompt i takes seed + i, as `ea generate --prompts FILE --seed N` does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from ea_runtime import VideoPipeline
from ea_runtime.video.output import write_video

PROMPTS = (
    "a large red circle moves right",
    "a small blue square moves up on a gray background",
    "a large yellow triangle grows",
    "a large green circle shrinks on a navy background",
    "a small purple triangle moves left",
    "a large white square moves down on a gray background",
)


def tiled(videos: list[np.ndarray], columns: int, zoom: int) -> np.ndarray:
    """Videos (T, H, W, 3) of one shape as one, (T, rows * H * zoom, columns * W * zoom, 3); gaps in the last row."""
    gaps = -len(videos) % columns
    blank = [np.zeros_like(videos[0])] * gaps
    rows = [
        np.concatenate([*videos, *blank][i : i + columns], axis=2) for i in range(0, len(videos), columns)
    ]
    whole = np.concatenate(rows, axis=1)
    return whole.repeat(zoom, axis=1).repeat(zoom, axis=2)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prompts", nargs="?", type=Path, help="one prompt per line; default: six of our own")
    parser.add_argument("-o", "--output", type=Path, default=Path("clips"), help="folder of the videos")
    parser.add_argument("--gallery", help="also write all of them as one file: .webp, .gif or .mp4")
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--zoom", type=int, default=2, help="of the gallery's pixels")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=43)
    given = parser.parse_args(words)

    lines = given.prompts.read_text(encoding="utf-8").splitlines() if given.prompts else PROMPTS
    prompts = [line.strip() for line in lines if line.strip()]
    pipe = VideoPipeline.from_pretrained(given.model)
    videos = []
    for number, prompt in enumerate(prompts):
        video = pipe(prompt, num_inference_steps=given.steps, seed=given.seed + number)
        assert video.frames is not None
        videos.append(video.frames[0])
        path = given.output / f"{number:03d}.mp4"
        write_video(path, videos[-1], fps=pipe.defaults.fps, overwrite=True)
        sys.stderr.write(f"{path}: {prompt}\n")
    if given.gallery:
        write_video(
            given.gallery, tiled(videos, given.columns, given.zoom), fps=pipe.defaults.fps, overwrite=True
        )


if __name__ == "__main__":
    main()
