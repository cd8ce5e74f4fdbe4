"""Work that a plan's seconds follow from, next to the arithmetic: what the system maps, and Winograd's transforms."""

from __future__ import annotations

import pytest

from ea_runtime.machine.allocator import MAPPED
from ea_runtime.models.memory.meter import Meter
from ea_runtime.models.memory.winograd import Tiled


def test_large_tensors_are_mapped_and_small_ones_are_not() -> None:
    meter = Meter(4)
    meter.free(meter.new(MAPPED // 4 - 1))
    assert (meter.work["mapped"], meter.work["mappings"]) == (0, 0)
    for _ in range(2):
        meter.free(meter.new(MAPPED // 4))
    assert (meter.work["mapped"], meter.work["mappings"]) == (2 * MAPPED, 2)


@pytest.mark.parametrize(("is_last", "count"), [(True, 1), (False, 3)])
def test_a_convolution_maps_its_layouts(is_last: bool, count: int) -> None:
    meter = Meter(4, has_scratch=True)
    meter.convolution(1, 16, 16, 1 << 18, 1 << 18, 9, is_last=is_last)
    assert meter.work["mappings"] == count
    assert meter.work["mapped"] == count * 16 * 4 << 18


def test_a_picture_transforms_more_for_each_product_than_a_video() -> None:
    found = {}
    for frames in (1, 9):
        meter = Meter(4)
        Tiled(64, 128, (frames, 64, 64)).walk(meter, True)
        found[frames] = meter.work
    tiles, each = 16 * 16, 36 * 64 * 128
    # one product of the summed taps; of nine frames three, but for the first two: one and two
    assert [found[n]["winograd"] for n in (1, 9)] == [2 * tiles * each * count for count in (1, 24)]
    taps = {1: 1, 9: 5}
    assert [found[n]["transformed"] for n in (1, 9)] == [
        4 * (n * tiles * 36 * (64 + 128) + taps[n] * each) for n in (1, 9)
    ]
