"""The linear layer of this package: `nn.Linear`, by the faster of a CPU's two matrix products."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# On an AMD CPU with AVX-512 oneDNN multiplies 1.06 to 1.2 times as fast as MKL, which torch asks, from these sizes on;
# below, its set-up costs more (one thread, float32; docs/performance.md). With AVX2 the two are equal.
_MIN_ROWS, _MIN_WEIGHT = 16, 1 << 20


class Linear(nn.Linear):
    """(..., in) -> (..., out). The choice depends on processor and shape alone; with gradients it is torch's own."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if not torch.is_grad_enabled() and _is_for_onednn(input, self.weight):
            return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
        return F.linear(input, self.weight, self.bias)


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if type(x) is not Tensor or type(weight) not in (nn.Parameter, Tensor):
        return False  # quantised, sharded, or shapes alone: oneDNN reads memory
    if x.device.type != "cpu" or weight.device.type != "cpu":
        return False
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if weight.numel() < _MIN_WEIGHT or x.numel() < _MIN_ROWS * weight.shape[1]:
        return False
    return has_faster_onednn()


@lru_cache
def has_faster_onednn() -> bool:
    """True on an AMD processor whose AVX-512 torch uses."""
    if not torch.backends.mkldnn.is_available():
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
