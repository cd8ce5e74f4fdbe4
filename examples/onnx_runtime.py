"""Export to ONNX, run the graphs with ONNX Runtime, and compare with PyTorch.

    python examples/onnx_runtime.py -o tiny-onnx

Needs the extra `ea-runtime[onnx]`. A bundle makes videos of one size and number of frames.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from ea_runtime import VideoPipeline
from ea_runtime.export.make import ExportRequest, export_bundle


def main(words: list[str] | None = None) -> float:
    """Returns the mean difference of the two videos, in levels of 255."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", default="tiny-onnx", help="the bundle, a new folder")
    parser.add_argument("--prompt", default="a red circle moves right")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--num-frames", type=int, help="default: the model's own")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args(words)

    request = ExportRequest(given.model, given.output, num_frames=given.num_frames)
    result = export_bundle(request, lambda step, what: sys.stderr.write(f"{step} {what}\n") and None)
    for one in result.report["parity"]:
        worst = max((error["relative"] for error in one["outputs"]), default=None)
        sys.stderr.write(f"{one['graph']}: {one['state']}, relative error {worst}\n")

    videos = []
    for options in ({}, {"engine": "onnx", "bundle": given.output}):
        pipe = VideoPipeline.from_pretrained(given.model, device="cpu", **options)
        sys.stderr.write(f"{pipe.engine.describe()}\n")
        video = pipe(given.prompt, num_frames=given.num_frames, num_inference_steps=given.steps, seed=43)
        assert video.frames is not None
        videos.append(video.frames.astype(np.int16))
    difference = float(np.abs(videos[0] - videos[1]).mean())
    sys.stderr.write(f"mean difference: {difference:.3f} of 255\n")
    return difference


if __name__ == "__main__":
    main()
