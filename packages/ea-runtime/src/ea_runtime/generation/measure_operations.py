"""Rates of single operations, for plans (measure_machine.py)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ea_runtime.machine.device import choose_device, choose_dtype

#: seconds that an operation is repeated
_SECONDS = 0.025
#: rows of a linear layer: so few that its weights show, and many
_FEW, _MANY = 64, 1536
#: sizes of two blocks, in elements of float32, that are mapped anew
_BLOCKS = 2 << 20, 16 << 20


class Operations:
    """Operations of which each kind of work is made, ready to be timed.

    layer: the class of a denoiser's linear layers. timers: name -> the seconds of one call.
    """

    def __init__(self, device: str, layer: Any) -> None:
        self.device = device
        scale = 1 if device == "cpu" else 8
        where: dict[str, Any] = {"device": choose_device(device)}
        where["dtype"] = choose_dtype(where["device"])
        self._image = torch.randn(1, 128, 5, 16 * scale, 16, **where)
        self._few = self._image[..., :4, :4].contiguous()
        self._weight = torch.randn(128, 128, 3, 3, 3, **where)
        self._query = torch.randn(2 * scale, 12, 512, 64, **where)
        self._large = torch.randn(2, 8 << 20, **where)
        frames = torch.randn(1, 32, 9, 128, 128 * scale, **where)
        self._frames = frames.contiguous(memory_format=torch.channels_last_3d)
        small, norm = torch.randn(8, 64, **where), nn.Linear(64, 64, **where)
        self._layers = [layer(768, out, **where) for out in (768, 3072)]
        self._rows = _FEW, _MANY * scale
        rows = [torch.randn(count, 768, **where) for count in self._rows]
        works: dict[str, Callable[[], Any]] = {
            "convolution": partial(self._convolve, self._image),
            "small convolution": partial(self._convolve, self._few),
            "attention": lambda: F.scaled_dot_product_attention(self._query, self._query, self._query),
            "moved": lambda: torch.add(self._large[0], 1, out=self._large[1]),
            "swept": self._sweep,
            "calls": lambda: norm(small),
        }
        for number, one in enumerate(self._layers):
            works[f"few rows {number}"] = partial(one, rows[0])
            works[f"many rows {number}"] = partial(one, rows[1])
        if device == "cpu":
            for number, count in enumerate(_BLOCKS):
                works[f"new block {number}"] = partial(_map, count)
                works[f"old block {number}"] = partial(torch.zeros(count).fill_, 1.0)
        self.timers = {name: partial(self._seconds, work) for name, work in works.items()}

    def rates(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Rates by kind of work. seconds: of one call of each operation."""
        query, spent = self._query, dict(seconds)
        works = {
            "convolution": 2.0 * self._image[0, 0].numel() * self._weight.numel(),
            "attention": 4.0 * query[..., 0].numel() * query.shape[-2] * query.shape[-1],
            "moved": 2.0 * _bytes(self._large[0]),
            "swept": 8.0 * _bytes(self._frames),
            "calls": 0.5,  # every tensor of a walk is about two calls
        }
        mappings: dict[str, float] = {}
        if self.device == "cpu":
            mappings = mapping_rates([seconds[f"new block {i}"] - seconds[f"old block {i}"] for i in (0, 1)])
        if mappings:  # a sweep makes one large tensor
            mapped = _bytes(self._frames) / mappings["mapped"] + 1 / mappings["mappings"]
            spent["swept"] -= min(mapped, spent["swept"] / 2)
        found = {name: amount / spent[name] for name, amount in works.items()} | mappings
        share = self._few.numel() / self._image.numel()
        laid = spent["small convolution"] - share * spent["convolution"]
        if laid > 0:
            found["filters"] = _bytes(self._weight) / laid
        weights = [layer.weight for layer in self._layers]
        found |= linear_rates(
            sum(weight.numel() for weight in weights),
            weights[0].element_size(),
            self._rows,
            (spent["few rows 0"] + spent["few rows 1"], spent["many rows 0"] + spent["many rows 1"]),
        )
        return found | {"winograd": found["convolution"], "wide": found["convolution"]}

    def _convolve(self, image: Tensor) -> Tensor:
        """As the VAE: by oneDNN itself where it can."""
        if self.device == "cpu" and torch.backends.mkldnn.is_available():
            return torch.mkldnn_convolution(image, self._weight, None, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1)
        return F.conv3d(image, self._weight, None, 1, 1)

    def _sweep(self) -> Tensor:
        """As the VAE's residual blocks, which count 8 passes."""
        return F.silu(F.group_norm(self._frames, 8), inplace=True).add_(self._frames)

    @torch.inference_mode()
    def _seconds(self, work: Callable[[], Any]) -> float:
        """The median time of one call, of as many as fit, after a first one that fills caches."""
        times = []
        work()
        self._wait()
        stop = time.perf_counter() + _SECONDS
        while not times or time.perf_counter() < stop:
            started = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - started)
        return statistics.median_low(times)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def linear_rates(
    elements: int, itemsize: int, rows: tuple[int, int], spent: tuple[float, float]
) -> dict[str, float]:
    """FLOP/s of linear layers, and bytes of their weights a second. elements: of the weights. spent: seconds of few
    rows and of many."""
    a_row = (spent[1] - spent[0]) / (rows[1] - rows[0])
    weights = spent[0] - rows[0] * a_row
    if min(a_row, weights) <= 0:  # no weights could be seen
        return {"linear": 2 * rows[1] * elements / spent[1]}
    return {"linear": 2 * elements / a_row, "weights": elements * itemsize / weights}


def mapping_rates(spent: Sequence[float]) -> dict[str, float]:
    """Bytes and blocks a second that the system maps; nothing if that takes no time.

    spent: seconds that a small and a large block take longer than one that is there already.
    """
    size = 4 * (_BLOCKS[1] - _BLOCKS[0])
    a_byte = (spent[1] - spent[0]) / size
    a_block = spent[0] - 4 * _BLOCKS[0] * a_byte
    return {"mapped": 1 / a_byte, "mappings": 1 / a_block} if min(a_byte, a_block) > 0 else {}


def _map(count: int) -> Tensor:
    return torch.empty(count).fill_(1.0)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
