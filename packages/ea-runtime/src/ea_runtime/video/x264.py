"""Options of the H.264 encoder x264, for every writer: the same frames give the same bytes."""

from __future__ import annotations

#: x264's result depends on the number of threads, so it does not follow the machine.
THREADS = 4


def x264_options(crf: int, preset: str = "medium") -> dict[str, str]:
    """For a PyAV stream. crf: constant quality, 0 (lossless) to 51; preset: x264's own names.

    The macroblock tree is off: its AVX-512 code reads memory that x264 did not write, so bytes would follow the heap.
    """
    return {"crf": str(crf), "preset": preset, "flags": "+bitexact", "x264-params": "mbtree=0"}
