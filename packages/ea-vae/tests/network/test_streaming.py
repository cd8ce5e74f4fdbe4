from __future__ import annotations

import weakref
from mmap import mmap

import pytest
import torch
from torch import Tensor

from ea_vae import VaeConfig
from ea_vae.network import streaming
from ea_vae.network.chunking import decode_pieces, encode_pieces
from ea_vae.network.conv import Mode
from ea_vae.network.posterior import Posterior
from ea_vae.network.streaming import VideoCoder


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_plain_decoding_is_chunk_by_chunk(magvit, noise):
    z = noise(1, 4, 8, 2, 2)
    wanted = torch.cat([magvit.decode(part).sample for part in z.split(3, dim=2)], dim=2).clamp(-1, 1)
    frames = magvit.decode_video(z, smooth=False)
    assert frames.shape == (1, 3, 23, 16, 16)
    assert torch.equal(frames, wanted)


@torch.no_grad()
def test_plain_decoding_in_slices_is_one_pass(sliced, noise):
    z = noise(1, 4, 7, 2, 2)
    assert torch.equal(sliced.decode_video(z, smooth=False), sliced.decode(z).sample.clamp(-1, 1))


@torch.no_grad()
def test_encoding_is_chunk_by_chunk(magvit, sliced, noise):
    x = noise(1, 3, 23, 16, 16).clamp(-1, 1)
    chunks = [magvit.encode(part).latent_dist for part in x.split(9, dim=2)]
    assert torch.equal(magvit.encode_video(x), torch.cat([chunk.mode() for chunk in chunks], dim=2))
    generator = seeded(5)
    drawn = torch.cat([chunk.sample(generator) for chunk in chunks], dim=2)
    assert torch.equal(magvit.encode_video(x, generator=seeded(5)), drawn)
    assert torch.equal(magvit.encode_video(x, seeded(5), sample=False), magvit.encode_video(x))
    posterior = sliced.encode(x[:, :, :17]).latent_dist
    assert torch.equal(sliced.encode_video(x[:, :, :17], seeded(5)), posterior.sample(seeded(5)))


@torch.no_grad()
@pytest.mark.parametrize("num_latents", [4, 6, 9, 11])
def test_smoothing_magvit(magvit, noise, num_latents):
    """Streaming gives the same result as smoothing the whole video at once."""
    z = noise(1, 4, num_latents, 2, 2)
    wanted = magvit.decode_video(z, smooth=False)
    generator = seeded(7)
    latents = [magvit.encode(x).latent_dist.sample(generator) for x in wanted[:, :, 4:-5].split(9, dim=2)]
    again = torch.cat([magvit.decode(part).sample for part in latents], dim=2)
    wanted[:, :, 4:-5] = (wanted[:, :, 4:-5] + again) / 2
    assert torch.allclose(magvit.decode_video(z, generator=seeded(7)), wanted.clamp(-1, 1), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("num_latents", [3, 4, 7, 10])
def test_smoothing_slice(sliced, noise, num_latents):
    z = noise(1, 4, num_latents, 2, 2)
    wanted = sliced.decode_video(z, smooth=False)
    if wanted.shape[2] > 8:
        latents = sliced.encode(wanted[:, :, 4:-4]).latent_dist.sample(seeded(7))
        wanted[:, :, 4:-4] = (wanted[:, :, 4:-4] + sliced.decode(latents).sample) / 2
    assert torch.allclose(sliced.decode_video(z, generator=seeded(7)), wanted.clamp(-1, 1), atol=1e-6)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("name", ["magvit", "sliced"])
def test_streaming_equals_decoding_at_once(request, noise, name, smooth):
    vae = request.getfixturevalue(name)
    z = noise(2, 4, 9, 2, 2)
    chunks = list(vae.iter_decode(z, smooth=smooth, generator=seeded(1)))
    assert max(chunk.shape[2] for chunk in chunks) <= 9
    whole = vae.decode_video(z, smooth=smooth, generator=seeded(1))
    assert torch.equal(torch.cat(chunks, dim=2), whole)
    assert whole.abs().max() <= 1


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("name", ["magvit", "sliced"])
def test_frames_are_let_go(request, noise, name, smooth):
    """The number of decoded frames held at once does not grow with the video."""
    vae = request.getfixturevalue(name)
    peaks = []
    for num_latents in (15, 30):
        made: list[weakref.ref] = []
        hook = vae.decoder.register_forward_hook(lambda *args, made=made: made.append(weakref.ref(args[2])))
        peak = 0
        for frames in vae.iter_decode(noise(1, 4, num_latents, 2, 2), smooth=smooth):
            made.append(weakref.ref(frames))
            del frames
            peak = max(peak, sum(ref() is not None for ref in made))
        hook.remove()
        peaks.append(peak)
    assert peaks[0] == peaks[1] <= 3


def test_first_frames_come_before_the_last_latents_are_read(magvit, noise):
    calls = []
    magvit.decoder.register_forward_pre_hook(lambda *args: calls.append(1))
    stream = magvit.iter_decode(noise(1, 4, 30, 2, 2))
    assert not calls
    next(stream)
    assert len(calls) == 1


def test_smoothing_draws_from_its_generator_alone(magvit, noise):
    z = noise(1, 4, 6, 2, 2)
    torch.manual_seed(0)
    first = magvit.decode_video(z, generator=seeded(1))
    state = torch.get_rng_state()
    assert torch.equal(magvit.decode_video(z, generator=seeded(1)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(magvit.decode_video(z, generator=seeded(2)), first)


@pytest.mark.parametrize("name", ["magvit", "sliced"])
def test_a_generator_for_each_video(request, noise, name):
    vae = request.getfixturevalue(name)
    z = noise(2, 4, 6, 2, 2)
    both = vae.decode_video(z, generator=[seeded(1), seeded(2)])
    each = [
        vae.decode_video(one, generator=seeded(seed)) for one, seed in zip(z.split(1), (1, 2), strict=True)
    ]
    assert torch.allclose(both, torch.cat(each), atol=1e-5)
    with pytest.raises(ValueError, match="a list of 2, one for each video, got 3"):
        vae.decode_video(z, generator=[seeded(i) for i in range(3)])


@torch.no_grad()
def test_later_frames_never_change_earlier_chunks(magvit, noise):
    x = noise(1, 3, 27, 16, 16).clamp(-1, 1)
    changed = x.clone()
    changed[:, :, 9:] *= -1
    before, after = magvit.encode_video(x), magvit.encode_video(changed)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.allclose(before[:, :, 3:], after[:, :, 3:])


def test_number_of_frames_settles_what_parity_cannot(sliced, noise):
    x = noise(1, 3, 13, 16, 16).clamp(-1, 1)
    z = sliced.encode_video(x)
    assert z.shape[2] == 4
    assert sliced.decode_video(z).shape[2] == 16
    assert sliced.decode_video(z, num_frames=13).shape[2] == 13
    assert sliced.decode_video(sliced.encode_video(x[:, :, :12]), num_frames=12).shape[2] == 12
    with pytest.raises(ValueError, match="`num_frames` must be 16 or 13 for 4 latent frames, got 14"):
        sliced.decode_video(z, num_frames=14)


def test_a_picture_and_short_videos_are_not_smoothed(magvit, noise):
    for num_latents in (1, 2, 3):
        z = noise(1, 4, num_latents, 2, 2)
        assert torch.equal(magvit.decode_video(z), magvit.decode_video(z, smooth=False))


def test_errors_come_at_once(magvit):
    with pytest.raises(ValueError, match="`latents` must have 4 channels"):
        magvit.iter_decode(torch.zeros(1, 3, 3, 2, 2))
    with pytest.raises(ValueError, match="`num_frames` must be 9 for 3 latent frames, got 8"):
        magvit.iter_decode(torch.zeros(1, 4, 3, 2, 2), num_frames=8)
    with pytest.raises(ValueError, match="multiple of 9, or 1 or 5 more, got 20; use 19 or 23"):
        magvit.encode_video(torch.zeros(1, 3, 20, 16, 16))
    with pytest.raises(ValueError, match="width of `frames` must be a multiple of 8, got 20; use 16 or 24"):
        magvit.encode_video(torch.zeros(1, 3, 9, 16, 20))


@torch.no_grad()
def test_tiles_and_slices_together(sliced, noise):
    z = noise(1, 4, 7, 4, 4)
    sliced.enable_tiling(tile_sample_min_size=16)
    assert torch.equal(sliced.decode_video(z, smooth=False), sliced.decode(z).sample.clamp(-1, 1))


def test_no_gradients_are_kept(magvit, noise):
    z = noise(1, 4, 6, 2, 2).requires_grad_()
    assert not magvit.decode_video(z).requires_grad
    assert not magvit.encode_video(noise(1, 3, 9, 16, 16)).requires_grad
    assert torch.is_grad_enabled()
    for _ in magvit.iter_decode(z):
        assert torch.is_grad_enabled()


class Toy(VideoCoder):
    """Codes a piece by sums that depend on every frame of it; latents are as high and wide as frames."""

    def __init__(self, settings: VaeConfig) -> None:
        self.settings = settings
        self.calls: list[tuple[str, int, Mode]] = []

    def encode_piece(self, x: Tensor, mode: Mode) -> Tensor:
        self.calls.append(("encode", x.shape[2], mode))
        num = -(-x.shape[2] // 4)
        mean = torch.stack([x[:, :1, 4 * at : 4 * at + 4].mean(2) for at in range(num)], 2)
        mean = (mean + 0.1 * x[:, :1].mean(2, keepdim=True)).expand(-1, 4, -1, -1, -1)
        return torch.cat([mean, torch.full_like(mean, -2.0)], dim=1)

    def decode_piece(self, z: Tensor, mode: Mode, num_before: int = 0, num_after: int = 0) -> Tensor:
        self.calls.append(("decode", z.shape[2], mode))
        around = z[:, :3].mean(2, keepdim=True)
        z = z[:, :3, num_before : z.shape[2] - num_after]
        count = {"causal": 4 * z.shape[2] - 3, "slice": 4 * z.shape[2], "single": 1}[mode]
        frames = z.repeat_interleave(4, dim=2)[:, :, :count]
        return frames + 0.1 * around + 0.01 * torch.arange(count)[:, None, None]


TOYS = [
    VaeConfig(),
    VaeConfig(mini_batch_encoder=5, mini_batch_decoder=2),
    VaeConfig(slice_compression_vae=True, mini_batch_encoder=8, mini_batch_decoder=2),
]


def by_hand(toy: Toy, z: Tensor, smooth: bool, num_frames: int | None) -> Tensor:
    """The frames by the definition: everything at once, and no stream."""

    def decode(latents: Tensor, alone: bool | None) -> Tensor:
        parts = [
            toy.decode_piece(
                latents[:, :, one.start - one.num_before : one.stop + one.num_after],
                one.mode,
                one.num_before,
                one.num_after,
            )
            for one in decode_pieces(latents.shape[2], toy.settings, first_alone=alone)
        ]
        return torch.cat(parts, dim=2)

    alone = None if num_frames is None else num_frames % 2 == 1
    frames = decode(z, alone if toy.settings.slice_compression_vae else None).clamp(-1, 1)
    size = toy.settings.mini_batch_encoder
    if smooth and frames.shape[2] > size:
        first = size // 2
        inner = frames[:, :, first : frames.shape[2] - (size - first)]
        moments = [
            toy.encode_piece(inner[:, :, one.start : one.stop], one.mode)
            for one in encode_pieces(inner.shape[2], toy.settings)
        ]
        generator = seeded(7)
        if toy.settings.slice_compression_vae:
            latents = Posterior(torch.cat(moments, dim=2)).sample(generator)
        else:
            latents = torch.cat([Posterior(one).sample(generator) for one in moments], dim=2)
        again = decode(latents, inner.shape[2] % 2 == 1 if toy.settings.slice_compression_vae else None)
        frames[:, :, first : first + inner.shape[2]] = ((inner + again) / 2).clamp(-1, 1)
    return frames


@pytest.mark.parametrize("config", TOYS, ids=["chunks of 9", "chunks of 5", "slices"])
@pytest.mark.parametrize("smooth", [False, True])
def test_a_stream_gives_the_frames_of_the_definition(config, smooth):
    """Short and long videos from every first frame on, in float64."""
    for num in (1, 3, 4, 6, 9):
        z = torch.randn(2, 4, num, 1, 2, generator=seeded(num), dtype=torch.float64)
        options = (4 * num - 3, 4 * num) if config.slice_compression_vae else (None,)
        for num_frames in options:
            toy = Toy(config)
            whole = by_hand(toy, z, smooth, num_frames)
            num_done = len(toy.calls)
            toy.calls.clear()
            found = toy.decode_video(z, smooth, seeded(7), num_frames)
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)
            assert len(toy.calls) == num_done  # nothing twice
            for start in range(whole.shape[2]):
                parts = list(toy.iter_decode(z, smooth, seeded(7), num_frames, start))
                torch.testing.assert_close(torch.cat(parts, dim=2), whole[:, :, start:], rtol=0, atol=1e-12)
                assert all(0 < part.shape[2] <= 9 for part in parts)
            for start in (-1, whole.shape[2]):
                with pytest.raises(ValueError, match=f"`start` must be from 0 to {whole.shape[2] - 1} for"):
                    toy.iter_decode(z, smooth, seeded(7), num_frames, start)


def test_a_frame_that_is_not_wanted_is_not_decoded():
    """A first frame that was coded alone, where decoding resumes with the first frame of the second pass."""
    z = torch.randn(1, 4, 8, 1, 2, generator=seeded(1), dtype=torch.float64)
    calls = []
    for start in (3, 4):
        toy = Toy(TOYS[2])
        list(toy.iter_decode(z, True, seeded(7), 29, start))
        calls.append(toy.calls)
    assert calls[0] == [("decode", 1, "single"), *calls[1]]


@pytest.mark.parametrize("config", TOYS)
@pytest.mark.parametrize("smooth", [False, True])
def test_frames_hold_no_more_memory_than_their_own(config, smooth):
    z = torch.randn(1, 4, 9, 1, 2, generator=seeded(1), dtype=torch.float64)
    for part in Toy(config).iter_decode(z, smooth, seeded(7)):
        assert part.untyped_storage().nbytes() == part.numel() * 8


@pytest.mark.parametrize("config", TOYS)
def test_a_second_pass_holds_few_latents(config, monkeypatch):
    held = []
    decode = Toy.decode_piece
    monkeypatch.setattr(
        Toy,
        "decode_piece",
        lambda toy, z, *more: (held.append(z.untyped_storage().nbytes()), decode(toy, z, *more))[1],
    )
    z = torch.randn(1, 4, 40, 1, 2, generator=seeded(1), dtype=torch.float64)
    for _ in Toy(config).iter_decode(z, True, seeded(7)):
        pass
    assert {size > z.nbytes // 3 for size in held if size != z.nbytes} == {False}


@pytest.mark.parametrize("config", TOYS)
def test_smoothing_is_the_default(config):
    z = torch.randn(1, 4, 7, 1, 2, generator=seeded(1), dtype=torch.float64)
    toy, smooth = Toy(config), by_hand(Toy(config), z, True, None)
    torch.testing.assert_close(toy.decode_video(z, generator=seeded(7)), smooth)
    torch.testing.assert_close(torch.cat(list(toy.iter_decode(z, generator=seeded(7))), 2), smooth)
    assert not torch.equal(by_hand(toy, z, False, None), smooth)


def test_frames_are_clamped_on_every_way(monkeypatch):
    """On a CPU each in its own pages, which go back to the system; with gradients and subclasses, plainly."""
    values = torch.tensor([-1.5, -1.0, 0.25, 1.0, 1.5], dtype=torch.float64).reshape(1, 1, 5, 1, 1)
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(streaming, "mmap", lambda *given: (made.append(given), mmap(*given))[1])

    class Other(Tensor):
        pass

    with torch.no_grad():
        assert streaming._clamped(values).flatten().tolist() == [-1, -1, 0.25, 1, 1]
        assert made == [(-1, 40)]
        found = streaming._clamped(values.as_subclass(Other))
        assert (type(found), found.flatten().tolist()) == (Other, [-1, -1, 0.25, 1, 1])
        assert streaming._clamped(values.to("meta")).device.type == "meta"
    with_gradient = streaming._clamped(values.requires_grad_())
    assert with_gradient.requires_grad
    assert with_gradient.flatten().tolist() == [-1, -1, 0.25, 1, 1]
    assert len(made) == 1


def test_a_window_holds_what_was_not_released():
    parts = [torch.arange(at, at + 3, dtype=torch.float32).reshape(1, 1, 3, 1, 1) for at in (10, 13, 16)]
    window = streaming._Window(iter(parts), 10)
    assert window.get(11, 13).flatten().tolist() == [11, 12]
    assert len(window.parts) == 1  # no more is pulled than needed
    assert window.get(12, 15).flatten().tolist() == [12, 13, 14]
    window.release(14)
    assert window.get(14, 16).flatten().tolist() == [14, 15]
    assert window.parts[0].untyped_storage().nbytes() == 2 * 4
    with pytest.raises(AssertionError, match="the stream ended early"):
        window.get(14, 20)
    fresh = streaming._Window(iter(parts))
    with pytest.raises(AssertionError, match="release follows get"):
        fresh.release(1)
    assert fresh.get(0, 2).flatten().tolist() == [10, 11]


def test_a_subclass_says_how_a_piece_is_coded():
    with pytest.raises(NotImplementedError):
        VideoCoder().encode_piece(torch.zeros(1, 3, 1, 8, 8), "single")
    with pytest.raises(NotImplementedError):
        VideoCoder().decode_piece(torch.zeros(1, 4, 1, 1, 1), "single")


def test_generators_must_be_one_or_as_many_as_videos(magvit):
    z, x = torch.zeros(2, 4, 3, 2, 2), torch.zeros(2, 3, 9, 16, 16)
    for wrong in (1, 4):
        generators = [seeded(at) for at in range(wrong)]
        with pytest.raises(ValueError, match=f"a list of 2, one for each video, got {wrong} in it"):
            magvit.iter_decode(z, generator=generators)
        with pytest.raises(ValueError, match=f"a list of 2, one for each video, got {wrong} in it"):
            magvit.encode_video(x, generators)
    with pytest.raises(ValueError, match="use 19 or 23"):
        magvit.num_latents_for(20)
    assert magvit.num_latents_for(10) == 4
    assert magvit.num_frames_for(4) == 10
