"""Changes to a VAE before and after training: fresh weights, pictures to video, slices, unit latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ea_vae.network.conv import CausalConv3d
from ea_vae.network.model import AutoencoderKLMagvit

#: 1 / 0.18215: latents of this deviation have unit deviation for the denoiser.
LATENT_STD = 1 / 0.18215


@torch.no_grad()
def initialise(vae: AutoencoderKLMagvit) -> None:
    """Normal weights of gain 1 with zero biases; the last layer of each residual branch starts small.

    torch's default (uniform, gain 1/sqrt(3)) lets the signal die in a network of this depth without skips
    around its samplers.
    """
    for name, module in vae.named_modules():
        if isinstance(module, (nn.Conv3d, nn.Linear)):
            fan_in = module.weight[0].numel()
            small = name.endswith(("conv2", "to_out"))
            module.weight.normal_(0.0, (0.1 if small else 1.0) / math.sqrt(fan_in))
            if module.bias is not None:
                module.bias.zero_()


@torch.no_grad()
def inflate(vae: AutoencoderKLMagvit) -> None:
    """Moves the sum of a causal kernel's temporal taps into the last one.

    On one frame, replicated in front, nothing changes; on a clip each frame is then encoded as a separate
    picture, which is a far better start for video than three equal taps.
    """
    for module in vae.modules():
        if isinstance(module, CausalConv3d) and module.weight.shape[2] > 1:
            total = module.weight.sum(dim=2)
            module.weight.zero_()
            module.weight[:, :, -1] = total


@torch.no_grad()
def whiten(vae: AutoencoderKLMagvit, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Folds (z - mean) * LATENT_STD / std into quant_conv and its inverse into post_quant_conv, exactly.

    latents: (B, C, T, h, w) means of the posterior. Returns the mean and deviation found, per channel.
    `decode(encode(x))` does not change; `encode` then gives means of deviation LATENT_STD per channel.
    """
    channels = latents.shape[1]
    mean = latents.mean(dim=(0, 2, 3, 4))
    scale = LATENT_STD / latents.std(dim=(0, 2, 3, 4))
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant.bias is not None
    assert post.bias is not None
    quant.weight[:channels].mul_(scale.view(-1, 1, 1, 1, 1))
    quant.bias[:channels].sub_(mean).mul_(scale)
    quant.bias[channels:].add_(2 * scale.log())  # log of the variance, scaled alike
    # post(z) = W (z' / scale + mean) + b
    post.bias.add_(torch.einsum("oithw,i->o", post.weight, mean))
    post.weight.div_(scale.view(1, -1, 1, 1, 1))
    return mean, LATENT_STD / scale


def as_slices(vae: AutoencoderKLMagvit) -> AutoencoderKLMagvit:
    """The same weights in slice mode: slices of two latent frames, zeros around them in time."""
    # without the private keys: diffusers lists the names of defaults there and drops those
    settings = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    settings |= {
        "slice_compression_vae": True,
        "mini_batch_encoder": 2 * vae.settings.temporal_ratio,
        "mini_batch_decoder": 2,
    }
    made = AutoencoderKLMagvit.from_config(settings)
    assert isinstance(made, AutoencoderKLMagvit)
    made.load_state_dict(vae.state_dict())
    return made
