"""Drawn pictures that the bundled model sets in motion: what the video keeps of them, and whether it moves as asked.

    uv run python benchmarks/pictures_in_motion.py [--count 60] [--sheet SHEET.png]

Scenes are of combinations that training never saw. Each is made twice: from its first picture, and from its first and
last. Prints PSNR of the known frames to the given pictures, next to that of the VAE alone; attributes that
`ea data check-drawn` finds right; the share of videos in which the object goes one way all the time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ea_data.draw.caption import caption
from ea_data.draw.check import ATTRIBUTES, check_prompts
from ea_data.draw.known import goes_one_way, psnr, way
from ea_data.draw.scene import render, sample_scene
from ea_runtime import VideoPipeline

SIDE, NUM_FRAMES, SEED = 64, 18, 77


def through_vae(pipe: VideoPipeline, frames: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) uint8, encoded and decoded."""
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        decoded = pipe.vae.decode_video(pipe.vae.encode_video(video), smooth=False)
    return ((decoded[0].permute(1, 2, 3, 0).numpy() + 1) * 127.5).round().clip(0, 255)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--sheet", type=Path)
    asked = parser.parse_args(arguments)
    pipe = VideoPipeline.from_pretrained("tiny", device="cpu", dtype="float32")
    rows: list[np.ndarray] = []
    for name, has_end in (("from the first picture", False), ("between two pictures", True)):
        first, last, limits, made, one_way = [], [], [], [], []
        for index in range(asked.count):
            scene = sample_scene(SEED, index, "heldout")
            truth = render(scene, SIDE, SIDE, NUM_FRAMES)
            prompt = caption(scene, SEED, index, is_full=True)
            ends = {"image_end": truth[-1]} if has_end else {}
            frames = pipe(prompt, image=truth[0], seed=index, **ends).frames[0]
            still = through_vae(pipe, np.stack([truth[-1]] * 9)) if has_end else through_vae(pipe, truth[:9])
            first.append(psnr(frames[0], truth[0]))
            last.append(psnr(frames[-1], truth[-1]))
            limits.append(psnr(still[-1], truth[-1]) if has_end else psnr(still[0], truth[0]))
            made.append((prompt, frames))
            if scene.motion != "still":
                one_way.append(goes_one_way(way(frames), scene.motion))
            if has_end and index < 8:
                rows.append(np.concatenate([truth[0], *frames[2:16:2], truth[-1]], axis=1))
        counts = check_prompts(made).counts
        right = ", ".join(f"{part} {counts[part][0]}/{counts[part][1]}" for part in (*ATTRIBUTES, "all"))
        known = last if has_end else first
        print(f"{name}: {asked.count} videos")
        print(f"  known frame: median {np.median(known):.1f} dB, least {min(known):.1f} dB; ", end="")
        print(f"the VAE alone: median {np.median(limits):.1f} dB, least {min(limits):.1f} dB")
        if has_end:
            print(f"  first frame: median {np.median(first):.1f} dB, least {min(first):.1f} dB")
        print(f"  right: {right}; one way all the time: {sum(one_way)}/{len(one_way)}", flush=True)
    if asked.sheet is not None:
        sheet = Image.fromarray(np.concatenate(rows))
        sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(asked.sheet)


if __name__ == "__main__":
    main()
