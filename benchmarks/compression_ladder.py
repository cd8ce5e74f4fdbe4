"""Rank correlation of the scorer `compression` with the quality setting: 6 codecs and more, 6 qualities, drawn and real
clips.

    uv run python benchmarks/compression_ladder.py [CLIP ...]

Each clip is read once (1.5 seconds, scaled to at most 320 pixels, which removes what its own codec left),
encoded at each quality, probed and scored as `ea data run` does. Without CLIPs the drawn looks are the only sources.
Prints a table in Markdown, with Spearman's correlation for each clip (mean and least) and over all clips together.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from ea_data.draw.looks import render_look
from ea_data.media.frames import read_frames
from ea_data.media.probe import probe
from ea_data.protocols import Span
from ea_data.run.worker import clip_entry
from ea_data.score.compression import CompressionOptions, CompressionScorer

NUM_FRAMES, LONG_SIDE, FPS = 36, 320, 24
DRAWN = ("texture", "bokeh", "night", "water", "grain")
CRF, Q = (15, 21, 27, 33, 39, 45), (2, 4, 8, 13, 20, 31)
#: codec -> suffix, qualities from best to worst, options; a codec without crf has a quantiser
LADDERS: dict[str, tuple[str, tuple[int, ...], dict[str, str]]] = {
    "libx264": ("mp4", CRF, {"preset": "fast"}),
    "libx265": ("mp4", CRF, {"preset": "fast", "x265-params": "log-level=none"}),
    "libvpx-vp9": ("webm", (10, 22, 34, 44, 54, 63), {"deadline": "realtime", "cpu-used": "5", "b": "0"}),
    "libsvtav1": ("mkv", (10, 22, 34, 44, 54, 63), {"preset": "10"}),
    "mpeg4": ("avi", Q, {}),
    "mpeg2video": ("mpg", Q, {}),
    "mjpeg": ("avi", Q, {}),
}


def read_source(path: Path) -> list[np.ndarray]:
    """The first frames of a clip, (H, W, 3) uint8 with even sides."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            pixels = frame.to_ndarray(format="rgb24")
            scale = min(1.0, LONG_SIDE / max(pixels.shape[:2]))
            size = [int(side * scale) // 2 * 2 for side in pixels.shape[1::-1]]
            frames.append(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
            if len(frames) == NUM_FRAMES:
                break
    return frames


def encode(
    path: Path, frames: Sequence[np.ndarray], codec: str, quality: int, options: dict[str, str]
) -> None:
    has_crf = codec.startswith("lib")
    setting = {"crf": str(quality)} if has_crf else {"qmin": str(quality), "qmax": str(quality)}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(FPS), options={**setting, **options})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=stream.pix_fmt)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def score(path: Path) -> float:
    found = probe(path, path.parent)
    info = found.info
    entry = clip_entry(Span(0.0, info.seconds), info, found.content, found.timeline, "ladder")
    scorer = CompressionScorer(CompressionOptions())
    frames = read_frames(path, path.parent, 0.0, info.seconds, float(info.fps), [scorer.needs])
    return scorer(frames[scorer.needs], {**asdict(info), **entry, "fps": float(info.fps)}).value


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, with mean ranks for ties."""
    ranks = []
    for values in (np.asarray(one), np.asarray(other)):
        smaller = (values[:, None] > values).sum(1)
        ranks.append(smaller + ((values[:, None] == values).sum(1) - 1) / 2)
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def main(paths: Sequence[str]) -> None:
    cv2.setNumThreads(1)
    sources = {look: list(render_look(look, NUM_FRAMES, 180, 320, FPS)) for look in DRAWN}
    sources |= {Path(path).stem: read_source(Path(path)) for path in paths}
    print(f"{len(sources)} clips: {', '.join(sources)}\n")
    print("| codec | qualities | median value at each | each clip: mean | least | all clips |")
    print("|---|---|---|---|---|---|")
    for codec, (suffix, qualities, options) in LADDERS.items():
        if codec not in av.codecs_available:
            print(f"| {codec} | this build of FFmpeg lacks it | | | | |")
            continue
        table = []
        for frames in sources.values():
            values = []
            for quality in qualities:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / f"a.{suffix}"
                    encode(path, frames, codec, quality, options)
                    values.append(score(path))
            table.append(values)
        order = [-number for number in range(len(qualities))]
        each = [correlation(values, order) for values in table]
        together = correlation(np.ravel(table).tolist(), order * len(table))
        medians = ", ".join(f"{value:.2f}" for value in np.median(table, 0))
        settings = ", ".join(map(str, qualities))
        print(
            f"| {codec} | {settings} | {medians} | {np.mean(each):.2f} | {min(each):.2f} | {together:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
