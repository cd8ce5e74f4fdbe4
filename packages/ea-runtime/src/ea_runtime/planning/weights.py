"""The weights of a model on a device: bytes by part, in the form and the way in which they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ea_runtime.models.geometry import Geometry
from ea_runtime.models.quantize import Quantize, restored_bytes
from ea_runtime.planning.calibration import Calibration
from ea_runtime.planning.forecast import ALL_PARTS, Way
from ea_runtime.planning.parts import ITEMSIZE, Part

#: torchao, bitsandbytes, or diffusers' hooks with peft, and the parts of torch that they import; measured
QUANTIZE_PROGRAM = 190_000_000
#: the network that runs in a phase
_ACTIVE = {"text": "text", "encoding": "vae", "denoising": "denoiser", "decoding": "vae"}


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model on a device. dtype: of denoiser and text encoder. quantize: the forms of its weights."""

    parts: Mapping[str, Part]
    geometry: Geometry
    kind: str
    dtype: str
    calibration: Calibration
    quantize: Quantize | None = None

    @property
    def is_cpu(self) -> bool:
        """True if networks compute on the CPU."""
        return self.kind == "cpu"

    def weights(self, names: tuple[str, ...]) -> int:
        """Bytes of parts in their formats."""
        return sum(self.part_bytes(name) for name in names)

    def part_bytes(self, name: str) -> int:
        """Bytes of a part's weights, in the form that they are kept in."""
        return self.parts[name].bytes_in(self.dtype_of(name), self.form_of(name))

    def form_of(self, name: str) -> str | Path | None:
        """The form of a part's layers (models/quantize.py); None: numbers."""
        return None if self.quantize is None else self.quantize.of(name)

    def widened(self, name: str) -> int:
        """Bytes of the largest weight that a part brings back to its number format when a layer runs."""
        dtype = self.dtype_of(name)
        changed = self.parts[name].changed_layers(dtype, self.form_of(name))
        return max((rows * columns for rows, columns in changed.values()), default=0) * ITEMSIZE[dtype]

    def restored(self, name: str) -> int:
        """Bytes that a pass through a part moves to bring weights in fewer bits back to its number format."""
        form = self.form_of(name)
        layers = self.parts[name].changed_bytes(self.dtype_of(name), form)
        return 0 if form is None else sum(restored_bytes(form, stored, wide) for stored, wide in layers)

    @property
    def program(self) -> int:
        """Bytes of the packages that keep weights in fewer bits, while they are imported."""
        if self.quantize is None or any(part.is_loaded for part in self.parts.values()):
            return 0
        return QUANTIZE_PROGRAM if self.quantize.kinds else 0

    def dtype_of(self, name: str) -> str:
        """The number format of a part: with float16 the VAE runs in float32."""
        return "float32" if name == "vae" and self.dtype == "float16" else self.dtype

    def held(self, phase: str, way: Way) -> int:
        """Bytes of the weights on the device in a phase, at its widest moment."""
        active = _ACTIVE.get(phase)
        if way.offload == "none" or active is None:
            return self.weights(way.parts_in(phase))
        if way.offload == "model":
            return self.weights((active,))
        part, size = self.parts[active], ITEMSIZE[self.dtype_of(active)]
        if way.offload == "sequential":
            return max(part.largest * size // 2, 0)
        group = part.group * size + (
            part.largest if self.is_cpu and part.is_cast_to(self.dtype_of(active)) else 0
        )
        # on the CPU what does not wait is in memory all the time
        names = way.parts_in(phase) if self.is_cpu else (active,)
        return group + sum(self.resident(name) for name in names)

    def held_by_pipeline(self, offload: str) -> int:
        """Bytes of weights on the device between calls of a pipeline that is loaded."""
        if offload == "none":
            return self.weights(ALL_PARTS)
        return sum(self.resident(name) for name in ALL_PARTS) if self.is_cpu else 0

    def resident(self, name: str) -> int:
        """Bytes of the weights of a part that do not wait with group offloading."""
        part = self.parts[name]
        return (part.elements - part.waiting) * ITEMSIZE[self.dtype_of(name)]

    def fetched(self, name: str, way: Way) -> int:
        """Bytes that a pass through a part fetches."""
        if way.offload in ("none", "model"):
            return 0
        return self.parts[name].waiting * ITEMSIZE[self.dtype_of(name)]

    def unread(self) -> int:
        """Bytes of the table of words that no prompt touches: a mapped file is read where it is used."""
        return self.parts["text"].table * ITEMSIZE[self.dtype] if self.is_mapped else 0

    @property
    def is_mapped(self) -> bool:
        """True if the text encoder's weights are pages of their files."""
        text = self.parts["text"]
        return self.kind != "cuda" and not text.is_loaded and not text.is_cast_to(self.dtype)

    def unread_in(self, way: Way, phase: str) -> int:
        """As `unread`, in a phase that may hold no text encoder."""
        return self.unread() if "text" in way.parts_in(phase) and way.offload == "none" else 0
