"""A count of memory and arithmetic for a network that is walked through by its shapes alone. Imports no torch.

A walk calls `new` where the network makes a tensor and `free` where the last reference to it goes. The walks next to
this file follow the forward passes line by line; their test runs the networks themselves and compares.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod

from ea_runtime.machine.allocator import MAPPED

#: channels of oneDNN's blocks on a CPU with AVX-512; a convolution's input and output are padded to them
BLOCK = 16
#: multiply-adds below which ea-vae leaves a convolution to torch
_MIN_ONEDNN = 2_000_000
#: channels from which a convolution fills the processor's units
_WIDE = 64


@dataclass(slots=True, eq=False)
class Held:
    """A tensor that is alive while something refers to it."""

    size: int
    references: int = 1


@dataclass
class Meter:
    """Bytes that are alive, their peak, and work by kind.

    "linear", "convolution", "wide" (a convolution with many channels), "winograd", "attention": FLOPs. "weights" and
    "filters": bytes of linears' weights and of wide convolutions', in each call. "transformed": bytes of Winograd's
    transforms. "moved" or "swept": bytes read and written by all else. "calls". "mappings" and "mapped": of large
    tensors and their bytes, which a CPU's system fills with zeros first.

    itemsize: bytes of an element. has_scratch: counts what oneDNN's convolutions take next to their tensors. moves: the
    kind of bytes moved: "swept" for the VAE, whose tensors are larger than the processor's cache.
    """

    itemsize: int = 4
    has_scratch: bool = False
    moves: str = "moved"
    now: int = 0
    peak: int = 0
    work: Counter[str] = field(default_factory=Counter)

    def new(self, *shape: int, itemsize: int | None = None, passes: float = 2) -> Held:
        """A tensor of that shape, with one reference. passes: how often its bytes are moved to make it."""
        size = prod(shape) * (self.itemsize if itemsize is None else itemsize)
        self.now += size
        self.peak = max(self.peak, self.now)
        self.work[self.moves] += int(passes * size)
        self.work["calls"] += 1
        self.map(size)
        return Held(size)

    def map(self, size: int) -> None:
        """Memory of that size is asked for, which the system maps anew if it is large."""
        if size >= MAPPED:
            self.work["mapped"] += size
            self.work["mappings"] += 1

    def keep(self, held: Held) -> Held:
        """The same tensor, with one more reference."""
        held.references += 1
        return held

    def free(self, *those: Held | None) -> None:
        """Each loses a reference; with the last one it is gone."""
        for held in those:
            if held is not None:
                held.references -= 1
                self.now -= 0 if held.references else held.size

    def touch(self, size: int) -> None:
        """`size` bytes are alive for a moment."""
        self.peak = max(self.peak, self.now + size)

    def linear(self, rows: int, into: int, out: int, lora: int = 0) -> Held:
        """A linear layer on `rows` rows. lora: rank of a LoRA on it, 0 without one (peft's forward)."""
        self.work["linear"] += 2 * rows * into * out
        self.work["weights"] += into * out * self.itemsize
        result = self.new(rows, out, passes=0)
        if not lora:
            return result
        self.work["linear"] += 2 * rows * lora * (into + out)
        small, change = self.new(rows, lora, passes=0), self.new(rows, out, passes=0)
        self.free(small)
        scaled = self.new(rows, out, passes=0)
        self.free(change)
        total = self.new(rows, out, passes=0)
        self.work["swept"] += 5 * total.size  # times its weight, and added: bare passes
        self.free(result, scaled)
        return total

    def attention(self, batch: int, queries: int, keys: int, width: int) -> Held:
        """Fused attention of all heads together, `width` channels in all; no scores are kept."""
        self.work["attention"] += 4 * batch * queries * keys * width
        return self.new(batch, queries, width, passes=0)

    def convolution(
        self,
        batch: int,
        into: int,
        out: int,
        inputs: int,
        outputs: int,
        taps: int,
        *,
        is_direct: bool = True,
        is_last: bool = False,
    ) -> Held:
        """A convolution: `inputs` positions of `into` channels -> `outputs` positions of `out` channels.

        taps: of the filter, in all dimensions. is_direct: oneDNN is asked for it, where it is large enough. is_last:
        with channels last, which it reads and writes as they are.
        """
        kind = "wide" if min(into, out) >= _WIDE else "convolution"
        if kind == "wide":
            self.work["filters"] += taps * into * out * self.itemsize
        # few filters leave lanes idle
        self.work[kind] += 2 * batch * outputs * taps * into * (_blocks(out) if is_last else out)
        size = batch * outputs * out * self.itemsize
        if self.has_scratch and is_direct and batch * inputs * into * out * taps >= _MIN_ONEDNN and taps > 1:
            # measured: the input is laid out in blocks unless it has few channels, and so is the output
            laid_in = 0 if into <= 4 else batch * inputs * _blocks(into) * self.itemsize
            laid_out = batch * outputs * _blocks(out) * self.itemsize
            weights = taps * _blocks(into) * _blocks(out) * self.itemsize
            self.touch(2 * weights + size if is_last else laid_out + weights + max(laid_in, size))
            if not is_last:
                self.map(laid_in)
                self.map(laid_out)
        return self.new(batch, outputs, out, passes=0)


def _blocks(channels: int) -> int:
    return -(-channels // BLOCK) * BLOCK
