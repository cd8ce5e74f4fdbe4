"""Videos longer than the model: the windows of latent frames that are denoised one after the other. Imports no torch.

    18 frames a window, 36 frames:   [0 ... 18)
                                           [9 ... 27)
                                                 [18 ... 36)

A window begins at a chunk of the VAE, so that what it shares with the one before is whole chunks of latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError
from ea_runtime.models.geometry import Geometry, check_int

if TYPE_CHECKING:
    from ea_runtime.models.layout import GenerationDefaults

#: of one video
MAX_FRAMES = 100_000
JOINS = ("latents", "pixels")
#: chunks that windows share: a quarter of a window, and at least one
_SHARE = 4


@dataclass(frozen=True, slots=True)
class Window:
    """Latent frames start..stop of a video and its frames first..last (exclusive), which are denoised together.

    before, after: latent frames at its two ends that are known from windows made earlier. frames_before: the frames of
    the former. In a loop the last window goes past the end: its `after` latent frames are the video's first ones.
    """

    start: int
    stop: int
    first: int
    last: int
    before: int = 0
    after: int = 0
    frames_before: int = 0

    @property
    def num_latents(self) -> int:
        """Latent frames, the known ones included."""
        return self.stop - self.start

    @property
    def num_frames(self) -> int:
        """Frames, the known ones included."""
        return self.last - self.first

    @property
    def first_made(self) -> int:
        """The first frame that this window makes."""
        return self.first + self.frames_before


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a video of `num_frames` frames, in the order in which they are made.

    is_loop: the last one leads into the first. join: "latents" or "pixels".
    """

    num_frames: int
    num_latents: int
    all: tuple[Window, ...]
    is_loop: bool = False
    join: str = "latents"

    def __len__(self) -> int:
        return len(self.all)

    @property
    def longest(self) -> int:
        """Frames of the longest window."""
        return max(one.num_frames for one in self.all)

    @property
    def noise_places(self) -> list[int]:
        """For each latent frame of the video, the one of the drawn noise that it starts from: 0..longest window.

        Windows after the first begin from its noise, as in FreeNoise (Qiu et al. 2023, arXiv 2310.15169): with noise of
        their own, what is made wobbles from window to window.
        """
        drawn = max(one.num_latents for one in self.all)
        if len(self.all) == 1:
            return list(range(self.num_latents))
        second = self.all[1]
        period = second.num_latents - second.before - second.after
        return [i if i < drawn else drawn - period + (i - drawn) % period for i in range(self.num_latents)]

    @property
    def joins(self) -> list[int]:
        """The first frame after each join; 0 is the one from the last frame of a loop to its first."""
        found = [one.first_made for one in self.all[1:]]
        return [*found, 0] if self.is_loop else found

    @property
    def is_pixels(self) -> bool:
        """True if windows are joined as pixels."""
        return self.join == "pixels" and len(self.all) > 1


def plan_windows(
    geometry: Geometry,
    num_frames: int,
    window: int | None = None,
    *,
    loop: bool = False,
    join: str | None = None,
) -> Windows:
    """The windows of a video. window: frames of each; None: all in one piece. loop: the end leads into the start.

    All but the first of a slice VAE have the same length where `num_frames` is long enough; the last one is aligned to
    the end and may share more. Raises UserError for a loop that cannot be made.
    """
    total, join = geometry.num_latents(num_frames), join or "latents"
    if not loop and (window is None or num_frames <= window):
        whole = Window(0, total, 0, num_frames)
        return Windows(num_frames, total, (whole,), join=join)
    maker = _Maker(geometry, num_frames, geometry.num_latents(window or num_frames) // geometry.chunk_latents)
    if not loop:
        return Windows(num_frames, total, tuple(maker.up_to(total)), join=join)
    return Windows(num_frames, total, tuple(maker.loop()), is_loop=True, join=join)


@dataclass(frozen=True, slots=True)
class _Maker:
    """size: chunks of a window."""

    geometry: Geometry
    num_frames: int
    size: int

    @property
    def alone(self) -> int:
        """1 if frame 0 has a latent frame alone, as odd lengths have it with the slice VAE."""
        return self.num_frames % self.geometry.temporal_ratio if self.geometry.is_slice else 0

    @property
    def shared(self) -> int:
        """Chunks that neighbours share."""
        return max(1, self.size // _SHARE)

    def up_to(self, total: int) -> list[Window]:
        """Windows of the first `total` latent frames; all but the last end with a chunk."""
        chunk = self.geometry.chunk_latents
        length = self.size * chunk
        found = [self.window(0, min(self.alone + (length - self.alone) // chunk * chunk, total))]
        while (done := found[-1].stop) < total:
            start = done - self.shared * chunk
            if start + length >= total:  # rounded up to a chunk
                start = self.alone - (self.alone + length - total) // chunk * chunk
            found.append(self.window(start, min(start + length, total), done - start))
        return found

    def loop(self) -> list[Window]:
        """Windows whose last one is known at both ends."""
        chunk = self.geometry.chunk_latents
        rest = self.num_frames % self.geometry.chunk_frames
        count = self.num_frames // self.geometry.chunk_frames
        if rest or count < 2:
            least = 2 * self.geometry.chunk_frames
            below = max(count * self.geometry.chunk_frames, least)
            raise UserError(
                f"`loop` needs a multiple of {self.geometry.chunk_frames} frames and at least {least}, got "
                f"{self.num_frames}; use {below}"
            )
        # a window that cannot hold both ends and a piece between them is longer
        most = self.size - 2 * self.shared if self.size > 2 * self.shared else self.size - self.shared
        made = min(most, count - 1)
        before = min(self.shared, count - made)
        found = self.up_to((count - made) * chunk)
        start = (count - made - before) * chunk
        closing = self.window(start, (count + before) * chunk, before * chunk)
        return [*found, replace(closing, after=before * chunk)]

    def window(self, start: int, stop: int, before: int = 0) -> Window:
        first = self.frame(start)
        return Window(start, stop, first, self.frame(stop), before, 0, self.frame(start + before) - first)

    def frame(self, latent: int) -> int:
        """The first frame of a chunk's first latent frame; past the end of the last one the video's end."""
        if latent <= self.alone:
            return latent
        chunks, rest = divmod(latent - self.alone, self.geometry.chunk_latents)
        return self.num_frames if rest else self.alone + chunks * self.geometry.chunk_frames


def settled_window(
    geometry: Geometry, defaults: GenerationDefaults, num_frames: int, window: Any, loop: bool
) -> int | None:
    """The frames of a window as a request has to say it: None where all is in one piece without being asked for.

    window: as asked for; None: the model's own number of frames. Raises UserError.
    """
    own = own_window(geometry, defaults)
    if window is None:
        return own if loop or num_frames > own else None
    least = 2 * geometry.chunk_frames
    number = check_int("window", window, 1)
    if num_frames <= number and not loop:
        return None if num_frames <= own else num_frames
    try:
        geometry.check_num_frames(number)
    except UserError as error:
        raise UserError(str(error).replace("`num_frames`", "`window`")) from None
    if number < least:
        raise UserError(
            f"`window` must be at least {least} frames, two chunks of the VAE, got {number}; use {least}"
        )
    return number


def own_window(geometry: Geometry, defaults: GenerationDefaults) -> int:
    """The model's own number of frames, or near it what VAE and positions allow: two chunks or more."""
    limit = geometry.max_latent_frames
    least = 2 * geometry.chunk_frames
    fitting = (
        n
        for n in range(defaults.num_frames, least, -1)
        if geometry.fits(n) and (limit is None or geometry.num_latents(n) <= limit)
    )
    return next(fitting, least)


def windows_of(settings: Mapping[str, Any], geometry: Geometry) -> Windows:
    """The windows of a request's settings (`Request.settings`), which were checked."""
    return plan_windows(
        geometry,
        settings["num_frames"],
        settings.get("window"),
        loop=bool(settings.get("loop")),
        join=settings.get("join"),
    )


def is_whole(settings: Mapping[str, Any]) -> bool:
    """True for a video that is made in one piece."""
    window = settings.get("window")
    return not settings.get("loop") and (window is None or settings["num_frames"] <= window)


def recorded_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a record has them: without `window`, a video is one piece, as records of old had no windows."""
    return {name: value for name, value in settings.items() if name != "window" or not is_whole(settings)}


def with_recorded_window(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite: a record without `window` is of one piece, however many frames it has."""
    return {**settings, "window": settings.get("window") or settings["num_frames"]}
