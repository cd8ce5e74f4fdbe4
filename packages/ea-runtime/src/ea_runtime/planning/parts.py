"""Facts of a model's parts that a forecast needs: from headers and configs, or from modules that are loaded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ea_runtime.errors import UserError
from ea_runtime.files.safe import inside, plain
from ea_runtime.models.config import check_config
from ea_runtime.models.geometry import takes_picture
from ea_runtime.models.gguf_header import gguf_bytes
from ea_runtime.models.layout import IMAGE_ENCODER, PARTS, class_name
from ea_runtime.models.loading import read_part_config
from ea_runtime.models.memory.denoiser import DenoiserShape, LoraRanks
from ea_runtime.models.memory.meter import Meter
from ea_runtime.models.memory.text import walk_text
from ea_runtime.models.memory.vae import VaeShape
from ea_runtime.models.quantize import stored_bytes, takes
from ea_runtime.models.weights import DTYPES, find_weights, read_header

#: bytes of an element by number format
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


#: an item of a list, in a tensor's name
_ITEM = re.compile(r".*?\.\d+(?=\.)")
#: other layers wait from this size on
LARGE_ELEMENTS = 1 << 18


class NoForecastError(UserError):
    """The memory of a network of this class is not known."""


@dataclass(frozen=True, slots=True)
class Part:
    """A network.

    elements: of all its tensors. wide: those that stay float32 in float16. table: those of T5's table of words, of
    which a prompt reads a few rows. stored: bytes by file. largest: bytes of the largest tensor in its file. dtypes:
    of its tensors ("F16"). layers: weights that can have another form, rows and columns by name. held: bytes of a part
    in memory that has one. waiting: of the blocks and large layers that wait in their files with group offloading
    (models/waiting.py). group: of the largest of these. groups: how many there are.
    """

    name: str
    config: Mapping[str, Any]
    elements: int
    wide: int = 0
    table: int = 0
    stored: tuple[int, ...] = ()
    largest: int = 0
    dtypes: tuple[str, ...] = ()
    is_loaded: bool = False
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    held: int = 0
    waiting: int = 0
    group: int = 0
    groups: int = 0

    def bytes_in(self, dtype: str, form: str | Path | None = None) -> int:
        """Bytes of the weights in a number format; form: of its layers' weights (models/quantize.py)."""
        if self.held:
            return self.held
        wide = self.wide if dtype == "float16" else 0
        total = (self.elements - wide) * ITEMSIZE[dtype] + wide * 4
        layers = self.changed_bytes(dtype, form)
        return total + sum(stored - numbers for stored, numbers in layers)

    def changed_bytes(self, dtype: str, form: str | Path | None) -> list[tuple[int, int]]:
        """Of each weight that has another form: its bytes in it, and in the number format."""
        stored = gguf_bytes(form) if isinstance(form, Path) else {}
        return [
            (
                stored[name] if isinstance(form, Path) else stored_bytes(str(form), shape),
                shape[0] * shape[1] * ITEMSIZE[dtype],
            )
            for name, shape in self.changed_layers(dtype, form).items()
        ]

    def changed_layers(self, dtype: str, form: str | Path | None) -> dict[str, tuple[int, ...]]:
        """The weights that have another form than the number format, by name, with rows and columns."""
        if form is None:
            return {}
        stored = gguf_bytes(form) if isinstance(form, Path) else self.layers
        is_half = dtype == "float16"
        found = {n: s for n, s in self.layers.items() if takes(self.name, n, s, is_half=is_half)}
        return {name: shape for name, shape in found.items() if name in stored}

    def is_cast_to(self, dtype: str) -> bool:
        """True if loading makes another copy of the tensors, in this format."""
        return any(DTYPES[name][0] != dtype for name in self.dtypes)


def read_parts(folder: Path) -> dict[str, Part]:
    """The parts of a model folder, with V3's picture encoder if it has one.

    Raises UserError for what cannot be loaded, or is of an unknown class.
    """
    parts = {name: _read_part(folder, name) for name in PARTS}
    if takes_picture(parts["denoiser"].config) and inside(folder, IMAGE_ENCODER).is_dir():
        from ea_runtime.models.image_encoder import plan_image_encoder  # imports numpy

        plan = plan_image_encoder(folder)
        entries = plan.weights.tensors.values()
        parts[IMAGE_ENCODER] = Part(
            IMAGE_ENCODER,
            plan.vision.model_dump(),
            elements=sum(entry.count for entry in entries),
            stored=(sum(entry.end - entry.begin for entry in entries),),
        )
    return parts


def _read_part(folder: Path, name: str) -> Part:
    spec = PARTS[name]
    config = read_part_config(folder, spec)
    found = class_name(config, spec)
    if found not in spec.class_names:
        raise NoForecastError(
            f"memory is known for a {spec.title} of class {' or '.join(spec.class_names)}, {spec.folder}/config.json "
            f"names {found!r}"
        )
    weights = find_weights(folder, spec.folder)
    check_config(config, f"{spec.folder}/config.json", len(weights.tensors))
    _check_shape(name, config)
    tensors = dict(weights.tensors)
    if name == "text" and {"shared.weight", "encoder.embed_tokens.weight"} <= set(tensors):
        del tensors["encoder.embed_tokens.weight"]  # the same table under both names
    by_file = dict.fromkeys(weights.files, 0)
    for entry in weights.tensors.values():
        by_file[entry.file] += entry.end - entry.begin
    waiting = _groups({key: entry.count for key, entry in tensors.items()})
    return Part(
        name,
        config,
        elements=sum(entry.count for entry in tensors.values()),
        wide=sum(e.count for key, e in tensors.items() if name == "text" and ".wo." in key),
        table=max(
            (e.count for key, e in tensors.items() if "shared" in key or "embed_tokens" in key), default=0
        ),
        stored=tuple(by_file.values()),
        largest=max((e.end - e.begin for e in tensors.values()), default=0),
        dtypes=tuple(weights.dtypes),
        layers={key: e.shape for key, e in tensors.items() if takes(name, key, e.shape)},
        waiting=sum(waiting),
        group=max(waiting, default=0),
        groups=len(waiting),
    )


def _groups(counts: Mapping[str, int]) -> list[int]:
    """Elements of the groups that wait, of tensors by name."""
    sizes: Counter[str] = Counter()
    for name, count in counts.items():
        item = _ITEM.match(name)
        sizes[name.rpartition(".")[0] if item is None else item[0]] += count
    return [size for name, size in sizes.items() if _ITEM.match(f"{name}.") or size >= LARGE_ELEMENTS]


def _check_shape(name: str, config: dict[str, Any]) -> None:
    """Raises UserError for a config whose numbers are none."""
    spec = PARTS[name]
    try:
        if name == "text":
            walk_text(Meter(), config)
            return
        shape = (VaeShape if name == "vae" else DenoiserShape).of(config)
        numbers = [value for value in asdict(shape).values() if type(value) is int]
        if min(numbers) < 0:
            raise ValueError("a number is below 0")
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(
            f"{spec.folder}/config.json does not fit a {spec.title}: {plain(error, 120)}; `ea models check` says more"
        ) from error


def loaded_part(name: str, module: Any, config: Mapping[str, Any]) -> Part:
    """A part that is in memory already. module: anything with `parameters` and `buffers`, or none of them."""
    tensors = {id(t): t for kind in ("parameters", "buffers") for t in getattr(module, kind, lambda: ())()}
    counts: dict[str, int] = {}
    for kind in ("named_parameters", "named_buffers"):
        counts |= {key: int(t.numel()) for key, t in getattr(module, kind, lambda: ())()}
    elements = sum(int(t.numel()) for t in tensors.values())
    waiting = _groups(counts)
    # a layer knows its width also where its weight is packed in another shape
    widths = {
        f"{key}.weight": (layer.out_features, layer.in_features)
        for key, layer in getattr(module, "named_modules", lambda: ())()
        if hasattr(layer, "in_features") and hasattr(layer, "out_features")
    }
    layers = {key: shape for key, shape in widths.items() if takes(name, key, shape)}
    return Part(
        name,
        config,
        elements=elements,
        is_loaded=True,
        layers=layers,
        waiting=sum(waiting),
        group=max(waiting, default=0),
        groups=len(waiting),
    )


_RANK = re.compile(r"(?:lora_down|lora_A)(?:\.default)?\.weight$")


def read_lora(path: Path) -> tuple[LoraRanks, int]:
    """The ranks of a LoRA's layers by place, from its header, and its bytes. Raises UserError."""
    files = (
        [path]
        if path.is_file()
        else sorted([*path.glob("*.safetensors"), *path.glob("text_encoder/*.safetensors")])
    )
    ranks: dict[str, int] = dict.fromkeys(("attention", "mlp", "motion", "motion_mlp", "text"), 0)
    total = 0
    for file in files:
        header = read_header(file)
        total += header.num_bytes
        for key, entry in header.tensors.items():
            if not _RANK.search(key) or not entry.shape:
                continue
            place = _place(re.sub(r"[.]", "_", key))
            if place:
                ranks[place] = max(ranks[place], entry.shape[0])
    return LoraRanks(**ranks), total


def _place(key: str) -> str | None:
    is_motion = "attn_temporal" in key or "temporal_transformer" in key
    if "_ff_net" in key:
        return "motion_mlp" if is_motion else "mlp"
    if is_motion:
        return "motion"
    return "attention" if "_attn1_" in key else "text" if "_attn2_" in key else None


def joined(ranks: list[LoraRanks]) -> LoraRanks:
    """Several LoRAs on one model: the ranks add up."""
    names = LoraRanks.__dataclass_fields__
    return LoraRanks(**{name: sum(getattr(one, name) for one in ranks) for name in names})
