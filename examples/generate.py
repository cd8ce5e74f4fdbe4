"""A video from a prompt, and what the pipeline can report meanwhile.

python examples/generate.py "a red circle moves right" -o red.mp4
"""

from __future__ import annotations

import argparse
import sys

from ea_runtime import VideoPipeline
from ea_runtime.video.output import write_video


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("prompt", nargs="?", default="a red circle moves right")
    parser.add_argument(
        "-o", "--output", default="red.mp4", help=".mp4, .webm, .gif, .webp, .png or a folder/"
    )
    parser.add_argument("--model", default="tiny", help="a model folder, or the bundled one")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=43)
    given = parser.parse_args(words)

    pipe = VideoPipeline.from_pretrained(given.model)

    def report(phase: str, done: int, total: int) -> None:
        sys.stderr.write(f"{phase} {done} of {total}\n")

    video = pipe(given.prompt, num_inference_steps=given.steps, seed=given.seed, on_step=report)
    assert video.frames is not None
    frames = video.frames[0]  # (T, H, W, 3) uint8
    path = write_video(given.output, frames, fps=pipe.defaults.fps, overwrite=True)
    sys.stderr.write(f"{path}: {len(frames)} frames of {frames.shape[2]}x{frames.shape[1]}\n")


if __name__ == "__main__":
    main()
