"""The scorer `duplicates`: the signature of a clip, by which the filter `duplicate` finds duplicates."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from ea_data.media.signature import RATE, sign
from ea_data.options import Options
from ea_data.protocols import FrameRequest, Frames, Score


class SignatureOptions(Options):
    """None: signatures can be compared only if all are made alike."""

    frames: Any = Field(default=None, exclude=True)

    @field_validator("frames")
    @classmethod
    def _is_new(cls, value: Any) -> Any:
        raise ValueError(
            f"belongs to version 1, which hashed so many frames; delete it (now there are {RATE} a second), then "
            "`ea data score SET`"
        )


class SignatureScorer:
    """detail: signature: as text; picture: the share of the frame that is no bar. value: how colourful it is: the root
    mean square of Cb and Cr, levels of 255, in the second that has most."""

    version = "2"
    cost = 12.0
    needs = FrameRequest("fps", RATE, 128, "rgb")

    def __init__(self, options: SignatureOptions) -> None:
        self.options = options

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Score:
        """frames.pixels: uint8 (N, H, W, 3)."""
        signature, share = sign(frames.pixels, frames.seconds)
        detail = {"signature": signature.pack(), "picture": round(share, 4)}
        return Score(round(signature.colourfulness, 3), detail=detail)
