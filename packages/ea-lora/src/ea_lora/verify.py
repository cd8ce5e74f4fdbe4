"""Proof that a LoRA does something: matches, each block's change, the change of the output."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ea_lora.card import Card, base_note
from ea_lora.folder import load_networks
from ea_lora.io import as_file, content_hashes
from ea_lora.keys import PARTS, Part
from ea_lora.layer import Layer, LoraFile, count_parts
from ea_lora.matching import Match, Matching, match_lora, networks_of
from ea_lora.network import load_lora
from ea_runtime.generation.denoise import size_conditions
from ea_runtime.generation.known_frames import nothing_given
from ea_runtime.models.clip_config import WIDTH as CLIP_WIDTH
from ea_runtime.models.geometry import latent_channels, takes_picture
from ea_runtime.models.layout import resolve_folder

#: the probe: one picture and a short video, in latent frames, and the size of a latent frame
_PROBE_FRAMES = {"picture": 1, "video": 3}
_PROBE_SIZE, _PROBE_TOKENS, _PROBE_TIMESTEP = 16, 8, 500


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One matched layer at weight 1. norm: of its change (Frobenius); relative: over the weight's norm."""

    part: str
    path: str
    block: str
    rank: int
    scale: float
    norm: float
    base_norm: float

    @property
    def relative(self) -> float:
        return self.norm / self.base_norm if self.base_norm else math.inf


@dataclass(frozen=True, slots=True)
class BlockReport:
    """The layers of one block together: root of the sum of squares of their norms."""

    part: str
    block: str
    num_layers: int
    norm: float
    relative: float


@dataclass(frozen=True, slots=True)
class LoraReport:
    """The effect of a LoRA on a model.

    ignored, left_out: names of layers. probe: relative change of the outputs at `weight`: the denoiser's for a
    "picture" and a "video" of seeded noise, the text encoder's for a "text" of seeded tokens; networks of an
    unknown kind, or without layers in the file, are skipped. notes: lines for the user, for example that it was
    made for other weights.
    """

    path: str
    summary: str
    layers: tuple[LayerReport, ...]
    blocks: tuple[BlockReport, ...]
    ignored: tuple[str, ...]
    left_out: tuple[str, ...]
    weight: float
    probe: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def does_something(self) -> bool:
        return any(layer.norm > 0 for layer in self.layers)

    def as_dict(self) -> dict[str, Any]:
        layers = [asdict(layer) | {"relative": layer.relative} for layer in self.layers]
        return asdict(self) | {"layers": layers, "does_something": self.does_something}


def verify_lora(
    model: Any,
    path: str | os.PathLike[str] | LoraFile,
    weight: float = 1.0,
    *,
    parts: Collection[str] = PARTS,
    exclude: Sequence[str] = (),
    probe: bool = True,
) -> LoraReport:
    """Match a LoRA with a model and measure its changes. The model is as before afterwards.

    model: a pipeline, a torch module, or a model folder or name, whose denoiser (and text encoder, if the
    file has layers for one) is loaded. probe: run the networks on noise without and with the LoRA at `weight`.

    Raises UserError as `load_lora` does.
    """
    file = as_file(path)
    name = model if isinstance(model, (str, os.PathLike)) else getattr(model, "model", None)
    if name is model:
        wanted = {"denoiser", *(part for part in parts if file.of_part("text") and part == "text")}
        networks = load_networks(resolve_folder(model), wanted, with_weights=True)
    else:
        networks = networks_of(model)
    matching = match_lora(file, networks, parts, exclude)
    layers = tuple(_report(match) for match in matching.matches)
    base, names = base_note(file.metadata, name), matching.names()
    return LoraReport(
        path=str(file.path),
        summary=matching.summary(),
        layers=layers,
        blocks=tuple(_blocks(layers)),
        ignored=names["ignored"],
        left_out=names["left_out"],
        weight=weight,
        probe=_probe(networks, matching, weight, exclude) if probe else {},
        notes=(*file.notes, *([base] if base else [])),
    )


def lora_info(path: str | os.PathLike[str] | LoraFile) -> dict[str, Any]:
    """A file's contents and metadata, checked as for loading; needs no model. Raises UserError as `read_lora` does.

    `hash_matches`: True if the tensors still have its `sshs_model_hash`; None without one.
    """
    file = as_file(path)
    card = Card.from_metadata(file.metadata)
    return {
        "path": str(file.path),
        "bytes": sum(one.stat().st_size for one in file.files),
        "layout": file.layout,
        "layers": dict(count_parts(file.layers)),
        "ranks": sorted({layer.rank for layer in file.layers}),
        "alphas": sorted({layer.scale * layer.rank for layer in file.layers}),
        "dtypes": sorted({str(layer.down.dtype)[6:] for layer in file.layers}),
        "parameters": sum(layer.down.numel() + layer.up.numel() for layer in file.layers),
        "is_trained": any(bool(layer.up.any()) for layer in file.layers),
        "trigger_words": list(card.trigger_words),
        "base_model": card.base_model,
        "base_hash": card.base_hash,
        "training": dict(card.training),
        "notes": list(file.notes),
        "hash_matches": _hash_matches(file),
        "metadata": dict(sorted(file.metadata.items())),
    }


def _hash_matches(file: LoraFile) -> bool | None:
    stored = file.metadata.get("sshs_model_hash")
    if stored is None or len(file.files) != 1:
        return None
    return stored == content_hashes(file.files[0].read_bytes())["sshs_model_hash"]


def delta_norm(layer: Layer) -> float:
    """Frobenius norm of the layer's change at weight 1, without forming the (outputs, inputs) product."""
    down, up = (matrix.double() for matrix in layer.matrices())
    # |U D|^2 = trace(D^T U^T U D) = sum of (U^T U) * (D D^T), both (R, R)
    square = ((up.T @ up) * (down @ down.T)).sum()
    return layer.scale * math.sqrt(max(float(square), 0.0))


def block_of(path: str) -> str:
    """A module's block: `transformer_blocks.3`, `transformer_blocks.3 motion`, or its path's first name."""
    found = re.match(r"(?:[A-Za-z]\w*\.)+?\d+(?=\.|$)", path)
    block = found.group() if found else path.split(".")[0]
    return f"{block} motion" if ".attn_temporal." in path else block


def _report(match: Match) -> LayerReport:
    layer = match.layer
    return LayerReport(
        part=layer.part,
        path=match.path,
        block=block_of(match.path),
        rank=layer.rank,
        scale=layer.scale,
        norm=delta_norm(layer),
        base_norm=float(match.weight.detach().float().norm()),
    )


def _blocks(layers: Sequence[LayerReport]) -> list[BlockReport]:
    groups: dict[tuple[str, str], list[LayerReport]] = {}
    for layer in layers:
        groups.setdefault((layer.part, layer.block), []).append(layer)
    found = []
    for (part, block), members in groups.items():
        norm = math.hypot(*(layer.norm for layer in members))
        base = math.hypot(*(layer.base_norm for layer in members))
        found.append(BlockReport(part, block, len(members), norm, norm / base if base else math.inf))
    order: dict[str, int] = {part: number for number, part in enumerate(PARTS)}
    return sorted(found, key=lambda item: (order[item.part], _natural(item.block)))


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts block 2 before block 10."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", text)]


def _probe(
    networks: Mapping[Part, nn.Module | None], matching: Matching, weight: float, exclude: Sequence[str]
) -> dict[str, float]:
    """Relative change of the outputs, ||with - without|| / ||without||, on fixed inputs of the matched networks."""
    moved: dict[str, float] = {}
    outputs = {"denoiser": _denoiser_outputs, "text": _text_outputs}
    for part in PARTS:
        network = networks[part]
        if network is None or not any(match.layer.part == part for match in matching.matches):
            continue
        with torch.inference_mode():
            before = outputs[part](network)
            pipe = SimpleNamespace(**networks)
            with load_lora(pipe, matching.file, weight, parts=(part,), exclude=exclude):
                after = outputs[part](network)
        moved |= {name: float((after[name] - old).norm() / old.norm()) for name, old in before.items()}
    return moved


def _denoiser_outputs(denoiser: nn.Module) -> dict[str, Tensor]:
    """On seeded noise and seeded text."""
    config = getattr(denoiser, "config", None)
    channels, width = latent_channels(config), getattr(config, "caption_channels", None)
    if not isinstance(channels, int) or not isinstance(width, int):
        return {}
    parameter = next(denoiser.parameters())
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, frames in _PROBE_FRAMES.items():
        latents = torch.randn(1, channels, frames, _PROBE_SIZE, _PROBE_SIZE, generator=generator)
        text = torch.randn(1, _PROBE_TOKENS, width, generator=generator).to(parameter)
        pixels = 8 * _PROBE_SIZE
        known = nothing_given(config, latents.to(parameter))
        if takes_picture(config):  # V3: a picture's tokens, so that their projection counts
            picture = torch.randn(1, CLIP_WIDTH, generator=generator)
            known["clip_encoder_hidden_states"] = picture.to(parameter)
        found[name] = denoiser(
            latents.to(parameter),
            timestep=torch.full((1,), _PROBE_TIMESTEP, device=parameter.device),
            encoder_hidden_states=text,
            encoder_attention_mask=torch.ones(1, _PROBE_TOKENS, device=parameter.device),
            added_cond_kwargs=size_conditions(config, 1, pixels, pixels, text),
            **known,
        ).sample.double()
    return found


def _text_outputs(encoder: nn.Module) -> dict[str, Tensor]:
    """On seeded tokens."""
    size = getattr(getattr(encoder, "config", None), "vocab_size", None)
    if not isinstance(size, int):
        return {}
    ids = torch.randint(size, (1, _PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    ids = ids.to(next(encoder.parameters()).device)
    return {"text": encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.double()}
