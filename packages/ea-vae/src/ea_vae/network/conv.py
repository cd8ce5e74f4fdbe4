"""The one 3-D convolution of this VAE: its padding in time, and the choice of its form.

Shapes: B batch, C channels, T frames, H and W rows and columns.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import choice
from .rewrites import Mode, convolve, convolve_summed, enlarge, enlarge_convolve, is_last, lay_out
from .winograd import convolve_winograd

__all__ = ["CausalConv3d", "Mode"]


class CausalConv3d(nn.Conv3d):
    """3-D convolution whose time padding depends on the mode; keys are those of `nn.Conv3d`.

    Input (B, Cin, T, H, W), output (B, Cout, ceil(T / stride), ...) in every mode (kernel 3 in time). With gradients
    it runs as it is defined, but a picture by the sum of the three taps: a third of the work, and 2.5 times as many
    pictures a second of training. Without gradients it runs in the form that choice.py gives for the shape. An exported
    graph sums the taps of the weights that it holds, as the state dict has them.

    rewrites: one of `choice.CHOICES`, or None for the environment's.
    """

    rewrites: str | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: tuple[int, int, int] = (1, 1, 1),
        spatial_padding: int = 1,
    ) -> None:
        super().__init__(
            in_channels, out_channels, 3, stride=stride, padding=(0, spatial_padding, spatial_padding)
        )
        self._steps = stride
        self._pad = spatial_padding

    def forward(self, input: Tensor, mode: Mode = "causal", enlarges: bool = False) -> Tensor:
        """(B, Cin, T, H, W) -> (B, Cout, ceil(T / stride), H', W').

        enlarges: the convolution is that of `enlarge(input)`, (B, Cin, T, 2H, 2W). In `forward` as well, where hooks
        that move or cast weights put them in place.
        """
        run = self._run_enlarging if enlarges else self._run
        return run(self._form(input, mode, enlarges), input, mode)

    def _run(self, form: str, x: Tensor, mode: Mode) -> Tensor:
        if form == "winograd":
            return convolve_winograd(lay_out(x), self.weight, self.bias, mode)
        x = x if form == "plain" else lay_out(x, self.weight)
        settings = (x, self.weight, self.bias, self._steps, self._pad, mode)
        return convolve_summed(*settings) if form == "summed" else convolve(*settings, direct=form != "plain")

    def _run_enlarging(self, form: str, x: Tensor, mode: Mode) -> Tensor:
        if form in ("plain", "direct", "summed"):
            return self._run(form, enlarge(x), mode)
        if form == "winograd":
            return convolve_winograd(lay_out(x), self.weight, self.bias, mode, enlarges=True)
        return enlarge_convolve(lay_out(x, self.weight), self.weight, self.bias, mode, form == "both")

    def _form(self, x: Tensor, mode: Mode, enlarges: bool) -> str:
        if torch.compiler.is_exporting() and self.rewrites is None:
            # With the enlarging ones summed, too, the builder's plan for a decoder at 768x768 takes 7.9 GB, not 6.9.
            return "plain" if enlarges else "summed"
        chosen = choice.current(self.rewrites)
        if chosen == "plain":
            return "plain"
        causal = mode == "causal"
        if torch.is_grad_enabled():
            return "summed" if causal and x.shape[2] == 1 else "plain"
        has_tiles = self._has_tiles(x)
        if chosen == "always":
            return "winograd" if has_tiles else "both" if enlarges else "summed"
        if chosen == "rule":
            return choice.by_rule(x, self.weight, causal=causal, enlarges=enlarges, has_tiles=has_tiles)
        names = ("direct", "summed", "phase", "both") if enlarges else ("direct", "summed")
        names = (*names, "winograd") if has_tiles else names
        run = self._run_enlarging if enlarges else self._run
        key = choice.describe_key(x, self.weight, self._steps, mode, enlarges)
        return choice.memory(choice.cache_file()).choose(
            key, {name: partial(run, name, x, mode) for name in names}
        )

    def _has_tiles(self, x: Tensor) -> bool:
        """True if Winograd's form can run: on a CPU, in 32 bits or more, on memory that is there."""
        if self._steps != (1, 1, 1) or self._pad != 1 or x.device.type != "cpu" or type(x) is not Tensor:
            return False
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return False
        return x.dtype == self.weight.dtype and x.dtype in (torch.float32, torch.float64)


class PointwiseConv3d(nn.Conv3d):
    """A convolution of one tap, (B, Cin, T, H, W) -> (B, Cout, T, H, W); on channels that are last a linear layer."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or input.is_cuda or not is_last(input):
            return super().forward(input)
        rows = input.movedim(1, -1)  # B T H W Cin
        return F.linear(rows, self.weight.flatten(1), self.bias).movedim(-1, 1)
