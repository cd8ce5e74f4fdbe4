"""The splitter `adaptive`: cuts where the picture changes far more than in the frames around.

PySceneDetect's AdaptiveDetector, without the changes that are flashes. It sees hard cuts alone, no dissolves or fades.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from pydantic import Field

from ea_data.media.look import Look
from ea_data.protocols import Cut
from ea_data.split.footage import Footage, small_frames
from ea_data.split.same_shot import GRID, REACH, is_flash
from ea_data.split.shots import ShotOptions, ShotSplitter

#: Longest side at which frames are compared, as PySceneDetect does.
_SIDE = 256


class AdaptiveOptions(ShotOptions):
    """ratio: times that a change is larger than the mean of the changes around it. min_content: smallest change of a
    cut, the mean over hue, saturation and brightness (0 to 255). window: frames before and after that are the
    measure."""

    ratio: float = Field(3.0, gt=1)
    min_content: float = Field(15.0, ge=0, le=255)
    window: int = Field(2, ge=1, le=50)


class AdaptiveSplitter(ShotSplitter):
    """Cuts a video at its hard cuts; see AdaptiveOptions."""

    options: AdaptiveOptions

    def find_cuts(self, footage: Footage, look: Look) -> Iterator[Cut]:
        """Hard cuts, each at the new shot's first frame."""
        import cv2
        from scenedetect import AdaptiveDetector, FrameTimecode
        from scenedetect.common import Timecode

        options, base = self.options, footage.timeline.time_base
        # cuts of any distance: a flash must not hide the cut after it
        detector = AdaptiveDetector(options.ratio, 0, options.window, options.min_content)
        scale = min(1.0, _SIDE / max(footage.width, footage.height))
        width, height = (max(1, round(side * scale)) for side in (footage.width, footage.height))
        kept = REACH + max(REACH, options.window + 1)
        times: deque[float] = deque(maxlen=kept)
        seen: deque[np.ndarray] = deque(maxlen=kept)
        waiting: list[float] = []  # cuts whose next frames are to come
        for time, frame in small_frames(footage.frames, width, height, "bgr24", look):
            code = FrameTimecode(Timecode(pts=time, time_base=base), fps=footage.fps)
            waiting += [float(time_of.pts * base) for time_of in detector.process_frame(code, frame)]
            times.append(float(time * base))
            seen.append(cv2.resize(frame, GRID[::-1], interpolation=cv2.INTER_AREA))
            if waiting and len(times) > REACH and waiting[0] <= times[-REACH]:
                yield from _whole(waiting.pop(0), times, seen)
        for cut in waiting:
            yield from _whole(cut, times, seen)


def _whole(cut: float, times: deque[float], seen: deque[np.ndarray]) -> Iterator[Cut]:
    """The cut, unless it is a flash."""
    number = times.index(cut)
    frames = np.stack(seen)
    if not is_flash(frames[:number], frames[number:]):
        yield Cut(cut, cut)
