"""Writer of raw video: encoded as footage that people bring."""

from __future__ import annotations

from ea_runtime.video.writers import Mp4Writer
from ea_runtime.video.x264 import x264_options


class RawWriter(Mp4Writer):
    """H.264 that keeps grain as it is: without this tuning it flickers from frame to frame, which reads as cuts."""

    def options(self) -> dict[str, str]:
        """The encoder's options."""
        return {**x264_options(18), "tune": "grain"}
