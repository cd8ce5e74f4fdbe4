"""The splitter `scenedetect`: cuts where the picture changes, in several passes whose boundaries are merged.

PySceneDetect's ContentDetector. Differs from EasyAnimate: V2's script decodes the file once per pass; here it is
decoded once, and each detector sees the frames of its pass, so it finds the same cuts. A gap in the times, such as a
paused recording leaves, ends a scene too.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from ea_data.options import Options
from ea_data.protocols import Cut, Span, VideoInfo
from ea_data.split.chop import Boundary, check_seconds, spans_of
from ea_data.split.footage import Footage, open_footage


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
        check_seconds(self.min_seconds, self.max_seconds)
        return self


class SceneSplitter:
    """Cuts a video at its scene changes; see SceneOptions."""

    version = "3"

    def __init__(self, options: SceneOptions) -> None:
        self.options = options

    def __call__(self, path: Path, info: VideoInfo) -> Sequence[Span]:
        """Spans in seconds from the first frame. Without a cut, the whole video is one scene.

        Raises UserError if the file cannot be read as a video.
        """
        if info.is_picture:
            return [Span(0.0, 0.0)]
        pieces, fps = self.pieces(path)
        scenes = [scene for piece in pieces for scene in pairwise(piece)]
        cuts = [Cut(cut.seconds, cut.seconds) for piece in pieces for cut in piece[1:-1]]
        return spans_of(scenes, cuts, fps, self.options.min_seconds, self.options.max_seconds)

    def boundaries(self, path: Path) -> tuple[list[Boundary], Fraction]:
        """The start, every cut and the end, in order, and the frame rate."""
        pieces, fps = self.pieces(path)
        return [boundary for piece in pieces for boundary in piece], fps

    def pieces(self, path: Path) -> tuple[list[list[Boundary]], Fraction]:
        """The boundaries of each piece between pauses (start, cuts and end, in order), and the frame rate."""
        with open_footage(path) as footage:
            timeline, fps = footage.timeline, footage.fps
            cuts = self._cuts(footage)
        seconds, frame_seconds = timeline.seconds, float(1 / fps)
        edges = [0, *timeline.pauses(), len(seconds)]
        pieces = []
        for first, after in pairwise(edges):
            start, end = float(seconds[first]), float(seconds[after - 1]) + frame_seconds
            inner = {number: time for number, time in cuts.items() if start < time < end}
            inner |= {round(time * float(fps)): time for time in (start, end)}
            pieces.append([Boundary(number, inner[number]) for number in sorted(inner)])
        return pieces, fps

    def _cuts(self, footage: Footage) -> dict[int, float]:
        """The seconds of every pass's cuts by their frame's number."""
        import cv2
        from av.video.reformatter import VideoReformatter
        from scenedetect import ContentDetector, FrameTimecode
        from scenedetect.common import Timecode
        from scenedetect.detector import FlashFilter
        from scenedetect.scene_manager import compute_downscale_factor

        length, mode = self.options.min_scene_len, FlashFilter.Mode.SUPPRESS
        detectors = [
            # Its default mode became MERGE in 0.6.4; V2's scripts ran with SUPPRESS.
            (skip + 1, ContentDetector(threshold, length, filter_mode=mode))
            for threshold, skip in self.options.passes
        ]
        factor = compute_downscale_factor(max(footage.width, footage.height))
        size = (max(1, round(footage.width / factor)), max(1, round(footage.height / factor)))
        reformatter = VideoReformatter()  # kept: a new one for each frame costs more than all the rest
        base = footage.timeline.time_base
        cuts: dict[int, float] = {}
        for number, (pts, frame) in enumerate(footage.frames):
            wanted = [detector for step, detector in detectors if number % step == 0]
            if not wanted:
                continue
            image = reformatter.reformat(frame, format="bgr24", threads=1).to_ndarray()
            small = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) if factor > 1 else image
            time = FrameTimecode(Timecode(pts=pts, time_base=base), fps=footage.fps)
            for detector in wanted:
                cuts |= {cut.frame_num: cut.seconds for cut in detector.process_frame(time, small)}
        return cuts
