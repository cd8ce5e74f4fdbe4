"""A PixArt picture transformer becomes the 3-D model: same weights, motion modules and skips that add nothing yet.

The picture model is one of diffusers' `Transformer2DModel` (as PixArt-alpha's checkpoints name it) or
`PixArtTransformer2DModel`. Their tensors carry the names of ours; what only the 3-D model has (motion modules,
U-ViT skips) starts at zero output, so that each frame comes out as the picture model would give it.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

logger = logging.getLogger(__name__)

CLASS_NAMES = ("Transformer2DModel", "PixArtTransformer2DModel")
STEM = "diffusion_pytorch_model"
MAX_JSON_BYTES = 16 << 20
#: Tensors that some programs save and every model computes.
_COMPUTED = ("pos_embed.pos_embed",)


@dataclass(frozen=True, slots=True)
class StartReport:
    """The fate of each tensor of a picture model.

    matched: tensors taken over. fresh: tensors of the 3-D model that the picture model lacks. mismatched: in both,
    of another shape, so left fresh too. unused: tensors of the picture model without a place.
    """

    matched: tuple[str, ...]
    fresh: tuple[str, ...]
    mismatched: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """For the user: one line per kind, with its first names."""
        return [f"{len(self.matched)} tensors of the picture model taken over"] + [
            f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            for what, names in (
                ("new in the 3-D model", self.fresh),
                ("of another shape, left fresh", self.mismatched),
                ("without a place, unused", self.unused),
            )
            if names
        ]


def map_config(
    target: type[nn.Module], config: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A picture model's config.json as keys of `target`, the 3-D model's class; missing ones as that class has them.

    overrides: keys of `target` (motion_module_type, enable_uvit, ...) to set on top.
    Raises ValueError, one line, for another class, an unknown override, or a model that is no PixArt.
    """
    name = config.get("_class_name")
    if name not in CLASS_NAMES:
        raise ValueError(
            f"the picture model must be one of {', '.join(CLASS_NAMES)}, config.json says {name!r}; "
            "to continue from a 3-D model load it with `from_pretrained`"
        )
    import diffusers

    theirs = inspect.signature(getattr(diffusers, name)).parameters
    ours = inspect.signature(target).parameters
    values = {key: config.get(key, theirs[key].default) for key in ours if key in theirs}
    overrides = dict(overrides or {})
    unknown = [key for key in overrides if key not in ours]
    if unknown:
        raise ValueError(f"{target.__name__} has no key `{unknown[0]}`; override only keys of its config")
    mapped = {**values, **overrides}
    _check_positions(config, mapped["sample_size"])
    return mapped


def _check_positions(config: Mapping[str, Any], size: Any) -> None:
    """Our positions follow from sample_size: a picture model that sets them otherwise would give other outputs."""
    if not isinstance(size, int) or size <= 0:
        raise ValueError(
            f"`sample_size` must be a positive integer, the picture model has {size!r}; override it"
        )
    scale, ours = config.get("interpolation_scale"), max(size // 64, 1)
    if scale is not None and scale != ours:
        raise ValueError(
            f"`interpolation_scale` must be {ours} for sample_size {size}, the picture model has {scale}; "
            f"override sample_size by {round(64 * scale)} to keep its distances between positions"
        )
    if config.get("use_additional_conditions") and size != 128:
        raise ValueError(
            f"`use_additional_conditions` goes with sample_size 128 only, the picture model has {size}; "
            "override sample_size=128"
        )


def find_folder(folder: str | Path, subfolder: str | None = None) -> Path:
    """The folder of config.json: `folder`/`subfolder`, or `folder`, or its transformer/. Raises ValueError."""
    path = Path(folder).expanduser()
    for found in (path / subfolder,) if subfolder else (path, path / "transformer"):
        if (found / "config.json").is_file():
            return found
    raise ValueError(
        f"the picture model's folder must hold config.json and *.safetensors, got {str(path)!r}, which has no "
        f"{(subfolder + '/') if subfolder else ''}config.json"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The object in a folder's config.json. Raises ValueError, one line."""
    return _read_json(folder / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{str(path)!r} has {path.stat().st_size:,} bytes, too many for a config")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} is no valid JSON ({type(error).__name__}); download it again"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object, got {type(value).__name__}")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, shards included. Raises ValueError; pickles are never read."""
    index = folder / f"{STEM}.safetensors.index.json"
    if index.is_file():
        names = sorted({str(name) for name in _read_json(index).get("weight_map", {}).values()})
        outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if outside or not names:
            raise ValueError(
                f"{index.name} must name safetensors files next to it, got {outside[:1] or 'none'}"
            )
        return [folder / name for name in names]
    usual = folder / f"{STEM}.safetensors"
    found = [usual] if usual.is_file() else sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        pickles = any(p.suffix in (".bin", ".pt", ".pth", ".ckpt") for p in folder.iterdir())
        hint = "; run `ea models convert` on it first" if pickles and not found else ""
        raise ValueError(
            f"{str(folder)!r} must hold {STEM}.safetensors, got {len(found)} safetensors files{hint}"
        )
    return found


def iter_weights(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the files, one at a time, on the CPU. Raises ValueError for a damaged file."""
    for path in files:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                names = file.keys()
                for name in names:
                    yield name, file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{str(path)!r} cannot be read ({error}); download it again") from error


@torch.no_grad()
def fill_from_2d(model: Any, files: list[Path]) -> StartReport:
    """Puts a picture model's tensors into a Transformer3DModel, in place, and zeroes what would change a picture.

    Raises ValueError, one line, if no tensor fits.
    """
    targets = model.state_dict(keep_vars=True)
    matched, mismatched, unused = [], [], []
    for name, tensor in iter_weights(files):
        target = targets.get(name)
        if target is None:
            unused += [name] if name not in _COMPUTED else []
        elif target.shape != tensor.shape:
            mismatched.append(name)
        else:
            target.copy_(tensor)
            matched.append(name)
    if not matched:
        raise ValueError(
            f"no tensor of the picture model fits, first is {next(iter([*mismatched, *unused]), 'none')!r}; "
            "is it a PixArt transformer of these sizes?"
        )
    fresh = [name for name in targets if name not in matched and name not in mismatched]
    _zero_inserts(model, set(matched))
    report = StartReport(tuple(matched), tuple(fresh), tuple(mismatched), tuple(unused))
    for line in report.lines:
        logger.info("%s", line)
    return report


def _zero_inserts(model: Any, matched: set[str]) -> None:
    """Makes fresh motion modules, skips and size conditions add nothing, whatever `zero_initialize` is."""
    cfg = model.cfg
    names = [
        f"transformer_blocks.{i}.attn_temporal.temporal_transformer.proj_out" for i in range(cfg.num_layers)
    ]
    names += [f"long_connect_fc.{i}" for i in range(cfg.num_skips)]
    if cfg.has_size_conditions:
        names += [f"adaln_single.emb.{kind}_embedder.linear_2" for kind in ("resolution", "aspect_ratio")]
    for name in names:
        if f"{name}.weight" not in matched:
            for parameter in model.get_submodule(name).parameters():
                nn.init.zeros_(parameter)
