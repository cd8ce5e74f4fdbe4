"""The same convolutions with less arithmetic: equal in real numbers, different in the last bits.

Tap summing: a 3-tap causal convolution pads by repeating frame 0, so its output 0 is one picture convolved with the sum
of the three taps, output 1 takes two taps, and only the others take three. Nothing is padded. A chunk of 3, 5 or 9
frames takes 0.67, 0.80 or 0.89 of the work, a picture a third.
Phase convolution: enlarging H and W to nearest neighbours and then convolving with 3x3 taps gives each of the four
output phases (row and column even or odd) by 2x2 taps: one convolution with 4 x Cout filters, then interleaved.

Direct convolution: with one thread torch itself takes 3-D convolutions that it thinks small (by batch, channels, frames
and rows alone) to a kernel that is up to 12 times slower than oneDNN's. The forms here ask oneDNN.

The summed weights are made on each call: on a chunk of 16x16 latents they cost 3%, and weights that change in place
(LoRA, averages, optimisers) never meet a copy that is out of date.
Shapes: x (B, Cin, T, H, W), weight (Cout, Cin, 3, k, k), bias (Cout,) or None.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Mode = Literal["causal", "slice", "single"]
"""The treatment of time in a pass.

causal: MagViT. Frame 0 stands for itself, padding repeats it in front, and no output sees a later input.
slice: Slice VAE. Every frame of the piece is alike, zeros pad both ends.
single: Slice VAE's frame 0, encoded alone: padded as a slice, never enlarged in time.
"""
Stride = tuple[int, int, int]

_MIN_ONEDNN = 2_000_000  # multiply-adds; below, its set-up of 0.1 ms is more than torch's own kernel takes
# measured at 16 to 512 channels, one thread, AVX-512 and AVX2 (docs/performance.md)
_MIN_LAST, _MAX_LAST = 2048, 128  # positions T * H * W, and channels of the narrower side
_MIN_SMALL, _MAX_SMALL = 40_000, 64  # or elements of a video, and channels of the wider side
_NARROW = 4  # filters of a convolution that leaves most of a vector's 8 or 16 lanes idle
# Which taps of a 3-tap filter fall on which of the two low-resolution neighbours, for an even and an odd output.
_PHASES = ([[1.0, 0, 0], [0, 1, 1]], [[1.0, 1, 0], [0, 0, 1]])


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Stride,
    padding: int,
    mode: Mode,
    direct: bool = True,
) -> Tensor:
    """The convolution as it is defined: time is padded, then three taps. -> (B, Cout, ceil(T / stride), ...).

    direct: False leaves the kernel to torch.
    """
    if mode == "causal":
        # cat gives F.pad(mode="replicate")'s values; its gradient is deterministic on CUDA too.
        first = x[:, :, :1]
        x = _joined([first, first, x])  # B C T+2 H W
    else:
        x = F.pad(x, (0, 0, 0, 0, 1, 1))  # B C T+2 H W
    run = _convolution if direct else F.conv3d
    return run(x, weight, bias, stride, (0, padding, padding))


def convolve_summed(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Stride, padding: int, mode: Mode
) -> Tensor:
    """`convolve` by tap summing; slice mode lets the convolution pad, and takes one frame by its middle tap."""
    frames, spatial = x.shape[2], stride[1:]
    if mode != "causal":
        if frames > 1:
            return _convolution(x, weight, bias, stride, (1, padding, padding))
        return _convolution(x[:, :, 0], weight[:, :, 1], bias, spatial, (padding, padding)).unsqueeze(2)
    both, last = weight[:, :, 0] + weight[:, :, 1], weight[:, :, 2]
    total = both + last
    parts = [_convolution(x[:, :, 0], total, bias, spatial, (padding, padding)).unsqueeze(2)]
    if frames > 1 and stride[0] == 1:
        early = torch.stack([both, last], dim=2)  # Cout Cin 2 k k
        parts.append(_convolution(x[:, :, :2], early, bias, stride, (0, padding, padding)))
    if frames > 2:  # with stride 2 the second output already covers frames 0, 1, 2
        parts.append(_convolution(x, weight, bias, stride, (0, padding, padding)))
    return _joined(parts) if len(parts) > 1 else parts[0]


def enlarge(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B, C, T, 2H, 2W), nearest neighbours."""
    return F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")


def enlarge_convolve(x: Tensor, weight: Tensor, bias: Tensor | None, mode: Mode, summed: bool) -> Tensor:
    """`enlarge`, then `convolve` with padding 1, by phase convolution -> (B, Cout, T, 2H, 2W)."""
    run = convolve_summed if summed else convolve
    biases = None if bias is None else bias.repeat(4)
    phases = run(x, phase_weight(weight), biases, (1, 1, 1), 1, mode)  # B 4*Cout T H+1 W+1
    batch, _, frames, height, width = phases.shape
    outer = weight.shape[0]
    height, width = height - 1, width - 1
    out = empty_like(x, batch, outer, frames, 2 * height, 2 * width)
    for row in (0, 1):
        for column in (0, 1):
            filters = slice((2 * row + column) * outer, (2 * row + column + 1) * outer)
            part = phases[:, filters, :, row : row + height, column : column + width]
            out[:, :, :, row::2, column::2] = part
    return out


def phase_weight(weight: Tensor) -> Tensor:
    """(Cout, Cin, 3, 3, 3) -> (4 * Cout, Cin, 3, 2, 2), the phases row-major and outermost."""
    outer, inner, taps = weight.shape[:3]
    rows = weight.new_tensor(_PHASES)  # phase, tap of two, tap of three
    both = torch.einsum("aik,bjl->abklij", rows, rows).reshape(4, 9, 4)
    folded = torch.matmul(weight.reshape(1, -1, 9), both)  # 4 Cout*Cin*3 4
    return folded.reshape(4 * outer, inner, taps, 2, 2)


def double_time(x: Tensor, keep_first: bool) -> Tensor:
    """F.interpolate(scale_factor=(2, 1, 1), mode="trilinear") on the time axis alone, in one pass of two taps.

    keep_first: frame 0 stays one frame: T -> 2T - 1; otherwise T -> 2T.
    """
    first = int(keep_first)
    batch, channels, frames, height, width = x.shape
    out = empty_like(x, batch, channels, 2 * frames - first, height, width)
    if keep_first:
        out[:, :, 0] = x[:, :, 0]
    source, target = x[:, :, first:], out[:, :, first:]
    target[:, :, 0] = source[:, :, 0]
    target[:, :, -1] = source[:, :, -1]
    before, after = source[:, :, :-1], source[:, :, 1:]
    torch.lerp(before, after, 0.25, out=target[:, :, 1:-1:2])
    torch.lerp(after, before, 0.25, out=target[:, :, 2::2])
    return out


def lay_out(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """x, channels last where a convolution without gradients reads it faster so; other tensors stay as they are.

    On CUDA these are the tensor cores' 16 bits. On a CPU in float32 oneDNN copies plain input and output to blocks and
    back in each convolution, which channels that are last save it; but then it takes longer to lay out weights, so that
    wide layers on few positions stay plain. weight: None for Winograd's form, which always reads channels last.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or type(x) is not Tensor:
        return x
    if x.is_cuda:
        half = x.dtype in (torch.float16, torch.bfloat16)
        return x.contiguous(memory_format=torch.channels_last_3d) if half else x
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return x
    last = weight is None or _reads_last(x, weight)
    return x.contiguous(memory_format=torch.channels_last_3d if last else torch.contiguous_format)


def _reads_last(x: Tensor, weight: Tensor) -> bool:
    outer, inner = weight.shape[:2]
    positions = x.shape[2] * x.shape[3] * x.shape[4]
    if positions >= _MIN_LAST and min(outer, inner) <= _MAX_LAST:
        return True
    return positions * inner >= _MIN_SMALL and max(outer, inner) <= _MAX_SMALL


def is_last(x: Tensor) -> bool:
    """True if the channels of a position are neighbours in memory."""
    return x.stride(1) == 1 and x.shape[1] > 1


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last if x is, else as torch lays out a new tensor."""
    if not is_last(x):
        return torch.contiguous_format
    return torch.channels_last_3d if x.ndim == 5 else torch.channels_last


def _joined(parts: list[Tensor]) -> Tensor:
    """Tensors (B, C, T, H, W) one after the other in time; if channels are last, in memory's order, which is faster."""
    if all(is_last(part) for part in parts):
        return torch.cat([part.movedim(1, -1) for part in parts], dim=1).movedim(-1, 1)
    return torch.cat(parts, dim=2)


def empty_like(x: Tensor, *shape: int) -> Tensor:
    """A tensor of another shape (B, C, T, H, W) in x's layout, without values."""
    if not is_last(x):
        return x.new_empty(shape)
    batch, channels, *rest = shape
    return x.new_empty(batch, *rest, channels).movedim(-1, 1)


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """A 2-D or 3-D convolution, by oneDNN if it is available and pays for its set-up."""
    if _is_for_onednn(x, weight):
        if _is_narrow(x, weight, stride, padding):
            return _narrow_convolution(x, weight, bias, padding)
        ones = (1,) * len(stride)
        layout = memory_format(x)
        x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, ones, 1)
    run = F.conv3d if len(stride) == 3 else F.conv2d
    return run(x, weight, bias, stride, padding)


def _is_narrow(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> bool:
    """True if the filters fill few lanes of a vector, and four neighbouring outputs can be channels of one."""
    if weight.shape[0] > _NARROW or weight.shape[-2:] != (3, 3) or set(stride) != {1}:
        return False
    even = x.shape[-2] % 2 == 0 and x.shape[-1] % 2 == 0
    return even and padding[-2:] == (1, 1) and x.numel() // x.shape[1] >= _MIN_LAST


def _narrow_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, ...]) -> Tensor:
    """2x2 outputs as channels of one: four times the filters at a quarter of the positions, 16 taps for 36."""
    filters, inner, *time = weight.shape[:-2]
    wide = weight.new_zeros(2, 2, filters, inner, *time, 4, 4)
    for row in (0, 1):
        for column in (0, 1):
            wide[row, column, ..., row : row + 3, column : column + 3] = weight
    biases = None if bias is None else bias.repeat(4)
    stride = (*(1 for _ in time), 2, 2)
    parts = _convolution(x, wide.flatten(0, 2), biases, stride, padding)  # B 4*Cout (T) H/2 W/2
    parts = parts.unflatten(1, (2, 2, filters)).movedim(1, -2).movedim(1, -1)  # B Cout (T) H/2 2 W/2 2
    return parts.flatten(-2, -1).flatten(-3, -2)


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if type(x) is not Tensor:  # shapes alone, or parts of a tensor: oneDNN reads memory
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    return x.numel() // x.shape[1] * weight.numel() >= _MIN_ONEDNN
