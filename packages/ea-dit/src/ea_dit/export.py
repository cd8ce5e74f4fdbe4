"""The denoiser's graph for export, one step of it, and a denoiser that runs such a graph.

The graph takes the text encoder's states and their mask, and projects them to keys and values itself: 120 tokens
next to some 100,000, so nothing is saved by doing that outside, and one graph holds every weight that a LoRA may touch.
Only the noise comes out; the learned variance is for training.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ea_dit.network.config import CLIP_CHANNELS, CLIP_TOKENS
from ea_dit.network.inputs import batch_timestep, check_latents, check_text, size_conditions
from ea_dit.network.known_frames import check_clip, with_known_frames
from ea_runtime.errors import UserError
from ea_runtime.export.parts import Graph, Input, Run, Size

parts = ("dit",)
TEXT_TOKENS = 120  # of V2's prompts
#: further inputs of a step, by their names in `Transformer3DModel.forward`
SIZES = ("resolution", "aspect_ratio")
KNOWN = ("inpaint_latents", "clip_encoder_hidden_states", "clip_attention_mask")


class DenoisingStep(nn.Module):
    """Latents (R, C, t, h, w), timestep (R,), text (R, S, D), mask (R, S) [, further] -> noise (R, C, t, h, w).

    further: size conditions; or the known frames (R, 2C, t, h, w), with V3 also CLIP's embedding (R, 768), mask (R, 8).
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor, *further: Tensor
    ) -> Tensor:
        arguments: dict[str, Any] = {}
        if self.model.cfg.has_known_frames:
            arguments = dict(zip(known_inputs(self.model.cfg), further, strict=True))
        elif further:
            arguments = {"added_cond_kwargs": dict(zip(SIZES, further, strict=True))}
        out = self.model(latents, timestep, text, text_mask, return_dict=False, **arguments)[0]
        return out[:, : latents.shape[1]]


def known_inputs(config: Any) -> tuple[str, ...]:
    """The inputs of V3 that a model takes: all, or the known frames without CLIP's picture."""
    return KNOWN if config.has_picture else KNOWN[:1]


def graphs(part: str, network: Any, size: Size) -> list[Graph]:
    """The one graph of a step at this size."""
    cfg, rows = network.cfg, size.rows
    shape = (rows, cfg.latent_channels, size.latent_frames, size.latent_height, size.latent_width)
    check_latents(cfg, torch.empty(shape, device="meta"))
    inputs = {
        "latents": Input(shape),
        "timestep": Input((rows,), torch.float32),
        "text": Input((rows, TEXT_TOKENS, cfg.text_width)),
        "text_mask": Input((rows, TEXT_TOKENS)),
    }
    if cfg.has_size_conditions:
        inputs |= {
            "resolution": Input((rows, 2), torch.float32),
            "aspect_ratio": Input((rows, 1), torch.float32),
        }
    if cfg.has_known_frames:
        known = (
            Input((rows, 2 * shape[1], *shape[2:])),
            Input((rows, CLIP_CHANNELS)),
            Input((rows, CLIP_TOKENS)),
        )
        inputs |= dict(zip(known_inputs(cfg), known, strict=False))
    blocks = tuple(f"model.transformer_blocks.{i}" for i in range(cfg.num_layers))

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        mask = torch.zeros(rows, TEXT_TOKENS)
        for row in range(rows):
            mask[row, : 5 + 7 * row] = 1
        sides = torch.tensor([[float(size.height), float(size.width)]] * rows)
        drawn = {
            "latents": torch.randn(shape, generator=generator),
            "timestep": torch.full((rows,), 501.0),
            "text": torch.randn(inputs["text"].shape, generator=generator),
            "text_mask": mask,
            "resolution": sides,
            "aspect_ratio": sides[:, :1] / sides[:, 1:],
        }
        if cfg.has_known_frames:
            for name in known_inputs(cfg)[:2]:
                drawn[name] = torch.randn(inputs[name].shape, generator=generator)
            # as with guidance: the first rows go without the picture
            drawn[KNOWN[2]] = (
                (torch.arange(rows) >= rows // 2).float()[:, None].expand(rows, CLIP_TOKENS).clone()
            )
        return {name: drawn[name] for name in inputs}

    return [Graph("dit", part, DenoisingStep(network), inputs, ("noise",), blocks, draw)]


def attach(network: nn.Module, runs: Mapping[str, Run]) -> ExportedTransformer:
    """The denoiser of a pipeline, run by the graph."""
    return ExportedTransformer(network, runs["dit"])


class ExportedTransformer:
    """Called as `Transformer3DModel` is; `.sample` holds the noise alone.

    network: the model without weights, in which a LoRA finds its modules.
    """

    def __init__(self, network: Any, run: Run) -> None:
        self.config = network.config
        self.cfg = network.cfg
        self.network = network
        self.run = run

    def __call__(
        self,
        hidden_states: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor | None] | None = None,
        inpaint_latents: Tensor | None = None,
        clip_encoder_hidden_states: Tensor | None = None,
        clip_attention_mask: Tensor | None = None,
    ) -> SimpleNamespace:
        """See `Transformer3DModel.forward`. Rows beyond the graph's go through it in turn."""
        check_latents(self.cfg, hidden_states)
        rows = hidden_states.shape[0]
        text = check_text(self.cfg, encoder_hidden_states, encoder_attention_mask, rows)
        shapes = self.run.graphs["dit"]
        if tuple(hidden_states.shape[2:]) != shapes["latents"][2:]:
            raise UserError(
                f"the bundle's dit was made for {self.run.size.words()} (latents {list(shapes['latents'][2:])}), got"
                f" latents {list(hidden_states.shape[2:])}; export a bundle of this size"
            )
        resolution, aspect_ratio = size_conditions(self.cfg, added_cond_kwargs, rows)
        inputs = {
            "latents": hidden_states,
            "timestep": batch_timestep(timestep, rows, hidden_states.device).float(),
            **_padded(text, encoder_attention_mask, shapes["text"][1]),
        }
        if resolution is not None and aspect_ratio is not None:
            inputs |= {
                "resolution": resolution.reshape(rows, 2),
                "aspect_ratio": aspect_ratio.reshape(rows, 1),
            }
        with_known_frames(self.cfg, hidden_states, inpaint_latents)  # checks them
        clip = check_clip(self.cfg, clip_encoder_hidden_states, clip_attention_mask, rows)
        if inpaint_latents is not None:
            embedding, mask = clip or (hidden_states.new_zeros(rows, CLIP_CHANNELS), None)
            if mask is None:
                mask = embedding.new_full((rows, CLIP_TOKENS), float(clip is not None))
            known = (inpaint_latents, embedding, mask.to(embedding))
            inputs |= dict(zip(known_inputs(self.cfg), known, strict=False))
        group = shapes["latents"][0]
        noise = []
        for start in range(0, rows, group):
            part = {name: tensor[start : start + group] for name, tensor in inputs.items()}
            count = part["latents"].shape[0]
            if count < group:  # the graph's rows are fixed: the last one is repeated, and dropped
                rest = [-1] * (group - count)
                part = {name: torch.cat([tensor, tensor[rest]]) for name, tensor in part.items()}
            noise.append(self.run("dit", part)["noise"][:count])
        return SimpleNamespace(sample=torch.cat(noise).to(hidden_states))


def _padded(text: Tensor, mask: Tensor | None, num_tokens: int) -> dict[str, Tensor]:
    """Text and mask with as many tokens as the graph takes. Raises UserError for more."""
    rows, given = text.shape[:2]
    if mask is None:
        mask = torch.ones(rows, given)
    if given > num_tokens or mask.ndim != 2:
        raise UserError(f"the graph takes {num_tokens} text tokens and a mask (rows, tokens), got {given}")
    rest = num_tokens - given
    return {
        "text": torch.nn.functional.pad(text, (0, 0, 0, rest)),
        "text_mask": torch.nn.functional.pad(mask.to(text), (0, rest)),
    }
