from __future__ import annotations

import copy

import pytest
import torch

from ea_vae import AutoencoderKLMagvit


@torch.no_grad()
@pytest.mark.parametrize(("num_frames", "num_latents"), [(1, 1), (5, 2), (9, 3), (17, 5)])
def test_shapes_magvit(magvit, noise, num_frames, num_latents):
    posterior = magvit.encode(noise(2, 3, num_frames, 16, 24)).latent_dist
    assert posterior.parameters.shape == (2, 8, num_latents, 2, 3)
    assert torch.equal(posterior.mode(), posterior.parameters[:, :4])
    assert magvit.decode(posterior.mode()).sample.shape == (2, 3, num_frames, 16, 24)


@torch.no_grad()
@pytest.mark.parametrize(("num_frames", "num_latents"), [(1, 1), (8, 2), (9, 3), (16, 4), (17, 5)])
def test_shapes_slice(sliced, noise, num_frames, num_latents):
    latents = sliced.encode(noise(1, 3, num_frames, 16, 16)).latent_dist.mode()
    assert latents.shape == (1, 4, num_latents, 2, 2)
    assert sliced.decode(latents).sample.shape == (1, 3, num_frames, 16, 16)


@torch.no_grad()
def test_time_compression_of_eight(make_vae, noise):
    vae = make_vae(
        down_block_types=["SpatialTemporalDownBlock3D"] * 4,
        up_block_types=["SpatialTemporalUpBlock3D"] * 4,
        slice_compression_vae=True,
        mini_batch_encoder=8,
        mini_batch_decoder=1,
    )
    latents = vae.encode(noise(1, 3, 17, 16, 16)).latent_dist.mode()
    assert latents.shape == (1, 4, 3, 2, 2)
    assert vae.decode(latents).sample.shape == (1, 3, 17, 16, 16)
    assert vae.decode_video(latents).shape == (1, 3, 17, 16, 16)


def test_the_bundled_models_size_builds_and_learns(noise):
    vae = AutoencoderKLMagvit(ch=8, ch_mult=(1, 2, 4, 8), layers_per_block=1, norm_num_groups=1)
    posterior = vae.encode(noise(1, 3, 9, 16, 16)).latent_dist
    vae.decode(posterior.sample(torch.Generator().manual_seed(0))).sample.square().mean().backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_forward_is_encode_then_decode(magvit, noise):
    x = noise(1, 3, 5, 16, 16)
    with torch.no_grad():
        wanted = magvit.decode(magvit.encode(x).latent_dist.mode()).sample
        assert torch.equal(magvit(x).sample, wanted)
        assert torch.equal(magvit(x, return_dict=False)[0], wanted)
        (posterior,) = magvit.encode(x, return_dict=False)
        generator = torch.Generator().manual_seed(3)
        drawn = magvit(x, sample_posterior=True, generator=generator).sample
        z = posterior.sample(torch.Generator().manual_seed(3))
        assert torch.equal(drawn, magvit.decode(z).sample)


@torch.no_grad()
@pytest.mark.parametrize("name", ["magvit", "sliced"])
def test_videos_of_a_batch_do_not_touch(request, noise, name):
    vae = request.getfixturevalue(name)
    x = noise(2, 3, 9, 16, 16)
    both = vae.encode(x).latent_dist.parameters
    each = torch.cat([vae.encode(one).latent_dist.parameters for one in x.split(1)])
    assert torch.allclose(both, each, atol=1e-5)
    z = both[:, :4]
    each = torch.cat([vae.decode(one).sample for one in z.split(1)])
    assert torch.allclose(vae.decode(z).sample, each, atol=1e-5)


@pytest.mark.parametrize("name", ["magvit", "sliced"])
def test_gradient_checkpointing_gives_the_same_gradients(request, noise, name):
    plain = request.getfixturevalue(name)
    saving = copy.deepcopy(plain)
    saving.enable_gradient_checkpointing()
    assert saving.encoder.gradient_checkpointing
    assert saving.decoder.gradient_checkpointing
    x = noise(1, 3, 9, 16, 16)
    for vae in (plain, saving):
        vae.train()
        vae.decode(vae.encode(x).latent_dist.mode()).sample.square().mean().backward()
    for (key, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert one.grad is not None, key
        assert torch.allclose(one.grad, other.grad, rtol=1e-5, atol=1e-7), key


@torch.no_grad()
@pytest.mark.parametrize("name", ["magvit", "sliced"])
def test_save_and_load(request, tmp_path, noise, name):
    vae = request.getfixturevalue(name)
    vae.save_pretrained(tmp_path / "vae")
    again = AutoencoderKLMagvit.from_pretrained(tmp_path, subfolder="vae").eval()
    assert again.config.block_out_channels == [4, 4, 8, 8]
    assert again.settings == vae.settings
    x = noise(1, 3, 9, 16, 16)
    assert torch.equal(vae.encode(x).latent_dist.parameters, again.encode(x).latent_dist.parameters)


def test_input_takes_the_models_type(magvit, noise):
    moments = magvit.to(torch.bfloat16).encode(noise(1, 3, 1, 16, 16)).latent_dist.parameters
    assert moments.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 9, 16, 16), "`x` must have 3 channels on axis 1"),
        ((1, 3, 9, 12, 16), "height of `x` must be a multiple of 8, got 12; use 8 or 16"),
        ((1, 3, 9, 16, 4), "width of `x` must be a multiple of 8, got 4; use 8"),
        ((3, 9, 16, 16), "add the time axis"),
        ((1, 3, 8, 16, 16), "one more than a multiple of 4, got 8; use 5 or 9"),
        ((1, 3, 0, 16, 16), "got 0; use 1$"),
    ],
)
def test_encode_errors(magvit, shape, message):
    with pytest.raises(ValueError, match=message) as caught:
        magvit.encode(torch.zeros(shape))
    assert "\n" not in str(caught.value)


def test_more_errors(magvit, sliced):
    with pytest.raises(ValueError, match=r"floating point in -1..1, got torch.uint8; use x / 127.5 - 1"):
        magvit.encode(torch.zeros(1, 3, 1, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="multiple of 4, or one more, got 10; use 9 or 12"):
        sliced.encode(torch.zeros(1, 3, 10, 16, 16))
    with pytest.raises(ValueError, match="`z` must have 4 channels"):
        magvit.decode(torch.zeros(1, 3, 3, 2, 2))
    with pytest.raises(ValueError, match=r"`z` must be \(batch, channels, latent frames"):
        magvit.decode(torch.zeros(4, 3, 2, 2))
    with pytest.raises(ValueError, match="one latent frame or more"):
        magvit.decode(torch.zeros(1, 4, 0, 2, 2))
