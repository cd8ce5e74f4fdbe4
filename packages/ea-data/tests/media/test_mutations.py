"""RELIABILITY row 8: damaged mp4 files give a one-line error or frames; never a crash, never a hang over 2 s."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ea_data.children.supervisor import Failure, Supervisor

COUNT = 10_000 if os.environ.get("EA_FULL") else 300
TARGET = """
import hashlib, sys, tempfile
from pathlib import Path
from ea_data.media.frames import read_frames
from ea_data.media.probe import BadFile, probe
from ea_data.protocols import FrameRequest

class Reader:
    def prepare(self):
        self.folder = Path(tempfile.mkdtemp()).resolve()
    def __call__(self, task):
        data, strict = task
        path = self.folder / "mutated.mp4"
        path.write_bytes(data)
        try:
            info = probe(path, self.folder, strict=strict).info
            wanted = FrameRequest("fps", 1000)
            found = read_frames(path, self.folder, 0.0, info.seconds, float(info.fps), [wanted], strict=strict)
            return hashlib.sha256(found[wanted].pixels.tobytes()).hexdigest()
        except BadFile as error:
            assert "\\n" not in str(error)
            return "refused"
"""


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One of: flipped bits, a changed 32-bit field, bytes cut out, put in, doubled or zeroed, the end cut off."""
    changed = bytearray(data)
    kind = chance.randrange(7)
    at = chance.randrange(len(changed))
    size = chance.choice((1, 2, 4, 16, 64, 256))
    if kind == 0:
        for _ in range(chance.choice((1, 2, 8, 32))):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        value = chance.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, chance.getrandbits(32)))
        changed[at : at + 4] = value.to_bytes(4, "big")
    elif kind == 2:
        del changed[at : at + size]
    elif kind == 3:
        changed[at:at] = chance.randbytes(size)
    elif kind == 4:
        changed[at:at] = changed[at : at + size]
    elif kind == 5:
        changed[at : at + size] = bytes(len(changed[at : at + size]))
    else:
        del changed[at:]
    return bytes(changed)


def tasks(data: bytes, strict: bool) -> Iterator[tuple[bytes, bool]]:
    chance = random.Random(5)
    for _ in range(COUNT):
        yield mutate(data, chance), strict


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_mutated_mp4_files(
    strict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw_video: Callable[..., Path]
):
    (tmp_path / "mutation_target.py").write_text(TARGET)
    monkeypatch.syspath_prepend(str(tmp_path))
    data = draw_video(tmp_path / "whole.mp4", 24, size=(48, 64), options={"g": "8"}).read_bytes()
    counts: Counter[str] = Counter()
    with Supervisor("mutation_target:Reader", workers=1, timeout=2.0, memory_mb=1024) as pool:
        whole = pool.call((data, strict))
        assert len(whole) == 64
        for result in pool.map(tasks(data, strict)):
            if isinstance(result, Failure):
                counts[f"{result.kind}: {result.reason}"] += 1
            else:
                counts["refused" if result == "refused" else "same" if result == whole else "differs"] += 1
    print(f"strict={strict}: {dict(counts)}")  # noqa: T201 - the figure to report
    assert set(counts) <= {"refused", "same", "differs"}
    assert sum(counts.values()) == COUNT
    # the check can tell: some are refused, some read as if nothing were, some come out as other pictures
    assert counts["refused"] > 0
    assert counts["same"] > 0
