"""A denoiser with the weights of a GGUF file: layers keep its blocks of few bits, the rest becomes numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote
from ea_runtime.models import meta
from ea_runtime.models.gguf_header import GgufTensor, read_gguf
from ea_runtime.models.quantize import takes
from ea_runtime.models.quantize_layers import quiet_imports
from ea_runtime.models.weights import PartWeights

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_gguf(
    build: Callable[[], ModuleT],
    path: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    notes: list[str] | None = None,
) -> ModuleT:
    """`build()`, a denoiser, with the tensors of a GGUF file under the names of its state dict.

    dtype: that it computes in; None: float32. Raises UserError, in one line, for a damaged file, missing tensors, other
    shapes, and a file without a layer in few bits; appends what is ignored to `notes`.
    """
    tensors = read_gguf(path)
    label = f"GGUF file {quote(path.name)}"
    model = meta.build_without_weights(build)
    comparison = meta.compare(model, {name: one.shape for name, one in tensors.items()})
    meta.require_fit(comparison, label)
    unexpected = meta.describe_unexpected(comparison, label)
    if unexpected and notes is not None:
        notes.append(unexpected)
    with quiet_imports():
        import diffusers.quantizers.gguf.utils as utils
        from gguf import GGMLQuantizationType  # pyright: ignore[reportMissingImports]

    library: Any = utils
    target = dtype or torch.float32
    known, held, count = set(model.state_dict()), {}, 0
    with path.open("rb", buffering=0) as file:
        for name, entry in tensors.items():
            if name not in known:
                continue
            raw = _read(file, entry, path)
            if entry.is_plain:
                held[name] = raw.view(_PLAIN[entry.kind]).reshape(entry.shape).to(device, target)
                continue
            rows = raw.view(*entry.shape[:-1], -1).to(device)
            blocks = library.GGUFParameter(rows, quant_type=GGMLQuantizationType(entry.type))
            path_of = name.removesuffix(".weight")
            layer = model.get_submodule(path_of) if takes("denoiser", name, entry.shape) else None
            if isinstance(layer, nn.Linear):
                made = library.GGUFLinear(
                    layer.in_features,
                    layer.out_features,
                    layer.bias is not None,
                    target,
                    torch.device("meta"),
                )
                made.weight = blocks
                model.set_submodule(path_of, made)
                held[name] = blocks
                count += 1
            else:
                held[name] = library.dequantize_gguf_tensor(blocks).as_subclass(Tensor).to(target)
    if not count:
        raise UserError(f"{label} has no layer in few bits; convert it to .safetensors, or give another")
    return meta.fill(model, PartWeights((), {}), comparison, device=device, dtype=dtype, held=held)


def _read(file: Any, entry: GgufTensor, path: Path) -> Tensor:
    raw = torch.empty(entry.size, dtype=torch.uint8)
    file.seek(entry.begin)
    view = raw.numpy().data
    done = 0
    while done < entry.size:
        got = file.readinto(view[done:])
        if not got:
            raise UserError(f"GGUF file {quote(path.name)} ends early; copy it again")
        done += got
    return raw
