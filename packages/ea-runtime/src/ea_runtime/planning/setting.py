"""The numbers of one generation that memory and time follow from."""

from __future__ import annotations

from dataclasses import dataclass, field

from ea_runtime.models.memory.denoiser import LoraRanks


@dataclass(frozen=True, slots=True)
class Setting:
    """One generation.

    frames, height, width: of a video, pixels. steps: network passes. batch: videos denoised together. is_smooth: the
    seams between chunks are decoded twice. has_known: starts from pictures or a video. known_pictures: how many, where
    all else is made; 0: a video. text_tokens: of the prompt and of the negative prompt. lora, lora_bytes: ranks by
    place, and the size of the files. kind: of the file that is written ("mp4", "png", ...); None: frames stay in
    memory. window: frames of the longest window, if the video is made window by window. windows: how many there are.
    """

    frames: int
    height: int
    width: int
    steps: int
    has_guidance: bool = True
    batch: int = 1
    is_smooth: bool = True
    has_known: bool = False
    known_pictures: int = 0
    has_cache: bool = False
    text_tokens: tuple[int, int] = (24, 1)
    lora: LoraRanks = field(default_factory=LoraRanks)
    lora_bytes: int = 0
    kind: str | None = "mp4"
    window: int | None = None
    windows: int = 1

    @property
    def denoised(self) -> tuple[int, int]:
        """Frames that one network pass sees, and passes of each step."""
        return min(self.frames, self.window or self.frames), self.windows

    @property
    def branches(self) -> int:
        """Rows of text of each video."""
        return 2 if self.has_guidance else 1


def text_length(text: str) -> int:
    """Tokens of a prompt, about: its words, in pieces, and the end; 120 at most."""
    return min(120, 1 + int(1.4 * len(text.split())))
