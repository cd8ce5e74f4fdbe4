"""How the video VAE falls into graphs for export, and how such graphs stand in for it.

A graph is one pass over one piece (chunking.py): in MagViT mode 3 latent frames -> 9 frames, a picture 1 -> 1; in
slice mode also the pieces that look at their neighbours. The encoder gives moments: noise is drawn outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.export.parts import Graph, Input, Run, Size
from ea_vae.network import streaming
from ea_vae.network.chunking import Piece, count_frames, count_latents, decode_pieces, encode_pieces
from ea_vae.network.config import VaeConfig
from ea_vae.network.conv import Mode
from ea_vae.network.posterior import Generators
from ea_vae.network.spread import Job, run_here

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


def build(build_network: Callable[[], nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """The VAE's class knows how."""
    return build_network()


def for_refit(network: Any) -> None:
    """Graphs made after this take every weight as the state dict has it: no sums of taps."""
    network.set_rewrites("plain")


def graphs(part: str, network: Any, size: Size) -> list[Graph]:
    """One graph for each kind of piece that decoding (or encoding) a video of this size meets, smoothing included."""
    decoding, encoding = pieces_of(network.settings, size.num_frames)
    height, width = size.latent_height, size.latent_width
    found: dict[str, Graph] = {}
    if part == "vae-decoder":
        for piece in decoding:
            count = piece.stop - piece.start + piece.num_before + piece.num_after
            shape = (1, network.settings.latent_channels, count, height, width)
            name = decoder_name(piece.mode, count, piece.num_before, piece.num_after)
            module = DecodePass(network, piece.mode, piece.num_before, piece.num_after)
            blocks = (
                "decoder.mid_block",
                *(f"decoder.up_blocks.{i}" for i in range(len(network.decoder.up_blocks))),
            )
            found[name] = Graph(name, part, module, {"latents": Input(shape)}, ("frames",), blocks)
        return list(found.values())
    for piece in encoding:
        count = piece.stop - piece.start
        name = encoder_name(piece.mode, count)
        ratio = network.settings.spatial_ratio
        shape = (1, network.settings.in_channels, count, height * ratio, width * ratio)
        blocks = (
            *(f"encoder.down_blocks.{i}" for i in range(len(network.encoder.down_blocks))),
            "encoder.mid_block",
        )
        found[name] = Graph(
            name,
            part,
            EncodePass(network, piece.mode),
            {"frames": Input(shape)},
            ("moments",),
            blocks,
            _Frames(shape),
        )
    return list(found.values())


class _Frames:
    """Draws frames in -1..1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __call__(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"frames": torch.rand(self.shape, generator=generator) * 2 - 1}


def pieces_of(config: VaeConfig, num_frames: int) -> tuple[list[Piece], list[Piece]]:
    """The passes that decode a video of `num_frames` frames, with and without smoothing, and those that encode it."""
    encoding = encode_pieces(num_frames, config)
    first_alone = encoding[0].mode == "single"
    decoding = decode_pieces(count_latents(encoding, config), config, first_alone=first_alone)
    total = count_frames(decoding, config)
    if total > config.mini_batch_encoder:
        again = encode_pieces(total - config.mini_batch_encoder, config)
        alone = again[0].mode == "single"
        decoding = [*decoding, *decode_pieces(count_latents(again, config), config, first_alone=alone)]
        encoding = [*encoding, *again]
    return decoding, encoding


def decoder_name(mode: str, num_latents: int, num_before: int, num_after: int) -> str:
    """The graph's name: what its piece is."""
    around = f"-{num_before}-{num_after}" if num_before or num_after else ""
    return f"vae-decoder-{mode}-{num_latents}{around}"


def encoder_name(mode: str, num_frames: int) -> str:
    """The graph's name: what its piece is."""
    return f"vae-encoder-{mode}-{num_frames}"


def attach(network: nn.Module, runs: Mapping[str, Run]) -> ExportedVae:
    """The VAE of a pipeline, run by graphs."""
    return ExportedVae(network, runs)


class ExportedVae:
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

    def run_jobs(self, jobs: Iterator[Job]) -> Iterator[Tensor]:
        """See `AutoencoderKLMagvit.run_jobs`; always in this process."""
        return run_here(jobs)

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

    def encode_video(
        self, frames: Tensor, generator: Generators = None, sample: bool | None = None
    ) -> Tensor:
        """See `AutoencoderKLMagvit.encode_video`."""
        return streaming.encode_video(self, frames, generator, sample)  # pyright: ignore[reportArgumentType]

    def decode_video(
        self,
        latents: Tensor,
        smooth: bool = True,
        generator: Generators = None,
        num_frames: int | None = None,
    ) -> Tensor:
        """See `AutoencoderKLMagvit.decode_video`."""
        return torch.cat(list(self.iter_decode(latents, smooth, generator, num_frames)), dim=2)

    def iter_decode(
        self,
        latents: Tensor,
        smooth: bool = True,
        generator: Generators = None,
        num_frames: int | None = None,
    ) -> Iterator[Tensor]:
        """See `AutoencoderKLMagvit.iter_decode`."""
        return streaming.iter_decode(self, latents, smooth, generator, num_frames)  # pyright: ignore[reportArgumentType]
