"""Weights to start training from nothing. Fine-tuning does not need them."""

from __future__ import annotations

from torch import nn

from .model import Transformer3DModel


def initialize_weights(model: Transformer3DModel) -> None:
    """Give `model` PixArt's start, in place: text and motion branches and the output are zero at first.

    Linear layers are Xavier-uniform with zero biases, the condition and text MLPs normal with deviation 0.02;
    the output layer, the outputs of cross-attention and of the motion modules, and the skips are zero. Draws
    from torch's global generator. Source: PixArt-alpha, arXiv 2310.00426.

    Differs from EasyAnimate, which keeps PyTorch's default: it always starts from PixArt's trained weights.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            assert module.bias is not None, name
            nn.init.zeros_(module.bias)

    for part in (model.adaln_single, model.caption_projection, model.clip_projection):
        if part is None:
            continue
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)

    zero: list[nn.Module] = [model.proj_out, *(model.long_connect_fc if model.cfg.enable_uvit else [])]
    if model.cfg.has_size_conditions:
        zero += [
            model.adaln_single.emb.resolution_embedder.linear_2,
            model.adaln_single.emb.aspect_ratio_embedder.linear_2,
        ]
    for block in model.blocks:
        zero += [block.attn2.to_out[0], block.attn_temporal.temporal_transformer.proj_out]
    for module in zero:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
