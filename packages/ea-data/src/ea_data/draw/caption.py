"""Captions of drawn scenes in varied wording, and the attributes that a prompt asks for.

A caption may leave out the size (then any size fits) and, on a black background only, the background: black
is the default (`DEFAULT_BACKGROUND`). So "a red circle moves right" is a caption of this set. A picture's
caption does not mention motion.
"""

from __future__ import annotations

import re

import numpy as np

from ea_data.draw.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, place, split_combinations

DEFAULT_BACKGROUND = "black"
SIZE_OMITTED = 0.2  # share of captions without a size
BACKGROUND_OMITTED = 0.4  # share of the captions on black without a background

SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "little"),
    "large": ("large", "large", "big"),
}
BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    "black": ("black",),
    "gray": ("gray", "gray", "grey"),
    "navy": ("navy", "navy", "navy blue"),
}
_MOTION_VERBS: dict[str, tuple[str, ...]] = {
    "left": (
        "moves left",
        "moves to the left",
        "moves from right to left",
        "slides left",
        "goes to the left",
    ),
    "right": (
        "moves right",
        "moves to the right",
        "moves from left to right",
        "slides right",
        "goes to the right",
    ),
    "up": ("moves up", "moves upwards", "moves to the top", "slides up", "goes up"),
    "down": ("moves down", "moves downwards", "moves to the bottom", "slides down", "goes down"),
    "grow": ("grows", "gets bigger", "becomes larger"),
    "shrink": ("shrinks", "gets smaller", "becomes smaller"),
    "still": ("stands still", "does not move", "stays in place"),
}
_PARTICIPLES = {
    "moves": "moving",
    "slides": "sliding",
    "goes": "going",
    "gets": "getting",
    "becomes": "becoming",
    "grows": "growing",
    "shrinks": "shrinking",
    "stands": "standing",
    "stays": "staying",
}


def _participle(does: str) -> str:
    verb, _, rest = does.partition(" ")
    return "not moving" if verb == "does" else f"{_PARTICIPLES[verb]} {rest}".rstrip()


#: Motion -> (finite form, participle) of each wording.
MOTION_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    motion: tuple((does, _participle(does)) for does in forms) for motion, forms in _MOTION_VERBS.items()
}

# {what}: "a small red circle"; {bare}: the same without its article; {does}: "moves right"; {doing}: "moving
# right".
CLIP_TEMPLATES: tuple[str, ...] = (
    "{what} {does} on a {background} background",
    "{what} {does} on a {background} background",
    "{what} {does} over a {background} background",
    "{what} {does} against a {background} background",
    "{what} {doing} on a {background} background",
    "{what} {doing}, {background} background",
    "{bare} {doing}, {background} background",
    "{bare} {does} on a {background} background",
    "{what} on a {background} background {does}",
    "{what} that {does} on a {background} background",
    "on a {background} background, {what} {does}",
    "a {background} background with {what} that {does}",
    "{what} {does}. the background is {background}.",
    "a video of {what} {doing} on a {background} background",
)
CLIP_TEMPLATES_PLAIN: tuple[str, ...] = (
    "{what} {does}",
    "{what} {does}",
    "{what} {doing}",
    "{bare} {doing}",
    "{what} that {does}",
    "a video of {what} {doing}",
)
PICTURE_TEMPLATES: tuple[str, ...] = (
    "{what} on a {background} background",
    "{what} over a {background} background",
    "{what} against a {background} background",
    "{what}, {background} background",
    "{bare}, {background} background",
    "a {background} background with {what}",
    "{what}. the background is {background}.",
    "a picture of {what} on a {background} background",
)
PICTURE_TEMPLATES_PLAIN: tuple[str, ...] = ("{what}", "{bare}", "a picture of {what}")


def caption(scene: Scene, seed: int, index: int, *, is_picture: bool = False, is_full: bool = False) -> str:
    """A caption of a scene, its wording a pure function of (seed, index).

    With `is_full` it names every attribute; otherwise it may leave out the size, and the background if it is
    the default. Raises ValueError for a negative seed or index.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"`seed` and `index` must be 0 or more, got {seed} and {index}")
    # The third word sets this stream apart from the one that placed the scene.
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, 0xCA])))
    omits_size, omits_background, *choices = (float(u) for u in rng.random(6))

    def pick(options: tuple, choice: float):
        return options[int(choice * len(options))]

    size = "" if not is_full and omits_size < SIZE_OMITTED else pick(SIZE_WORDS[scene.size], choices[0]) + " "
    bare = f"{size}{scene.colour} {scene.shape}"
    does, doing = pick(MOTION_WORDS[scene.motion], choices[1])
    is_plain = (
        not is_full and scene.background == DEFAULT_BACKGROUND and omits_background < BACKGROUND_OMITTED
    )
    if is_picture:
        templates = PICTURE_TEMPLATES_PLAIN if is_plain else PICTURE_TEMPLATES
    else:
        templates = CLIP_TEMPLATES_PLAIN if is_plain else CLIP_TEMPLATES
    background = pick(BACKGROUND_WORDS[scene.background], choices[2])
    return pick(templates, choices[3]).format(
        what=f"a {bare}", bare=bare, does=does, doing=doing, background=background
    )


def sample_prompts(num_prompts: int, seed: int = 0, split: str = "heldout") -> list[str]:
    """Prompts that name every attribute, so that all of them can be checked.

    They go through the split's combinations in a seeded order and repeat one only when all are used. Raises
    ValueError for num_prompts below 1 and an unknown split.
    """
    if num_prompts < 1:
        raise ValueError(f"`num_prompts` must be 1 or more, got {num_prompts}")
    combinations = split_combinations(split)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0, 0xBEEF])))
    order: list[int] = []
    while len(order) < num_prompts:
        order.extend(int(i) for i in rng.permutation(len(combinations)))
    scenes = (place(combinations[i], rng) for i in order[:num_prompts])
    return [caption(scene, seed, index, is_full=True) for index, scene in enumerate(scenes)]


_BACKGROUND = re.compile(
    r"\b(?P<before>[a-z]+)(?: blue)? (?:background|backdrop)\b(?! is)"
    r"|\bbackground is (?P<after>[a-z]+)(?: blue)?\b"
)
_SAME = {
    "grey": "gray",
    "little": "small",
    "tiny": "small",
    "big": "large",
    "disc": "circle",
    "ball": "circle",
}
# In this order: "does not move" before "move", "from left to right" before "left".
_MOTIONS: tuple[tuple[str, str], ...] = (
    ("still", r"(?:stands?|standing|stays?|staying|is|remains?) still\b|(?:not|doesn't) mov"),
    ("still", r"(?:stays?|staying) in place|motionless|stationary"),
    ("right", r"from (?:the )?left to (?:the )?right"),
    ("left", r"from (?:the )?right to (?:the )?left"),
    ("up", r"from (?:the )?bottom to (?:the )?top"),
    ("down", r"from (?:the )?top to (?:the )?bottom"),
    ("grow", r"grow(?:s|ing)?\b|bigger|larger|expand"),
    ("shrink", r"shrink|smaller"),
    ("left", r"left(?:wards?)?\b"),
    ("right", r"right(?:wards?)?\b"),
    ("up", r"up(?:wards?)?\b|to the top|ris(?:es|ing)\b"),
    ("down", r"down(?:wards?)?\b|to the bottom|fall(?:s|ing)\b"),
)
_MOTION_PATTERNS = tuple((motion, re.compile(rf"\b(?:{pattern})")) for motion, pattern in _MOTIONS)


def parse_prompt(text: str) -> dict[str, str]:
    """The attributes that a prompt names: {"colour" | "shape" | "size" | "motion" | "background": value}.

    Reads this set's captions and common variants. Of two values for one attribute the first counts; words
    that this set does not know (a pink circle, a white background) are ignored.
    """
    text = " ".join(text.lower().replace("’", "'").split())
    asked: dict[str, str] = {}

    def take_background(match: re.Match[str]) -> str:
        word = str(match["before"] or match["after"])
        value: str = _SAME.get(word, word)
        if value in BACKGROUNDS:
            asked.setdefault("background", value)
        return " "  # so that "a white background" does not read as a white shape

    rest = _BACKGROUND.sub(take_background, text)
    for match in re.finditer(r"[a-z]+", rest):
        value = _SAME.get(match[0], match[0])
        for attribute, values in (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES)):
            if value in values:
                asked.setdefault(attribute, value)
    for motion, pattern in _MOTION_PATTERNS:
        if pattern.search(rest):
            asked["motion"] = motion
            break
    return asked
