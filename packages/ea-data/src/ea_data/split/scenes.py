"""The splitter `scenedetect`: cuts where the picture changes, in several passes whose boundaries are merged.

PySceneDetect's ContentDetector on its PyAV backend. Differs from EasyAnimate: V2's script decodes the file once per
pass; here it is decoded once, and each detector sees the frames of its pass, so it finds the same cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from ea_data.options import Options
from ea_data.protocols import Span, VideoInfo
from ea_data.split.chop import Boundary, chop
from ea_runtime.errors import UserError


class SceneOptions(Options):
    """passes: (threshold, frame_skip) of each pass; a pass looks at every (frame_skip + 1)-th frame and cuts where
    the mean change of hue, saturation and brightness (0 to 255) reaches its threshold. min_scene_len: frames that
    must lie between two cuts of a pass. min_seconds, max_seconds: shorter scenes are dropped, longer ones chopped.
    """

    passes: tuple[tuple[float, int], ...] = ((10.0, 0), (20.0, 1), (30.0, 2))
    min_scene_len: int = Field(10, ge=0)
    min_seconds: float = Field(3.0, ge=0)
    max_seconds: float = Field(10.0, gt=0)

    @field_validator("passes")
    @classmethod
    def _check_passes(cls, passes: tuple[tuple[float, int], ...]) -> tuple[tuple[float, int], ...]:
        if not passes or any(threshold <= 0 or skip < 0 for threshold, skip in passes):
            raise ValueError(
                f"`passes` must be [threshold above 0, frame_skip of 0 or more] pairs, got {list(passes)}; "
                "[[10, 0], [20, 1], [30, 2]] is the default"
            )
        return passes

    @model_validator(mode="after")
    def _check_seconds(self) -> SceneOptions:
        if self.min_seconds > self.max_seconds:
            raise ValueError(
                f"`min_seconds` must be at most `max_seconds`, got {self.min_seconds} and {self.max_seconds}"
            )
        return self


class SceneSplitter:
    """Cuts a video at its scene changes; see SceneOptions."""

    version = "1"

    def __init__(self, options: SceneOptions) -> None:
        self.options = options

    def __call__(self, path: Path, info: VideoInfo) -> Sequence[Span]:
        """Spans in seconds from the first frame. Without a cut, the whole video is one scene.

        Raises UserError if the file cannot be read as a video.
        """
        if info.is_picture:
            return [Span(0.0, 0.0)]
        boundaries, fps = self.boundaries(path)
        return chop(boundaries, fps, self.options.min_seconds, self.options.max_seconds)

    def boundaries(self, path: Path) -> tuple[list[Boundary], Any]:
        """The start, every cut and the end, in order, and the mean frame rate as a fraction."""
        from scenedetect import VideoOpenFailure

        try:
            return self._boundaries(path)
        # an av error is an OSError or a ValueError
        except (OSError, VideoOpenFailure, ValueError, IndexError) as error:
            raise UserError(f"{str(path)!r} cannot be read as a video: {error}") from error

    def _boundaries(self, path: Path) -> tuple[list[Boundary], Any]:
        import cv2
        from scenedetect import ContentDetector
        from scenedetect.backends.pyav import VideoStreamAv
        from scenedetect.detector import FlashFilter
        from scenedetect.scene_manager import compute_downscale_factor

        length, mode = self.options.min_scene_len, FlashFilter.Mode.SUPPRESS
        detectors = [
            # Its default mode became MERGE in 0.6.4; V2's scripts ran with SUPPRESS.
            (skip + 1, ContentDetector(threshold, length, filter_mode=mode))
            for threshold, skip in self.options.passes
        ]
        cuts: dict[int, float] = {}
        # An open file, not its name: FFmpeg takes some names for protocols.
        with path.open("rb") as file:
            # True keeps FFmpeg's messages from the terminal; the library's warning about it is for threaded decoding
            video = VideoStreamAv(file, name=path.name, suppress_output=True)
            width, height = video.frame_size
            factor = compute_downscale_factor(max(width, height))
            size = (max(1, round(width / factor)), max(1, round(height / factor)))
            start = last = None
            number = 0
            while not isinstance(image := video.read(), bool):
                if image.shape[:2] != (height, width):
                    continue  # as in the library, a change of size mid-stream is not a cut
                last = video.position
                start = last if start is None else start
                wanted = [detector for step, detector in detectors if number % step == 0]
                if wanted:
                    small = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) if factor > 1 else image
                    for detector in wanted:
                        cuts |= {cut.frame_num: cut.seconds for cut in detector.process_frame(last, small)}
                number += 1
            fps = video.frame_rate
            del video  # closes the container before the file
        if start is None or last is None:
            raise UserError(f"{str(path)!r} has no readable frame")
        end = last + 1
        cuts |= {start.frame_num: start.seconds, end.frame_num: end.seconds}
        return [Boundary(frame, cuts[frame]) for frame in sorted(cuts)], fps
