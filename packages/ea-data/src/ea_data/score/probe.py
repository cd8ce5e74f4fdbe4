"""The scorer `probe`: the record's own numbers, for filters and the report."""

from __future__ import annotations

from typing import Any

from ea_data.media.bars import Bars
from ea_data.options import NoOptions
from ea_data.protocols import FrameRequest, Frames, Score


class ProbeScorer:
    """value: the clip's seconds. detail: seconds, width, height, pixels, short_side, aspect (width / height), fps, bars
    (share of the picture that is dark bars, 0 to 1; 0 once they are cut off)."""

    version = "2"
    needs = FrameRequest("none")
    cost = 0.0

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """Decodes nothing and ignores `frames`."""
        width, height = int(record["width"]), int(record["height"])
        seconds = float(record["end"]) - float(record["start"])
        detail = {
            "seconds": round(seconds, 6),
            "width": width,
            "height": height,
            "pixels": width * height,
            "short_side": min(width, height),
            "aspect": round(width / height, 6),
            "fps": round(float(record["fps"]), 6),
            "bars": 0.0 if record["is_cropped"] else round(Bars(*record["bars"]).share(width, height), 6),
        }
        return Score(detail["seconds"], detail=detail)
