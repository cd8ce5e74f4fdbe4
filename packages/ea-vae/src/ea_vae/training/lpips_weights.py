"""LPIPS with weights from local files, read and checked like a model's: safetensors only."""

from __future__ import annotations

from pathlib import Path

import torch

from ea_runtime.errors import UserError
from ea_runtime.files.safe import quote_path
from ea_runtime.models.weights import PartWeights, TensorEntry, is_pickle, iter_tensors, read_header
from ea_vae.training.lpips import LPIPS


def load_lpips(weights: str | Path, *, device: str = "cpu") -> LPIPS:
    """LPIPS (VGG16) ready for use.

    weights: a .safetensors file, or a folder whose .safetensors files together hold VGG16's `features.*` under
        torchvision's names and the heads `lin0.model.1.weight` to `lin4.model.1.weight`; others are ignored.

    Raises UserError, one line: no files, pickles only, a tensor that is missing, of another shape or not finite.
    """
    path = Path(weights)
    with torch.device("meta"):
        module = LPIPS()
    wanted = module.state_dict()
    found: dict[str, TensorEntry] = {}
    files = _files(path)
    for file in files:
        found |= {name: entry for name, entry in read_header(file).tensors.items() if name in wanted}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"`loss.perceptual_weights` {quote_path(path)} lacks {len(missing)} of LPIPS's {len(wanted)} tensors, "
            f"first {missing[0]}; it needs torchvision's VGG16 and the heads of LPIPS for it"
        )
    for name, entry in found.items():
        if entry.shape != tuple(wanted[name].shape):
            raise UserError(
                f"`loss.perceptual_weights` {quote_path(path)}: {name} must have shape "
                f"{tuple(wanted[name].shape)}, got {entry.shape}"
            )
    state = dict(iter_tensors(PartWeights(tuple(files), found), list(found)))
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise UserError(
                f"`loss.perceptual_weights` {quote_path(path)}: {name} must hold finite numbers; download it again"
            )
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return module.requires_grad_(False).to(device)


def _files(path: Path) -> list[Path]:
    """The safetensors files that `path` names; raises UserError if there are none."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(".safetensors"))
        pickles = [file.name for file in sorted(path.iterdir()) if is_pickle(file.name)]
    else:
        files, pickles = [path], [path.name] if is_pickle(path.name) else []
    if pickles and (not files or files == [path]):
        example = path / pickles[0] if path.is_dir() else path
        raise UserError(
            f"`loss.perceptual_weights` {quote_path(path)} is a pickle, which can run code and is not loaded; "
            f"run `ea models convert {example}` first"
        )
    if not files or not files[0].exists():
        raise UserError(
            f"`loss.perceptual_weights` must be a .safetensors file or a folder of some, got {quote_path(path)}; "
            "leave it out to train without the perceptual term"
        )
    return files
