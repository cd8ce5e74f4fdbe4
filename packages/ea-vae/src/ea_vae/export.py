"""The video VAE as graphs for export, and a VAE that runs such graphs.

A graph is one pass over one piece (chunking.py): in MagViT mode 3 latent frames -> 9 frames, a picture 1 -> 1; in
slice mode also the pieces that look at their neighbours. The encoder gives moments: noise is drawn outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.export.parts import Graph, Input, Run, Size
from ea_vae.network.chunking import Piece, count_frames, count_latents, decode_pieces, encode_pieces
from ea_vae.network.config import VaeConfig
from ea_vae.network.conv import Mode
from ea_vae.network.streaming import VideoCoder

parts = ("vae-decoder", "vae-encoder")


class DecodePass(nn.Module):
    """Latents (1, 4, t, h, w) -> frames (1, 3, T, 8 h, 8 w) of one piece."""

    def __init__(self, vae: Any, mode: Mode, num_before: int, num_after: int) -> None:
        super().__init__()
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder
        self.how = (mode, num_before, num_after)

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents), *self.how)


class EncodePass(nn.Module):
    """Frames (1, 3, T, H, W) -> moments (1, 8, t, H / 8, W / 8) of one piece."""

    def __init__(self, vae: Any, mode: Mode) -> None:
        super().__init__()
        self.encoder = vae.encoder
        self.quant_conv = vae.quant_conv
        self.mode: Mode = mode

    def forward(self, frames: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(frames, self.mode))


def for_refit(network: Any) -> None:
    """Makes later graphs take every weight as the state dict has it: no sums of taps."""
    network.set_rewrites("plain")


def graphs(part: str, network: Any, size: Size) -> list[Graph]:
    """One graph for each kind of piece that decoding (or encoding) a video of this size meets, smoothing included."""
    decoding, encoding = pieces_of(network.settings, size.num_frames)
    if part == "vae-decoder":
        found = [_decoder_graph(network, piece, size) for piece in decoding]
    else:
        found = [_encoder_graph(network, piece, size) for piece in encoding]
    return list({graph.name: graph for graph in found}.values())


def _decoder_graph(network: Any, piece: Piece, size: Size) -> Graph:
    around = (piece.num_before, piece.num_after)
    count = piece.stop - piece.start + sum(around)
    shape = (1, network.settings.latent_channels, count, size.latent_height, size.latent_width)
    name = decoder_name(piece.mode, count, *around)
    module = DecodePass(network, piece.mode, *around)
    blocks = ("decoder.mid_block", *_paths("decoder.up_blocks", network.decoder.up_blocks))
    return Graph(name, "vae-decoder", module, {"latents": Input(shape)}, ("frames",), blocks)


def _encoder_graph(network: Any, piece: Piece, size: Size) -> Graph:
    config, count = network.settings, piece.stop - piece.start
    height, width = (edge * config.spatial_ratio for edge in (size.latent_height, size.latent_width))
    shape = (1, config.in_channels, count, height, width)
    name = encoder_name(piece.mode, count)
    module = EncodePass(network, piece.mode)
    blocks = (*_paths("encoder.down_blocks", network.encoder.down_blocks), "encoder.mid_block")

    def draw(generator: torch.Generator) -> dict[str, Tensor]:
        return {"frames": torch.rand(shape, generator=generator) * 2 - 1}

    return Graph(name, "vae-encoder", module, {"frames": Input(shape)}, ("moments",), blocks, draw)


def _paths(name: str, modules: nn.ModuleList) -> list[str]:
    return [f"{name}.{i}" for i in range(len(modules))]


def pieces_of(config: VaeConfig, num_frames: int) -> tuple[list[Piece], list[Piece]]:
    """The passes that decode a video of `num_frames` frames, with and without smoothing, and those that encode it."""
    encoding = encode_pieces(num_frames, config)
    decoding = _decoding_of(encoding, config)
    total = count_frames(decoding, config)
    if total > config.mini_batch_encoder:
        again = encode_pieces(total - config.mini_batch_encoder, config)
        return decoding + _decoding_of(again, config), encoding + again
    return decoding, encoding


def _decoding_of(encoding: list[Piece], config: VaeConfig) -> list[Piece]:
    first_alone = encoding[0].mode == "single"
    return decode_pieces(count_latents(encoding, config), config, first_alone=first_alone)


def decoder_name(mode: str, num_latents: int, num_before: int, num_after: int) -> str:
    """A decoder graph's name, after its piece."""
    around = f"-{num_before}-{num_after}" if num_before or num_after else ""
    return f"vae-decoder-{mode}-{num_latents}{around}"


def encoder_name(mode: str, num_frames: int) -> str:
    """An encoder graph's name, after its piece."""
    return f"vae-encoder-{mode}-{num_frames}"


def attach(network: nn.Module, runs: Mapping[str, Run]) -> ExportedVae:
    """The VAE of a pipeline, run by graphs."""
    return ExportedVae(network, runs)


class ExportedVae(VideoCoder):
    """Codes videos as `AutoencoderKLMagvit` does, each piece by a graph of the bundle."""

    def __init__(self, network: Any, runs: Mapping[str, Run]) -> None:
        self.config = network.config
        self.settings: VaeConfig = network.settings
        self.runs = dict(runs)

    def decode_piece(self, z: Tensor, mode: Mode, num_before: int = 0, num_after: int = 0) -> Tensor:
        """See `AutoencoderKLMagvit.decode_piece`."""
        name = decoder_name(mode, z.shape[2], num_before, num_after)
        return self._run("vae-decoder", name, "latents", "frames", z)

    def encode_piece(self, x: Tensor, mode: Mode) -> Tensor:
        """See `AutoencoderKLMagvit.encode_piece`."""
        return self._run("vae-encoder", encoder_name(mode, x.shape[2]), "frames", "moments", x)

    def _run(self, part: str, name: str, source: str, target: str, x: Tensor) -> Tensor:
        run = self.runs.get(part)
        if run is None:
            hint = "; or decode with smooth=False (--no-smooth)" if part == "vae-encoder" else ""
            raise UserError(f"the bundle has no {part}; export it with `--part {part}`{hint}")
        if name not in run.graphs or run.graphs[name][source][3:] != tuple(x.shape[3:]):
            raise UserError(
                f"the bundle's {part} was made for {run.size.words()}, got a piece {name} of {x.shape[4]}x{x.shape[3]};"
                " export a bundle of this size"
            )
        return torch.cat([run(name, {source: one[None]})[target] for one in x])
