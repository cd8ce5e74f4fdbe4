"""Loading a model folder: each part's class is found through the host, its weights are read from safetensors.

Nothing in a folder can run code: configs are data, pickles are refused, no file names a class to import, and no
path leaves the folder.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import MissingPackageError, UserError, nearest
from ea_runtime.files.safe import inside, is_file, plain, quote, quote_path, read_json
from ea_runtime.machine.light_imports import import_diffusers
from ea_runtime.models.config import check_config, check_no_code
from ea_runtime.models.layout import (
    PARTS,
    GenerationDefaults,
    PartSpec,
    class_name,
    read_defaults,
    resolve_folder,
)
from ea_runtime.models.quantize import UNSCALED, Quantize, check_packages
from ea_runtime.models.weights import PartWeights, find_weights
from ea_runtime.plugins.host import Host, get_host
from ea_runtime.records import Record

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ea_runtime.models.quantize_layers import PutLayer

logger = logging.getLogger("ea")

#: tokenizer files: T5's have 2.4 MB at most
MAX_TOKENIZER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Parts:
    """The contents of a model folder, ready to run. A part that was not asked for is None.

    vae, denoiser: modules in eval mode on the device asked for.
    text: what the text encoder's record builds, with `encode(prompts)`.
    scheduler_config, defaults: see layout.read_defaults.
    notes: one line for each thing that is ignored (unexpected tensors, unknown config keys).
    """

    folder: Path
    scheduler_config: dict[str, Any]
    defaults: GenerationDefaults
    notes: tuple[str, ...] = ()
    vae: Any = None
    denoiser: Any = None
    text: Any = None


def load_parts(
    model: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    parts: Iterable[str] | None = None,
    *,
    waits: bool = False,
    quantize: Quantize | None = None,
) -> Parts:
    """Load a model folder.

    Args:
        model: "tiny" (bundled), a name beneath EA_MODELS_DIR, or a folder (layout: layout.py).
        device: where the weights go.
        dtype: of all floating-point weights and buffers; None keeps each tensor's own (of T5: float32).
        parts: some of "vae", "denoiser", "text"; None loads all three.
        quantize: parts whose weights are kept in fewer bits (quantize.py).
        waits: on the CPU, the weights of blocks stay in their files until they run (waiting.py).

    Raises:
        MissingPackageError: no installed package brings the class that a part needs.
        UserError: everything else, in one line: no such model, no weights, pickles, damaged files, wrong shapes.
    """
    wanted = tuple(PARTS) if parts is None else tuple(parts)
    for name in wanted:
        if name not in PARTS:
            raise UserError(
                f"`parts` may hold {', '.join(PARTS)}, got {quote(name)}{nearest(str(name), PARTS)}"
            )
    folder = resolve_folder(model)
    if "diffusers" not in sys.modules:
        import_diffusers()
    scheduler_config, defaults = read_defaults(folder)
    host = get_host()
    # every part's config, class and headers are checked before the first weight is read
    plans = {name: plan_part(folder, PARTS[name], host) for name in wanted}
    if quantize is not None:
        check_packages(quantize)
    notes: list[str] = []
    loaded: dict[str, Any] = {}
    for name, plan in plans.items():
        if name == "text" and not (waits and plan.record.name == "t5"):
            put_layer = _layer_maker(quantize, name, dtype)
            own = {} if put_layer is None else {"put_layer": put_layer}
            loaded[name] = plan.record.build(str(folder), device=device, dtype=dtype, **own)
        else:
            loaded[name] = load_part(
                plan, device=device, dtype=dtype, notes=notes, waits=waits, quantize=quantize
            )
    if quantize is not None:
        _finish_quantized(quantize, loaded, dtype)
    for note in notes:
        logger.warning("%s", note)
    return Parts(folder, scheduler_config, defaults, tuple(notes), **loaded)


@dataclass(frozen=True, slots=True)
class PartPlan:
    """A part that can be loaded: config and headers were read, the class was found, no weight was read."""

    spec: PartSpec
    label: str
    config: dict[str, Any]
    record: Record
    weights: PartWeights
    folder: Path


def plan_part(folder: Path, spec: PartSpec, host: Host | None = None) -> PartPlan:
    """Read a part's config and headers and find its class. Raises UserError and MissingPackageError."""
    config = read_part_config(folder, spec)
    record = find_record(host or get_host(), spec, class_name(config, spec))
    weights = find_weights(folder, spec.folder)
    check_config(config, f"{spec.folder}/config.json", len(weights.tensors))
    if spec.name == "text":
        check_tokenizer(folder)
        if os.path.lexists(folder / spec.folder / "adapter_config.json"):
            # transformers would follow it to another model, wherever that is
            raise UserError(
                f"{spec.folder} of model folder {quote_path(folder)} has an adapter_config.json; remove "
                "that file"
            )
    return PartPlan(
        spec, f"{spec.folder} of model folder {quote_path(folder)}", config, record, weights, folder
    )


def read_part_config(folder: Path, spec: PartSpec) -> dict[str, Any]:
    """A part's config.json. Raises UserError, naming the expected files, if the part is missing."""
    if not is_file(inside(folder, f"{spec.folder}/config.json")):
        stem = "model" if spec.name == "text" else "diffusion_pytorch_model"
        raise UserError(
            f"model folder {quote_path(folder)} has no {spec.title}; expected {spec.folder}/config.json and "
            f"{spec.folder}/{stem}.safetensors"
        )
    return read_json(folder, f"{spec.folder}/config.json")


@dataclass(frozen=True, slots=True)
class DenoiserFolder:
    """Where a denoiser is: `root / spec.folder`. is_bare: the user named that folder itself."""

    root: Path
    spec: PartSpec
    config: dict[str, Any]
    is_bare: bool

    @property
    def class_name(self) -> str:
        """The class that config.json names. Raises UserError if it names none."""
        return class_name(self.config, self.spec)


def denoiser_of(model: str | os.PathLike[str]) -> DenoiserFolder:
    """The denoiser of a model folder, or of a folder that holds nothing else, as a run's `final/`.

    Raises UserError if there is neither.
    """
    folder = resolve_folder(model)
    spec = PARTS["denoiser"]
    if is_file(folder / "config.json") and not is_file(folder / spec.folder / "config.json"):
        folder = folder.resolve()
        spec = replace(spec, folder=folder.name)
        return DenoiserFolder(folder.parent, spec, read_part_config(folder.parent, spec), is_bare=True)
    return DenoiserFolder(folder, spec, read_part_config(folder, spec), is_bare=False)


def find_record(host: Host, spec: PartSpec, name: str) -> Record:
    """The record that loads class `name`.

    Raises MissingPackageError if its package is not installed, UserError for an unknown class.
    """
    record = host.find_class(spec.kind, name)
    if record is not None:
        return record
    entries = host.records(spec.kind)
    known = sorted({n for entry in entries.values() for n in getattr(entry.record, "class_names", ())})
    if name in spec.class_names or not known:
        raise MissingPackageError(
            f"the {spec.title} of this model is a {name}, which comes with {spec.package}; "
            f"{host.remedy(spec.package)}"
        )
    raise UserError(
        f"{spec.folder}/config.json names class {quote(name)}, which no installed package brings; "
        f"there are: {', '.join(known)}{nearest(name, known)}"
    )


def load_part(
    plan: PartPlan,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    notes: list[str] | None = None,
    quantize: Quantize | None = None,
    waits: bool = False,
) -> Any:
    """A part with its weights, of text encoders T5. Raises UserError; appends what is ignored to `notes`.

    waits: see `load_parts`.
    """
    if plan.spec.name == "text":
        import torch

        from ea_runtime.text.encoder import TextEncoder
        from ea_runtime.text.tokenizer import load_tokenizer

        wanted = dtype or torch.float32
        model = load_module(
            lambda: build_t5(plan.config), plan.weights, plan.label, dtype=wanted, waits=waits
        )
        return TextEncoder(model, load_tokenizer(plan.folder / "tokenizer"))
    unknown = unknown_keys(plan.record.build(), plan.config)
    if unknown and notes is not None:
        shown = ", ".join(plain(key) for key in unknown[:10])
        notes.append(
            f"{plan.spec.folder}/config.json: keys that its class does not know are ignored: {shown}"
        )
    if quantize is not None and plan.spec.name == "denoiser" and quantize.gguf is not None:
        from ea_runtime.models.gguf_layers import load_gguf

        return load_gguf(
            lambda: build_from_config(plan), quantize.gguf, device=device, dtype=dtype, notes=notes
        )
    return load_module(
        lambda: build_from_config(plan),
        plan.weights,
        plan.label,
        device=device,
        dtype=dtype,
        notes=notes,
        put_layer=_layer_maker(quantize, plan.spec.name, dtype),
        waits=waits,
    )


def _finish_quantized(quantize: Quantize, loaded: Mapping[str, Any], dtype: torch.dtype | None) -> None:
    """Let layers in fp8 compute in `dtype`. Raises UserError for a part without a layer in the form asked for."""
    from ea_runtime.models.fp8 import compute_in
    from ea_runtime.models.quantize_layers import count_quantized

    for name, part in loaded.items():
        kind, network = quantize.of(name), getattr(part, "model", part)
        if kind == UNSCALED:
            compute_in(network, dtype)
        if kind is not None and not count_quantized(network):
            raise UserError(
                f"`quantize` {kind!r} found no layer of the {PARTS[name].title} that it can store in fewer bits; leave "
                "it out for this model"
            )


def _layer_maker(quantize: Quantize | None, part: str, dtype: torch.dtype | None) -> PutLayer | None:
    if quantize is None or quantize.of(part) is None:
        return None
    from ea_runtime.models.quantize_layers import layer_maker

    return layer_maker(quantize, part, dtype)


def load_module(
    build: Callable[[], nn.Module],
    weights: PartWeights,
    label: str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    notes: list[str] | None = None,
    put_layer: PutLayer | None = None,
    waits: bool = False,
) -> Any:
    """`build()` with `weights` read straight into it; the peak is one copy of the weights.

    waits: see `load_parts`. Raises UserError if tensors are missing or have another shape; appends what is ignored to
    `notes`.
    """
    from ea_runtime.models import meta

    model = meta.build_without_weights(build)
    comparison = meta.compare(model, weights.shapes)
    meta.require_fit(comparison, label)
    unexpected = meta.describe_unexpected(comparison, label)
    if unexpected and notes is not None:
        notes.append(unexpected)
    if waits:
        from ea_runtime.models.waiting import let_wait

        return let_wait(model, weights, comparison, label, dtype=dtype)
    return meta.fill(model, weights, comparison, device=device, dtype=dtype, put_layer=put_layer)


def build_from_config(plan: PartPlan) -> Any:
    """The part's class built from its config, whatever the config calls itself. Raises UserError."""
    if plan.spec.name == "text":
        return build_t5(plan.config)
    cls = plan.record.build()
    # private keys are the writing library's notes; `_class_name` is ours from here on
    config = {key: value for key, value in plan.config.items() if not key.startswith("_")}
    config = {key: value for key, value in config.items() if key not in unknown_keys(cls, config)}
    config["_class_name"] = cls.__name__
    try:
        return cls.from_config(config)
    except Exception as error:  # whatever a constructor raises for data from outside: the config is wrong
        raise _unfit(error, plan.spec, cls.__name__) from error


def build_t5(config: Mapping[str, Any]) -> Any:
    """The T5 encoder of this config, with random or no values. Raises UserError for a config that fits none."""
    from transformers.models.t5.configuration_t5 import T5Config

    from ea_runtime.text.t5 import T5Encoder

    spec = PARTS["text"]
    if config.get("model_type") != "t5":  # transformers asks for it when the folder is loaded
        raise UserError(f"{spec.folder}/config.json must have `model_type` 't5'; add it")
    try:
        return T5Encoder(T5Config.from_dict(dict(config)))
    except Exception as error:
        raise _unfit(error, spec, "T5EncoderModel") from error


def _unfit(error: Exception, spec: PartSpec, cls: str) -> UserError:
    if isinstance(error, UserError):
        return error
    reason = f"{type(error).__name__}: " * (not isinstance(error, ValueError)) + plain(error, 300)
    return UserError(f"{spec.folder}/config.json does not fit {cls}: {reason}")


def unknown_keys(cls: type, config: dict[str, Any]) -> list[str]:
    """The keys of `config` that `cls` has no argument for, sorted; published configs carry stray ones."""
    parameters = inspect.signature(cls.__init__).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    return sorted(key for key in config if not key.startswith("_") and key not in parameters)


def check_tokenizer(folder: Path) -> None:
    """Raises UserError if the tokenizer is missing, too large, or asks for code."""
    directory = inside(folder, "tokenizer")
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    if not {"spiece.model", "tokenizer.json"} & set(names):
        raise UserError(
            f"model folder {quote_path(folder)} has no tokenizer; expected tokenizer/spiece.model or "
            "tokenizer/tokenizer.json"
        )
    for name in names:
        path = inside(folder, f"tokenizer/{name}")
        if not is_file(path):
            if path.is_dir():
                continue
            raise UserError(
                f"tokenizer/{plain(name)} in model folder {quote_path(folder)} is no regular file"
            )
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise UserError(
                f"tokenizer/{plain(name)} has more than {MAX_TOKENIZER_BYTES:,} bytes; do not use this folder"
            )
        if name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            check_no_code(read_json(folder, f"tokenizer/{name}"), f"tokenizer/{name}")
