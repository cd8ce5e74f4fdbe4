"""Splitters compared on composed video with known transitions, and on single shots.

    python benchmarks/compare_splitters.py -o FOLDER

draws the set into FOLDER (once), runs each splitter over it, and prints the table of docs/data.md. A third of the shots
is taken from real files that hold one shot each: those of the field cases if they are here, or --real FILE ... .
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from fractions import Fraction
from pathlib import Path
from typing import Any

from composed_video import FPS, HEIGHT, WIDTH, Transition, compose, real_pictures, single

from ea_data.components import make
from ea_data.protocols import Cut, Spans, VideoInfo
from ea_runtime.video.output import write_video

_CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "data"
REAL = (
    *("one_shot/ea1.mp4", "no_letters/flower.webm", "no_letters/frog.mp4"),
    *("mkv_b_frames/bunny.mkv", "copies/bigbuckbunny.mp4", "copies/rabbit320.mp4"),
)
NUM_VIDEOS, NUM_SHOTS, NUM_SINGLES = 22, 16, 60
#: Frames that a cut may be away from a transition.
TOLERANCE = 2


def draw(folder: Path, films: Sequence[Path]) -> None:
    """The set: cNN.mp4, sNN-STYLE.mp4 and truth.json."""
    if (folder / "truth.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pictures = real_pictures(films)
    truth: dict[str, Any] = {}
    for number in range(NUM_VIDEOS):
        pieces, transitions = compose(number, NUM_SHOTS, pictures)
        name = f"c{number:02d}.mp4"
        write_video(folder / name, (one for piece in pieces for one in piece), FPS, overwrite=True)
        truth[name] = [sum(map(len, pieces)), [astuple(one) for one in transitions]]
    for number in range(NUM_SINGLES):
        style, frames = single(number, pictures)
        name = f"s{number:02d}-{style.replace(' ', '-')}.mp4"
        write_video(folder / name, iter(frames), FPS, overwrite=True)
        truth[name] = [len(frames), []]
    (folder / "truth.json").write_text(json.dumps(truth))


def by_library(detector: Callable[[], Any]) -> Callable[[Path, int], list[Cut]]:
    """The cuts of PySceneDetect's own `detect`."""

    def cuts(path: Path, num_frames: int) -> list[Cut]:
        from scenedetect import detect

        scenes = detect(str(path), detector())
        starts = [start.seconds for start, _ in scenes[1:]]
        return [Cut(start, start) for start in starts]

    return cuts


def by_splitter(name: str, **settings: Any) -> Callable[[Path, int], list[Cut]]:
    splitter = make("splitters", name, settings)

    def cuts(path: Path, num_frames: int) -> list[Cut]:
        info = VideoInfo(path, WIDTH, HEIGHT, Fraction(FPS), num_frames / FPS, num_frames, "h264")
        spans = splitter(path, info)
        assert isinstance(spans, Spans)
        return list(spans.cuts)

    return cuts


def methods() -> dict[str, Callable[[Path, int], list[Cut]]]:
    from scenedetect import AdaptiveDetector, ContentDetector

    return {
        "V2's three passes (`scenedetect`)": by_splitter("scenedetect"),
        "ContentDetector 27": by_library(ContentDetector),
        "AdaptiveDetector": by_library(AdaptiveDetector),
        "`adaptive`": by_splitter("adaptive"),
        "`transnetv2`, whole pass": by_splitter("transnetv2", look_everywhere=True),
        "`transnetv2`": by_splitter("transnetv2"),
    }


class Tally:
    """Counts over videos. near: cuts that belong to a transition, by its kind."""

    def __init__(self) -> None:
        self.truths: dict[str, int] = {}
        self.hits: dict[str, int] = {}
        self.false = 0
        self.in_clips = 0  # frames of found gradual transitions outside of the cut's own extent
        self.missed: list[tuple[str, str, int]] = []
        self.wrong: list[tuple[str, float]] = []

    def add(self, name: str, cuts: Sequence[Cut], transitions: Sequence[Transition]) -> None:
        left = list(cuts)
        for one in transitions:
            low, high = one.start - TOLERANCE, one.end + TOLERANCE
            own = [cut for cut in left if cut.start * FPS <= high + 0.5 and cut.end * FPS >= low - 0.5]
            left = [cut for cut in left if cut not in own]
            self.truths[one.kind] = self.truths.get(one.kind, 0) + 1
            if own:
                self.hits[one.kind] = self.hits.get(one.kind, 0) + 1
                changed = set(range(one.start, one.end))
                for cut in own:
                    changed -= set(range(round(cut.start * FPS), round(cut.end * FPS)))
                self.in_clips += len(changed)
            else:
                self.missed.append((name, one.kind, one.start))
        self.false += len(left)
        self.wrong += [(name, cut.start * FPS) for cut in left]

    def f1(self, *kinds: str) -> str:
        """Precision, recall and F1 of some kinds of transition. Every false cut counts against each kind."""
        hits, truths = (sum(counts.get(kind, 0) for kind in kinds) for counts in (self.hits, self.truths))
        precision = hits / max(1, hits + self.false)
        recall = hits / max(1, truths)
        both = 2 * precision * recall / max(1e-9, precision + recall)
        return f"{precision:.3f} / {recall:.3f} / {both:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", type=Path, required=True)
    parser.add_argument("--real", type=Path, nargs="*", default=[_CASES / name for name in REAL])
    parser.add_argument("--only", nargs="*", help="methods whose name holds one of these")
    parser.add_argument("-v", action="store_true", help="print each missed transition and false cut")
    given = parser.parse_args()
    draw(given.o, given.real)
    truth = json.loads((given.o / "truth.json").read_text())
    print(
        "| splitter | hard cuts: precision / recall / F1 | gradual | false in single shots | CPU s / 1000 frames |"
    )
    print("|---|---|---|---|---|")
    for label, method in methods().items():
        if given.only and not any(word in label for word in given.only):
            continue
        composed, singles = Tally(), Tally()
        began, frames = time.process_time(), 0
        for name, (num_frames, transitions) in truth.items():
            cuts = method(given.o / name, num_frames)
            tally = composed if transitions else singles
            tally.add(name, cuts, [Transition(*one) for one in transitions])
            frames += num_frames
        seconds = time.process_time() - began
        row = (composed.f1("hard"), composed.f1("dissolve", "fade", "wipe"), singles.false)
        print(f"| {label} | {' | '.join(map(str, row))} | {1000 * seconds / frames:.2f} |", flush=True)
        if given.v:
            recalls = {
                kind: f"{composed.hits.get(kind, 0)}/{count}" for kind, count in composed.truths.items()
            }
            print(recalls, "frames of transitions left:", composed.in_clips)
            print("missed:", composed.missed, "\nfalse:", composed.wrong, singles.wrong)


if __name__ == "__main__":
    main()
