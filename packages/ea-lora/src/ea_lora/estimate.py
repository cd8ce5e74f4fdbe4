"""The device memory of training a LoRA, part by part, predicted from shapes alone.

Nothing is computed: the adapted denoiser is run on torch's meta device, and all that autograd keeps for the backward
pass is added up, each storage once, block by block. With gradient checkpointing a block keeps only its input, and
one block at a time is kept in full. Attention is counted as fused kernels keep it (queries, keys, values, output and
one number per row and head), never with scores. The test of this file compares these counts with measured allocations.

Shape legend: C latent channels, t latent frames, h w latents; a frame of 512 x 512 pixels has 32 x 32 = 1,024 tokens,
of 768 x 768 2,304.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ea_lora.adapters import ALPHA, MAX_RANK, MOTION_PATTERN, RANK, Adapters, adapt, base_tensors
from ea_lora.offload import find_blocks
from ea_runtime.errors import UserError
from ea_runtime.generation.denoise import size_conditions
from ea_runtime.generation.known_frames import nothing_given
from ea_runtime.models.geometry import latent_channels
from ea_runtime.models.memory.kept import kept_for_backward

TEXT_TOKENS = 120  # of V2's prompts
CARD_BYTES = 24 * 10**9
#: gradients of the widest tensors that live at once while a block is computed backwards, in numbers of that tensor;
#: measured on the small model of the test
LIVE_GRADIENTS = 3
#: blocks of frozen weights on the device at a time with offloading: the one computed and the one on its way
BLOCKS_ON_DEVICE = 2


@dataclass(slots=True)
class Kept:
    """Bytes that autograd keeps of one forward pass. blocks: of each block, its input not counted; inputs: of each
    block's input; outside: everything else; largest: the largest single tensor."""

    blocks: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outside: int = 0
    largest: int = 0

    def activations(self, checkpointing: bool) -> int:
        if not checkpointing:
            return self.outside + sum(self.blocks) + sum(self.inputs)
        return self.outside + sum(self.inputs) + max(self.blocks, default=0)


def count_kept(network: nn.Module, call: Callable[[], Any]) -> Kept:
    """Runs `call` (a forward pass of `network`, weights on any device) and counts what autograd keeps."""
    blocks = find_blocks(network)
    known = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}
    found = Kept([0] * len(blocks), [0] * len(blocks))
    current = -1

    def count(number: int, tensor: Tensor) -> None:
        if number in known:
            return
        size = tensor.untyped_storage().nbytes()
        found.largest = max(found.largest, size)
        if current < 0:
            found.outside += size
        else:
            found.blocks[current] += size

    def enter(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal current
            current = -1
            for tensor in (*args, *kwargs.values()):
                # what all blocks get (modulation, text) is counted with the first
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    storage = tensor.untyped_storage()
                    if storage._cdata not in kept and storage._cdata not in known:
                        kept[storage._cdata] = tensor
                        found.inputs[number] += storage.nbytes()
            current = number

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal current
        current = -1

    handles = [block.register_forward_pre_hook(enter(i), with_kwargs=True) for i, block in enumerate(blocks)]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        with kept_for_backward(count) as kept:
            result = call()
        del result
    finally:
        for handle in handles:
            handle.remove()
    return found


def predict(
    network: nn.Module,
    adapters: Mapping[str, Adapters],
    shape: tuple[int, int, int],
    *,
    dtype: torch.dtype = torch.bfloat16,
    batch: int = 1,
    checkpointing: bool = True,
    offload: int = 0,
    average: bool = True,
) -> dict[str, int]:
    """Bytes on the device by part; the last entry is their sum, the peak of a step.

    network: an adapted denoiser on the meta device, of `config.in_channels` and `config.caption_channels`. shape:
    latents (t, h, w) of a sample. offload: frozen blocks on the CPU. The VAE and the text encoder are not counted:
    `low_vram` sends them away, and their peak comes before training starts.
    """
    frozen = _frozen_bytes(network, dtype)
    blocks = find_blocks(network)
    if offload:
        away = sorted(_frozen_bytes(block, dtype) for block in blocks[len(blocks) - offload :])
        frozen -= sum(away) - sum(away[-BLOCKS_ON_DEVICE:])
    trained = sum(p.numel() for module in adapters.values() for p in module.parameters())
    kept = _kept(network, shape, dtype, batch)
    parts = {
        "frozen weights": frozen,
        "LoRA weights (fp32)": 4 * trained,
        "LoRA gradients (fp32)": 4 * trained,
        "Adam moments (fp32)": 8 * trained,
        "LoRA average (fp32)": 4 * trained if average else 0,
        "LoRA copy to compute with": 0 if dtype == torch.float32 else dtype.itemsize * trained,
        "activations": kept.activations(checkpointing),
        "gradients of activations": LIVE_GRADIENTS * kept.largest,
    }
    return {**parts, "peak": sum(parts.values())}


def _frozen_bytes(network: nn.Module, dtype: torch.dtype) -> int:
    return sum(tensor.numel() for tensor in base_tensors(network)) * dtype.itemsize


def _kept(network: nn.Module, shape: tuple[int, int, int], dtype: torch.dtype, batch: int) -> Kept:
    from torch.func import functional_call

    config: Any = getattr(network, "config", None)
    channels, width = latent_channels(config), getattr(config, "caption_channels", None)
    if not isinstance(channels, int) or not isinstance(width, int):
        raise UserError(
            f"memory cannot be predicted for a {type(network).__name__}: its config has no channels"
        )
    where = {"device": "meta", "dtype": dtype}
    text = torch.empty(batch, TEXT_TOKENS, width, **where)
    tensors = {name: p.to(dtype) if p.is_floating_point() else p for name, p in network.named_parameters()}
    tensors |= {name: b.to(dtype) if b.is_floating_point() else b for name, b in network.named_buffers()}
    arguments = {
        "timestep": torch.zeros(batch, device="meta"),
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS, device="meta"),
        "added_cond_kwargs": size_conditions(config, batch, 8 * shape[1], 8 * shape[2], text),
    }
    latents = torch.empty(batch, channels, *shape, **where)
    arguments |= nothing_given(config, latents)
    model: Any = network
    checkpoints = getattr(model, "gradient_checkpointing", False)
    model.gradient_checkpointing = False  # counted block by block instead
    try:
        with torch.device("meta"), _fused_attention():
            return count_kept(network, lambda: functional_call(network, tensors, (latents,), arguments))
    finally:
        model.gradient_checkpointing = checkpoints


class _Fused(torch.autograd.Function):
    """Attention as a fused kernel keeps it."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query, key, value = inputs
        output = torch.empty_like(query[..., :1].expand(*query.shape[:-1], value.shape[-1]))
        rows = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, rows)
        return output


@contextmanager
def _fused_attention() -> Iterator[None]:
    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        result = _Fused.apply(query, key, value)
        assert isinstance(result, Tensor)
        return result

    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def adapted_shapes(folder: Path, *, rank: int = RANK, motion: bool = True) -> tuple[nn.Module, Adapters]:
    """The denoiser of a model folder on the meta device, adapted; its config.json is enough.

    Raises UserError, and MissingPackageError if no installed package has its class.
    """
    from ea_runtime.models.layout import PARTS as FOLDERS
    from ea_runtime.models.layout import class_name
    from ea_runtime.models.loading import find_record, read_part_config, unknown_keys
    from ea_runtime.plugins.host import get_host

    spec = FOLDERS["denoiser"]
    config = read_part_config(folder, spec)
    cls: Any = find_record(get_host(), spec, class_name(config, spec)).build()
    stray = unknown_keys(cls, config)
    known = {key: value for key, value in config.items() if key not in stray and not key.startswith("_")}
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = cls.from_config(known)
        return network, adapt(network, rank=rank, alpha=ALPHA, exclude=() if motion else (MOTION_PATTERN,))


def memory_table(
    folder: Path,
    sizes: Sequence[int],
    frames: Sequence[int],
    *,
    dtype: str = "bf16",
    rank: int = RANK,
    motion: bool = True,
    offload: int = 0,
    checkpointing: bool = True,
) -> Any:
    """A rich table: parts down, one column for each size and number of frames, in GB. Raises UserError."""
    from rich.table import Table

    from ea_runtime.files.safe import inside, is_file, quote, read_json
    from ea_runtime.models.geometry import Geometry, check_int
    from ea_runtime.training.update.precision import DTYPES

    if dtype not in DTYPES:
        raise UserError(f"`dtype` must be one of {', '.join(DTYPES)}, got {quote(dtype)}")
    check_int("rank", rank, 1, MAX_RANK)
    network, adapters = adapted_shapes(folder, rank=rank, motion=motion)
    check_int("offload", offload, 0, len(find_blocks(network)))
    vae = read_json(folder, "vae/config.json") if is_file(inside(folder, "vae/config.json")) else None
    geometry = Geometry.from_configs(vae, getattr(network, "config", None))
    settings: dict[str, Any] = {"dtype": DTYPES[dtype], "offload": offload, "checkpointing": checkpointing}
    columns: dict[str, dict[str, int]] = {}
    for size in sizes:
        for count in frames:
            edges = geometry.check_size(size, size)
            _, _, t, h, w = geometry.latent_shape(1, geometry.check_num_frames(count), *edges)
            what = "picture" if count == 1 else f"{count} frames"
            columns[f"{size}, {what}"] = predict(network, {"lora": adapters}, (t, h, w), **settings)
    table = Table(box=None, pad_edge=False)
    table.add_column("GB", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    for part in next(iter(columns.values())):
        cells = [f"{parts[part] / 1e9:.2f}" for parts in columns.values()]
        table.add_row(part, *cells, style="bold" if part == "peak" else None)
    table.add_row(
        "fits 24 GB", *("yes" if parts["peak"] <= CARD_BYTES else "no" for parts in columns.values())
    )
    return table


def describe_memory(recipe: Any) -> dict[str, Any]:
    """For `--dry-run`: the parts of a run's largest sample as text, what a 24 GB card has left, and under "memory" the
    activations in bytes, for the loop's own table. Empty if the recipe has weights."""
    from ea_runtime.training.update.precision import DTYPES

    base, context, memory = recipe.base, recipe.context, recipe.options.memory
    if not next(recipe.network.parameters()).is_meta:
        return {}
    buckets = {bucket for phase in recipe.phases() for bucket in phase.buckets if bucket is not None}
    largest: Any = max(buckets, key=lambda b: base.source.num_latents(b.num_frames) * b.height * b.width)
    ratio = base.source.spatial_ratio
    shape = (base.source.num_latents(largest.num_frames), largest.height // ratio, largest.width // ratio)
    settings = {"checkpointing": context.gradient_checkpointing, "offload": memory.offload_blocks}
    try:
        parts = predict(recipe.network, recipe.adapters, shape, dtype=DTYPES[context.dtype], **settings)
    except UserError as error:
        return {"not predicted": str(error)}
    told = {name: f"{size / 1e9:.3f} GB" for name, size in parts.items()}
    room = CARD_BYTES - parts["peak"]
    told["of a 24 GB card"] = (
        f"{room / 1e9:.1f} GB stay free" if room >= 0 else f"{-room / 1e9:.1f} GB are missing"
    )
    if not memory.low_vram and base.source.options.cache == "off":
        told["besides"] = "the VAE and the text encoder; memory.low_vram removes them"
    return {
        "device, one sample a step": told,
        "memory": {"activations of one sample": parts["activations"]},
    }
