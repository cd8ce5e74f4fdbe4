"""Words that cleaning removes from a caption are named; words that it only rewrites are not."""

from __future__ import annotations

import pytest

from ea_runtime.text.lost_words import lost_words, tell_lost_words


@pytest.mark.parametrize(
    ("caption", "lost"),
    [
        ("", []),
        ("a red circle moves right", []),
        ("gr4ph1c red circle", ["gr4ph1c"]),
        ("一只红色的圆形向右移动", ["一只红色的圆形向右移动"]),
        ("a 红色 circle", ["红色"]),
        ("by @artist, on example.com/a", ["@artist", "example.com/a"]),
        ("sks_ink style, img4711", ["img4711"]),
        ("Free download! A red circle", ["Free", "download"]),
        ("photo.png of 1234567 cats", ["photo.png", "1234567"]),
        ("red red gr4ph1c red gr4ph1c", ["gr4ph1c", "gr4ph1c"]),
        # rewritten, not lost
        ("A Red CIRCLE, (masterpiece:1.2), best_quality", []),
        ("a red-haired, blue-eyed, long-legged, well-known cat", []),
        ("red+circle &amp; blue%20square", []),
        ("cafÃ© rouge, “quoted” — dash", []),
        ("<b>bold</b> cat", ["<b>bold</b>"]),
        ("straße ﬁne ＡＢＣ", []),
    ],
)
def test_lost_words(caption: str, lost: list[str]) -> None:
    assert lost_words(caption) == lost


def test_a_line_for_many() -> None:
    captions = ["gr4ph1c cat", "a cat", "gr4ph1c dog @me", "img4711"]
    line = tell_lost_words(captions)
    assert line is not None
    assert "3 of 4 captions: gr4ph1c, @me, img4711;" in line
    assert "\n" not in line
    assert tell_lost_words(["a cat"]) is None
    assert tell_lost_words([]) is None
    many = tell_lost_words([f"img47{i:03}" for i in range(12)])
    assert many is not None
    assert " and 7 more" in many
    one = tell_lost_words(["gr4ph1c"], "trigger word")
    assert one is not None
    assert "from the trigger word: gr4ph1c;" in one
