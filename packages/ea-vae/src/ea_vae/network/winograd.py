"""3x3 taps in height and width by Winograd's F(4x4, 3x3): a quarter of the multiplications, equal in real numbers.

Four outputs of three taps take 6 products of transformed inputs and taps instead of 12 (Winograd 1980; Lavin and Gray,
arXiv 1509.09308). In both directions: tiles of 4x4 outputs come from 6x6 inputs by 36 matrix products over the
channels, whose sums over the taps in time are taken before the tiles are transformed back. Points 0, 1, -1, 2, -2 and
infinity; float32 differs from the plain form by some 2e-6 relative (the plain form's own rounding is 3e-7).

Work is done in bands of tiles and blocks of filters, so that what is between the transforms stays in the processor's
cache and memory does not grow with the picture. The taps are transformed on each call: weights that change in place
never meet a copy that is out of date.
Shapes: x (B, Cin, T, H, W), weight (Cout, Cin, 3, 3, 3), bias (Cout,) or None; N tiles of a band; P = 36 products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .rewrites import empty_like, is_last

_POINTS = 6
_OUT = 4
#: elements of a band's tiles times channels, and of a block's transformed taps: 5 MB a frame, 12 MB
_BAND, _TAPS = 32768, 3 << 20
_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)

Steps = list[list[tuple[int, str]]]


def convolve_winograd(
    x: Tensor, weight: Tensor, bias: Tensor | None, mode: str, enlarges: bool = False
) -> Tensor:
    """The convolution of stride 1 and padding 1, without gradients -> (B, Cout, T, H, W).

    enlarges: H and W of x are doubled first, to nearest neighbours.
    """
    scale = 2 if enlarges else 1
    batch, inner, frames, height, width = x.shape
    outer = weight.shape[0]
    across = -(-width * scale // _OUT)
    down = -(-height * scale // _OUT)
    rows, block = _sizes(inner, outer, across, down)
    steps = _steps(frames, mode)
    out = empty_like(x, batch, outer, frames, height * scale, width * scale)
    band = _Band(x, rows, across, min(frames, 3) if block >= outer else frames, scale)
    scratch = _Scratch(x, band.tiles, block)
    taps = _Taps(weight, steps, block)
    for first in range(0, outer, block) if block < outer else (0,):
        filters = slice(first, min(first + block, outer))
        taps.transform(weight[filters])
        products = scratch.of(filters.stop - filters.start)
        for item in range(batch):
            for top in range(0, down, rows):
                band.start(x[item], top)
                target = out[item, filters]
                for frame, inputs in enumerate(steps):
                    _multiply(products.products, [(band.frame(i), taps.of[key]) for i, key in inputs])
                    if bias is not None:
                        # a product at point 1 in both directions is in every output, once
                        products.products[_POINTS + 1] += bias[filters]
                    products.write(target[:, frame], top * _OUT, rows, across)
    return out


def _sizes(inner: int, outer: int, across: int, down: int) -> tuple[int, int]:
    """Rows of tiles in a band, and filters in a block."""
    rows = min(down, max(1, _BAND // (inner * across)))
    if rows < down:
        return rows, outer
    block = max(32, _TAPS // (_POINTS**2 * inner) // 32 * 32)
    return rows, min(outer, block)


def _steps(frames: int, mode: str) -> Steps:
    """For each output frame the frames that it is made of and their taps, by name."""
    if mode == "causal":
        rest = [[(f - 2, "0"), (f - 1, "1"), (f, "2")] for f in range(2, frames)]
        return [[(0, "012")], [(0, "01"), (1, "2")], *rest][:frames]
    wanted = [[(f - 1, "0"), (f, "1"), (f + 1, "2")] for f in range(frames)]
    return [[(i, key) for i, key in one if 0 <= i < frames] for one in wanted]


def _multiply(out: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """out (P, N, Cout) = the sum of tiles (P, N, Cin) times taps (P, Cin, Cout)."""
    tiles, taps = pairs[0]
    torch.bmm(tiles, taps, out=out)
    for tiles, taps in pairs[1:]:
        out.baddbmm_(tiles, taps)


class _Taps:
    """The transformed taps of some filters: `of[name]` (P, Cin, Cout); a name is the taps in time that it sums."""

    def __init__(self, weight: Tensor, steps: Steps, outer: int) -> None:
        one = weight.new_tensor(_FILTER)
        self.both = torch.kron(one, one)  # P 9
        self.names = sorted({key for step in steps for _, key in step})
        self.memory = weight.new_empty(len(self.names), _POINTS**2 * weight.shape[1] * outer)
        self.of: dict[str, Tensor] = {}

    def transform(self, weight: Tensor) -> None:
        """Makes `of` for these filters (n, Cin, 3, 3, 3), n up to `outer`."""
        outer, inner = weight.shape[:2]
        for name, memory in zip(self.names, self.memory, strict=True):
            summed = sum((weight[:, :, int(tap)] for tap in name[1:]), weight[:, :, int(name[0])])
            out = memory[: _POINTS**2 * outer * inner].view(_POINTS**2, outer * inner)
            torch.mm(self.both, summed.reshape(-1, 9).t(), out=out)
            self.of[name] = out.view(-1, outer, inner).transpose(1, 2)


class _Band:
    """Some rows of tiles of all frames; a frame is transformed when it is first asked for.

    slots: frames whose tiles are kept: 3, or all if several blocks of filters ask for them.
    """

    def __init__(self, x: Tensor, rows: int, across: int, slots: int, scale: int) -> None:
        channels = x.shape[1]
        self.rows, self.across, self.scale = rows, across, scale
        self.tiles = rows * across
        high = rows * _OUT + 2
        # columns of equal remainder by 4 are neighbours, so that each slice below is one run of memory
        self.columns = x.new_zeros(_OUT, high, across + 1, channels)
        self.across_done = x.new_empty(_POINTS, high, across, channels)
        self.done = x.new_empty(slots, _POINTS, _POINTS, rows, across, channels)
        self.held = [-1] * slots
        self.place: tuple[int, int] | None = None
        self.flat = None if is_last(x) else x.new_empty(channels, x.shape[3] * x.shape[4])

    def start(self, x: Tensor, top: int) -> None:
        """x (Cin, T, H, W); top: the band's first row of tiles."""
        place = (x.data_ptr(), top)
        if place != self.place:
            self.held = [-1] * len(self.held)
        self.x, self.top, self.place = x, top, place

    def frame(self, index: int) -> Tensor:
        """The transformed tiles (P, N, Cin) of a frame."""
        slot = index % len(self.held)
        done = self.done[slot]
        if self.held[slot] != index:
            self._fill(self.x[:, index])
            wide, columns = self.across, self.columns
            phases = [columns[k % _OUT, :, k // _OUT : k // _OUT + wide] for k in range(_POINTS)]
            _transform(phases, self.across_done.unbind(0))
            stop = self.rows * _OUT - _OUT + 1
            parts = [self.across_done[:, k : k + stop : _OUT] for k in range(_POINTS)]
            _transform(parts, done.unbind(0))
            self.held[slot] = index
        return done.view(_POINTS**2, self.tiles, -1)

    def _fill(self, image: Tensor) -> None:
        """The frame (Cin, H, W) with a border of zeros, channels last, from the band's first row on."""
        channels, height, width = image.shape
        scale, high = self.scale, self.rows * _OUT + 2
        # rows of the enlarged picture that the band sees, and those of the frame
        first = self.top * _OUT - 1
        start, stop = max(first, 0), min(first + high, height * scale)
        above, below = start // scale, -(-stop // scale)
        if self.flat is None:
            lines = image[:, above:below].permute(1, 2, 0)
        else:
            flat = self.flat[:, : (below - above) * width]
            # a contiguous copy first: rows a power of two apart share the lines of the cache
            flat.copy_(image[:, above:below].flatten(1))
            lines = flat.t().contiguous().view(below - above, width, channels)
        columns = self.columns
        columns[:, : start - first] = 0
        columns[:, stop - first :] = 0
        for line in range(scale):
            offset = (line - start) % scale  # the first target row of this kind
            target = columns[:, start - first + offset : stop - first : scale]
            source = lines[(start + offset) // scale - above :][: target.shape[1]]
            for phase in range(_OUT):
                self._put(target[phase], source, phase)

    def _put(self, target: Tensor, source: Tensor, phase: int) -> None:
        """Columns 4 j + phase - 1 of the enlarged rows `source` (n, W, Cin) into `target` (n, tiles + 1, Cin)."""
        skip = int(phase == 0)
        begin = (_OUT * skip + phase - 1) // self.scale
        found = source[:, begin :: _OUT // self.scale]
        found = found[:, : target.shape[1] - skip]
        target[:, skip : skip + found.shape[1]] = found


class _Scratch:
    """Memory of the products (P, N, Cout), and of the steps back to pixels."""

    def __init__(self, x: Tensor, tiles: int, outer: int) -> None:
        self.tiles = tiles
        self.memory = x.new_empty(_POINTS**2 * tiles * outer)
        self.upright = x.new_empty(_POINTS * _OUT * tiles * outer)
        self.pixels = x.new_empty(_OUT**2 * tiles * outer)

    def of(self, outer: int) -> _Scratch:
        """The same for `outer` filters."""
        self.products = self.memory[: _POINTS**2 * self.tiles * outer].view(_POINTS**2, self.tiles, outer)
        return self

    def write(self, target: Tensor, top: int, rows: int, across: int) -> None:
        """The products' outputs into `target` (Cout, H, W), from row `top` on."""
        outer = target.shape[0]
        count = self.tiles * outer
        products = self.products.view(_POINTS, _POINTS, rows, across, outer)
        upright = self.upright[: _POINTS * _OUT * count].view(_POINTS, rows, _OUT, across, outer)
        _back(products.unbind(0), upright.unbind(2))
        pixels = self.pixels[: _OUT**2 * count].view(rows, _OUT, across, _OUT, outer)
        _back(upright.unbind(0), pixels.unbind(3))
        high = min(rows * _OUT, target.shape[1] - top)
        image = pixels.view(rows * _OUT, across * _OUT, outer)[:high, : target.shape[2]]
        target[:, top : top + high] = image.permute(2, 0, 1)


def _transform(d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Six neighbours of each tile -> its six transformed values."""
    v0, v1, v2, v3, v4, v5 = out
    a, b = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(a, b, out=v1)
    torch.sub(a, b, out=v2)
    torch.sub(d[4], d[2], out=a)
    torch.sub(d[3], d[1], out=b)
    torch.add(a, b, alpha=2, out=v3)
    torch.sub(a, b, alpha=2, out=v4)
    torch.sub(d[0], d[2], out=v0)
    torch.add(a, v0, alpha=4, out=v0)
    torch.sub(d[5], d[3], out=v5)
    torch.sub(v5, b, alpha=4, out=v5)


def _back(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Six products of each tile -> its four outputs."""
    y0, y1, y2, y3 = out
    total, change = m[1] + m[2], m[1] - m[2]
    total2, change2 = m[3] + m[4], m[3] - m[4]
    torch.add(m[0], total, out=y0)
    y0.add_(total2)
    torch.add(change, change2, alpha=2, out=y1)
    torch.add(total, total2, alpha=4, out=y2)
    torch.add(change, change2, alpha=8, out=y3)
    y3.add_(m[5])
