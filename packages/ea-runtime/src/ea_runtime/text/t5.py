"""T5's encoder (Raffel et al. 2020, arXiv 1910.10683; gated: Shazeer 2020, arXiv 2002.05202), for inference.

Names, shapes and bits are those of transformers' T5EncoderModel, whose module takes longer to import than torch: it
pulls torch._dynamo, sympy and torch.distributed.tensor. There is no dropout, so train transformers' own.

Shape legend: B texts, L tokens, D width, H heads, K width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ea_runtime.machine.casting import dtype_of
from ea_runtime.machine.computing import compute_device, compute_dtype

#: gives a layer of a network its weight in another form, by the tensor's name; True if it did
PutLayer = Callable[[nn.Module, str, Tensor], bool]


def _gelu_new(x: Tensor) -> Tensor:
    """GELU by tanh, in transformers' order: F.gelu(approximate="tanh") rounds differently."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "gelu_new": _gelu_new}


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    from transformers.activations import ACT2FN  # no published T5 comes here

    return ACT2FN[name]


def _embedding(count: int, width: int) -> nn.Embedding:
    """Without random values: on meta, drawing them imports torch._dynamo."""
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


class LayerNorm(nn.Module):
    """Root mean square norm in float32, scaled: (B, L, D) -> (B, L, D)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.d_model))
        self.eps = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        half = self.weight.dtype in (torch.float16, torch.bfloat16)
        return self.weight * (x.to(self.weight.dtype) if half else x)


class T5Attention(nn.Module):
    """Self-attention without scaling; the first block's has the biases of distances, for all."""

    def __init__(self, config: Any, has_bias: bool) -> None:
        super().__init__()
        self.config = config
        inner = config.num_heads * config.d_kv
        self.q, self.k, self.v = (nn.Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = _embedding(config.relative_attention_num_buckets, config.num_heads)

    def bias(self, length: int, device: torch.device) -> Tensor:
        """(1, H, L, L): small distances have a bucket each, larger ones share buckets by their logarithm."""
        buckets = self.config.relative_attention_num_buckets // 2
        exact = buckets // 2
        positions = torch.arange(length, device=device)
        distances = positions[None, :] - positions[:, None]
        far = distances.abs()
        large = torch.log(far.float() / exact) / math.log(self.config.relative_attention_max_distance / exact)
        large = (exact + (large * (buckets - exact)).long()).clamp(max=buckets - 1)
        index = (distances > 0).long() * buckets + torch.where(far < exact, far, large)
        return self.relative_attention_bias(index).permute(2, 0, 1)[None]

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            rearrange(f(x), "b l (h k) -> b h l k", k=self.config.d_kv) for f in (self.q, self.k, self.v)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(rearrange(out, "b h l k -> b l (h k)"))


class T5FeedForward(nn.Module):
    """Two layers, or three with a gate: (B, L, D) -> (B, L, D). `wo` may be float32 in a float16 network."""

    wi: nn.Linear
    wi_0: nn.Linear
    wi_1: nn.Linear

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.act = _activation(config.dense_act_fn)
        for name in ("wi_0", "wi_1") if config.is_gated_act else ("wi",):
            setattr(self, name, nn.Linear(config.d_model, config.d_ff, bias=False))
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.is_gated = config.is_gated_act

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.wi_0(x)) * self.wi_1(x) if self.is_gated else self.act(self.wi(x))
        # not to the format that `wo` is stored in: that may be narrower than the one that it computes in
        return self.wo(x.float() if self.wo.weight.dtype == torch.float32 else x)


class Residual(nn.Module):
    """A norm, a network under `name`, and the sum with what came in; float16 is held within its range."""

    def __init__(self, config: Any, name: str, network: nn.Module) -> None:
        super().__init__()
        self.add_module(name, network)
        self.layer_norm = LayerNorm(config)
        self.name = name

    def forward(self, x: Tensor, *bias: Tensor) -> Tensor:
        x = x + getattr(self, self.name)(self.layer_norm(x), *bias)
        if x.dtype == torch.float16:
            most = torch.finfo(x.dtype).max
            most = torch.where(x.isinf().any(), most - 1000, most)
            x = torch.clamp(x, min=-most, max=most)
        return x


class Block(nn.Module):
    """Attention, then the feed-forward network."""

    def __init__(self, config: Any, has_bias: bool) -> None:
        super().__init__()
        attention = Residual(config, "SelfAttention", T5Attention(config, has_bias))
        self.layer = nn.ModuleList([attention, Residual(config, "DenseReluDense", T5FeedForward(config))])

    def forward(self, x: Tensor, bias: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, L, D) -> (B, L, D), and the biases (B or 1, H, L, L) for the next block.

        bias: None in the first block, which makes it: here, where hooks have put its table in place. mask: (B, L).
        """
        if bias is None:
            attention: Any = getattr(self.layer[0], "SelfAttention")  # noqa: B009
            bias = attention.bias(x.shape[1], x.device)
            if mask is not None:
                bias = torch.where(mask.bool()[:, None, None, :], bias, torch.finfo(bias.dtype).min)
            bias = bias.contiguous()
        return self.layer[1](self.layer[0](x, bias)), bias


class Stack(nn.Module):
    """The blocks and what is around them: ids (B, L) and mask (B, L) or None -> (B, L, D)."""

    def __init__(self, config: Any, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embed_tokens = embedding
        self.block: Any = nn.ModuleList(Block(config, i == 0) for i in range(config.num_layers))
        self.final_layer_norm = LayerNorm(config)

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        x = self.embed_tokens(ids)
        bias = None
        for block in self.block:
            x, bias = block(x, bias, mask)
        return self.final_layer_norm(x)


class T5Encoder(nn.Module):
    """The whole encoder. config: transformers' T5Config.

    Called with ids (B, L) and a mask (B, L) or None (all tokens count), both int64; `.last_hidden_state` is (B, L, D).
    """

    _keep_in_fp32_modules: ClassVar[list[str]] = ["wo"]
    _group_offload_block_modules: ClassVar[list[str]] = ["encoder"]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.shared = _embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config, self.shared)

    @property
    def device(self) -> torch.device:
        return compute_device(self)

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.encoder(input_ids, attention_mask))

    def save_pretrained(self, folder: str, **settings: Any) -> None:
        """Writes it as transformers does, with its settings."""
        from transformers import T5EncoderModel

        with torch.device("meta"):
            model = T5EncoderModel(self.config)
        model.load_state_dict(self.state_dict(), assign=True)
        model.save_pretrained(folder, **settings)


def load_t5(
    config: Any, files: Iterable[Path], dtype: torch.dtype, put_layer: PutLayer | None = None
) -> tuple[T5Encoder, list[str]]:
    """The encoder with the tensors of `files`, in `dtype`, and the names of the tensors that they lack.

    With float16, `wo` stays in float32, as in transformers: it overflows. Raises what safetensors and torch raise for
    damaged files and other shapes.
    """
    with torch.device("meta"):
        model = T5Encoder(config)
    known = set(model.state_dict())
    tied = ("shared.weight", "encoder.embed_tokens.weight")
    found: dict[str, Tensor] = {}
    put: set[str] = set()
    for file in files:
        for name, tensor in load_file(file).items():
            if name in known:
                weight = tensor.to(dtype_of(model, name, dtype))
                if put_layer is not None and put_layer(model, name, weight):
                    put.add(name)
                else:
                    found[name] = weight
    for one, other in (tied, tied[::-1]):
        if other in found:
            found.setdefault(one, found[other])
    missing = sorted(known - found.keys() - put)
    if not missing:
        model.load_state_dict(found, assign=True, strict=not put)
        model.encoder.embed_tokens = model.shared  # assigned twice: one embedding again
    return model, missing
