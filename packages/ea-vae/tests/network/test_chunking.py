from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ea_vae import VaeConfig
from ea_vae.network.chunking import (
    Piece,
    check_frames,
    check_latents,
    check_num_frames,
    count_frames,
    count_latents,
    decode_pieces,
    encode_pieces,
    find_frame,
    find_latent,
    resolve_first_alone,
)

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


def test_a_piece_sees_nobody_unless_told():
    piece = Piece(3, 6, "causal")
    assert (piece.start, piece.stop, piece.num_before, piece.num_after) == (3, 6, 0, 0)
    assert len({piece, Piece(3, 6, "causal"), Piece(3, 6, "slice")}) == 2  # plans do not change, and compare


CONFIGS = (MAGVIT, SLICE, VaeConfig(mini_batch_encoder=5, mini_batch_decoder=2))
#: the same cases each time, and no limit by the clock, which a busy machine would pass
drawn = settings(derandomize=True, deadline=None, max_examples=40)


@drawn
@given(st.sampled_from(CONFIGS), st.integers(1, 60), st.booleans(), st.sampled_from((None, False, True)))
def test_pieces_follow_each_other_and_their_frames_are_found(config, num, chunked, first_alone):
    """Each latent frame is decoded once; frames and latent frames lead back to the piece that yields them."""
    pieces = decode_pieces(num, config, chunked, first_alone)
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == num
    assert all(piece.start < piece.stop for piece in pieces)
    sizes = [count_frames([piece], config) for piece in pieces]
    begins = [0, *accumulate(sizes)]
    assert begins[-1] == count_frames(pieces, config)
    for frame in range(begins[-1]):
        number, first = find_frame(pieces, frame, config)
        assert first == begins[number] <= frame < begins[number + 1]
    with pytest.raises(IndexError, match=f"there are {begins[-1]} frames, not {begins[-1]}"):
        find_frame(pieces, begins[-1], config)
    alone = config.slice_compression_vae and (num % 2 == 1 if first_alone is None else first_alone)
    for at, piece in enumerate(pieces):
        assert piece.mode == ("single" if alone and at == 0 else "slice" if config is SLICE else "causal")
        # no neighbour is more than a slice, before the first of them or after the last latent frame
        before = min(2, piece.start - alone) if piece.mode == "slice" else 0
        after = min(2, num - piece.stop) if piece.mode == "slice" else 0
        assert (piece.num_before, piece.num_after) == (before, after)


@drawn
@given(st.sampled_from(CONFIGS), st.integers(1, 60))
def test_latent_frames_are_found(config, num):
    pieces = encode_pieces(num, config)
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == num
    total = count_latents(pieces, config)
    begins = [0, *accumulate(count_latents([piece], config) for piece in pieces)]
    assert begins[-1] == total
    for latent in range(total):
        number, first = find_latent(pieces, latent, config)
        assert first == begins[number] <= latent < begins[number + 1]
    with pytest.raises(IndexError, match=f"there are {total} latent frames, not {total}"):
        find_latent(pieces, total, config)


@pytest.mark.parametrize(
    ("config", "num_latents", "num_frames", "alone"),
    [
        *((MAGVIT, 3, 9, None), (MAGVIT, 4, 10, None), (MAGVIT, 3, None, None)),
        *((SLICE, 6, 24, False), (SLICE, 6, 21, True), (SLICE, 5, 20, False), (SLICE, 5, 17, True)),
        *((SLICE, 1, 1, True), (SLICE, 1, 4, False), (SLICE, 5, None, None)),
    ],
)
def test_the_number_of_frames_says_if_the_first_latent_frame_is_alone(config, num_latents, num_frames, alone):
    assert resolve_first_alone(num_latents, num_frames, config) is alone


def test_numbers_of_frames_that_no_latents_give():
    with pytest.raises(ValueError, match="`num_frames` must be 24 or 21 for 6 latent frames, got 22"):
        resolve_first_alone(6, 22, SLICE)
    with pytest.raises(ValueError, match="`num_frames` must be 9 for 3 latent frames, got 8"):
        resolve_first_alone(3, 8, MAGVIT)


def test_the_rule_is_named():
    for config, chunked, rule in (
        (MAGVIT, True, "a multiple of 9, or 1 or 5 more"),
        (MAGVIT, False, "one more than a multiple of 4"),
        (SLICE, True, "a multiple of 4, or one more"),
    ):
        with pytest.raises(ValueError, match=f"number of frames must be {rule}, got 2; use"):
            check_num_frames(2, config, chunked)


def test_videos_that_cannot_be_encoded():
    check_frames(torch.zeros(1, 3, 9, 8, 16), MAGVIT, True)
    for shape, said in (
        (
            (3, 9, 8, 8),
            r"`x` must be \(batch, channels, frames, height, width\), got shape \(3, 9, 8, 8\); add the time axis with",
        ),
        ((8, 8), r"`x` must be \(batch, channels, frames, height, width\), got shape \(8, 8\)$"),
        ((1, 4, 9, 8, 8), "`x` must have 3 channels on axis 1, got shape"),
        ((1, 3, 9, 12, 8), "height of `x` must be a multiple of 8, got 12; use 8 or 16"),
        ((1, 3, 9, 8, 20), "width of `x` must be a multiple of 8, got 20; use 16 or 24"),
        ((1, 3, 9, 8, 7), "width of `x` must be a multiple of 8, got 7; use 8$"),
        ((1, 3, 9, 0, 8), "height of `x` must be a multiple of 8, got 0; use 8$"),
        ((1, 3, 8, 8, 8), "got 8; use 5 or 9"),
    ):
        with pytest.raises(ValueError, match=said):
            check_frames(torch.zeros(shape), MAGVIT, True)
    with pytest.raises(
        ValueError, match=r"`x` must be floating point in -1..1, got torch.uint8; use x / 127.5 - 1"
    ):
        check_frames(torch.zeros(1, 3, 9, 8, 8, dtype=torch.uint8), MAGVIT, True)
    check_frames(torch.zeros(1, 3, 9, 8, 8, dtype=torch.float16), MAGVIT, False)
    with pytest.raises(ValueError, match="got 10; use 9 or 13"):  # fits in chunks alone
        check_frames(torch.zeros(1, 3, 10, 8, 8), MAGVIT, False)
    check_frames(torch.zeros(1, 3, 10, 8, 8), MAGVIT, True)


def test_latents_that_cannot_be_decoded():
    check_latents(torch.zeros(1, 4, 3, 2, 2), MAGVIT)
    with pytest.raises(ValueError, match="`z` must hold one latent frame or more, got shape"):
        check_latents(torch.zeros(1, 4, 0, 2, 2), MAGVIT)
    with pytest.raises(ValueError, match="`z` must have 4 channels on axis 1"):
        check_latents(torch.zeros(1, 3, 3, 2, 2), MAGVIT)
    with pytest.raises(ValueError, match="latent frames, height, width"):
        check_latents(torch.zeros(4, 3, 2, 2), MAGVIT)
