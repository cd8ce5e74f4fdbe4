"""Writer of raw video: compressed as the footage that people bring."""

from __future__ import annotations

from ea_runtime.video.writers import Mp4Writer
from ea_runtime.video.x264 import x264_options


class RawWriter(Mp4Writer):
    """H.264 at a rate that smooths drawn grain; kept whole, it changes from frame to frame as much as a cut does."""

    def options(self) -> dict[str, str]:
        """The encoder's options."""
        return x264_options(25)
