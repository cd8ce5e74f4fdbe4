"""Work that a plan's seconds follow from, next to the arithmetic: what the system maps, and Winograd's transforms."""

from __future__ import annotations

import pytest

from ea_runtime.machine.allocator import MAPPED
from ea_runtime.models.memory.meter import Meter
from ea_runtime.models.memory.vae import decoded_pieces
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


def test_a_linear_layer_reads_its_weights_once_a_call() -> None:
    meter = Meter(2)
    for rows in (1, 1000):
        meter.linear(rows, 8, 32)
    assert (meter.work["weights"], meter.work["linear"]) == (2 * 2 * 8 * 32, 2 * 1001 * 8 * 32)


@pytest.mark.parametrize(
    ("into", "out", "kind"), [(64, 64, "wide"), (63, 64, "convolution"), (512, 3, "convolution")]
)
def test_a_convolution_of_many_channels_has_a_rate_for_itself(into: int, out: int, kind: str) -> None:
    meter = Meter(4)
    meter.convolution(1, into, out, 100, 100, 27)
    work = {name: meter.work[name] for name in ("wide", "convolution") if meter.work[name]}
    assert work == {kind: 2 * 100 * 27 * into * out}


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


def test_a_lora_adds_bare_passes() -> None:
    found = {}
    for rank in (0, 4):
        meter = Meter(4)
        meter.linear(100, 8, 32, rank)
        found[rank] = meter.work
    assert found[4]["moved"] == found[0]["moved"] == 0
    assert found[4]["swept"] == 5 * 100 * 32 * 4
    assert found[4]["linear"] - found[0]["linear"] == 2 * 100 * 4 * (8 + 32)


@pytest.mark.parametrize(
    ("latents", "chunk", "is_slice", "pieces"),
    [
        (1, 3, False, {(1, 0, 0): 1}),
        (9, 3, False, {(3, 0, 0): 3}),
        (1, 2, True, {(1, 0, 0): 1}),
        (3, 2, True, {(1, 0, 0): 1, (2, 0, 0): 1}),  # the lone frame is nobody's neighbour
        (4, 2, True, {(2, 0, 2): 1, (2, 2, 0): 1}),
        (9, 2, True, {(1, 0, 0): 1, (2, 0, 2): 1, (2, 2, 2): 2, (2, 2, 0): 1}),
    ],
)
def test_pieces_are_those_of_the_vae(
    latents: int, chunk: int, is_slice: bool, pieces: dict[tuple[int, int, int], int]
) -> None:
    assert decoded_pieces(latents, chunk, is_slice) == pieces
