"""Shared by the captioners: prompts, presets, and captions tidied to one line."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

PROMPT = (
    "Describe this video in one paragraph of plain sentences: what can be seen, what it does, how it moves, where it "
    "is, and how the camera moves. Say only what the frames show. Do not begin with 'The video'."
)


@dataclass(frozen=True, slots=True)
class Preset:
    """The question for a family of models. frames: how many, spread evenly. max_side: pixels of the longer side."""

    frames: int
    max_side: int
    prompt: str


#: Values of `preset` of the captioner `openai`; a setting that is given overrides its preset.
PRESETS: dict[str, Preset] = {
    "": Preset(8, 512, PROMPT),
    # VILA-1.5 takes 8 frames at 384 pixels.
    "vila": Preset(8, 384, PROMPT),
    # VideoChat2 takes 16 frames at 224 pixels.
    "videochat2": Preset(16, 224, PROMPT),
    # As EasyAnimate V2's scripts: LLaVA on the middle frame.
    "llava": Preset(
        1, 672, "Describe this picture in one paragraph of plain sentences. Say only what can be seen."
    ),
}


def prompt_hash(prompt: str) -> str:
    """The sha256 of a prompt, in hexadecimal digits."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def tidy(text: str, max_words: int = 0) -> str:
    """One line without quotes around it; at most `max_words` words (0: any), cut after a sentence if one ends."""
    text = " ".join(text.split())
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text.count(text[0]) == 2:
        text = text[1:-1].strip()
    words = text.split(" ")
    if not max_words or len(words) <= max_words:
        return text
    cut = " ".join(words[:max_words])
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", cut)]
    return cut[: ends[-1]] if ends else cut
