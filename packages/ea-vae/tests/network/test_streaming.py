from __future__ import annotations

import weakref

import pytest
import torch


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
