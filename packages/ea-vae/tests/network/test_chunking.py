from __future__ import annotations

import pytest

from ea_vae import VaeConfig
from ea_vae.network.chunking import Piece, check_num_frames, count_frames, decode_pieces, encode_pieces

MAGVIT = VaeConfig()
SLICE = VaeConfig(slice_compression_vae=True, mini_batch_encoder=8, mini_batch_decoder=2)


def test_magvit_chunks_are_independent():
    assert encode_pieces(23, MAGVIT) == [
        Piece(0, 9, "causal"),
        Piece(9, 18, "causal"),
        Piece(18, 23, "causal"),
    ]
    assert decode_pieces(8, MAGVIT) == [Piece(0, 3, "causal"), Piece(3, 6, "causal"), Piece(6, 8, "causal")]
    assert encode_pieces(17, MAGVIT, chunked=False) == [Piece(0, 17, "causal")]


def test_slices_share_their_neighbours():
    assert encode_pieces(17, SLICE) == [Piece(0, 1, "single"), Piece(1, 9, "slice"), Piece(9, 17, "slice")]
    assert decode_pieces(5, SLICE) == [
        Piece(0, 1, "single"),
        Piece(1, 3, "slice", num_before=0, num_after=2),
        Piece(3, 5, "slice", num_before=2, num_after=0),
    ]
    assert decode_pieces(6, SLICE)[1] == Piece(2, 4, "slice", num_before=2, num_after=2)
    assert decode_pieces(3, SLICE, first_alone=False)[1] == Piece(2, 3, "slice", num_before=2, num_after=0)


@pytest.mark.parametrize(
    ("config", "num_frames"),
    [(MAGVIT, n) for n in (1, 5, 9, 10, 14, 18, 144)] + [(SLICE, n) for n in (1, 8, 9, 16, 17, 144, 145)],
)
def test_round_trip_keeps_the_number_of_frames(config, num_frames):
    latents = encode_pieces(num_frames, config)
    num_latents = sum(-(-(piece.stop - piece.start) // 4) for piece in latents)
    assert count_frames(decode_pieces(num_latents, config), config) == num_frames


@pytest.mark.parametrize(
    ("config", "num", "chunked", "use"),
    [
        (MAGVIT, 20, True, "use 19 or 23"),
        (MAGVIT, 8, True, "use 5 or 9"),
        (MAGVIT, 18, False, "use 17 or 21"),
        (MAGVIT, 0, True, "use 1"),
        (MAGVIT, -3, True, "use 1"),
        (SLICE, 11, True, "use 9 or 12"),
        (SLICE, 3, False, "use 1 or 4"),
    ],
)
def test_numbers_that_do_not_fit(config, num, chunked, use):
    with pytest.raises(ValueError, match=f"got {num}; {use}$"):
        check_num_frames(num, config, chunked)


def test_numbers_for_the_pipeline(magvit, sliced):
    assert [magvit.num_latents_for(n) for n in (1, 9, 10, 144)] == [1, 3, 4, 48]
    assert [magvit.num_frames_for(n) for n in (1, 3, 4, 48)] == [1, 9, 10, 144]
    assert [sliced.num_latents_for(n) for n in (1, 8, 25)] == [1, 2, 7]
    assert [sliced.num_frames_for(n) for n in (1, 2, 7)] == [1, 8, 25]
    with pytest.raises(ValueError, match="a multiple of 9, or 1 or 5 more, got 20; use 19 or 23"):
        magvit.num_latents_for(20)
