"""Writer of raw video: encoded as footage that people bring."""

from __future__ import annotations

from ea_runtime.video.writers import Mp4Writer


class RawWriter(Mp4Writer):
    """H.264 with x264's own defaults: without its macroblock tree, grain flickers from frame to frame."""

    def options(self) -> dict[str, str]:
        """The encoder's options. With the macroblock tree, bytes may follow the heap."""
        return {"crf": str(self.crf), "flags": "+bitexact"}
