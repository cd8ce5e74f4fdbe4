"""Engines: each loads a model's parts in a form that the pipeline can use, whatever runs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ea_runtime.engines.weights import ExportedWeights
from ea_runtime.errors import UserError
from ea_runtime.export.bundle import Bundle, GraphInfo, open_bundle, weight_names
from ea_runtime.export.parts import EXPORT_PARTS, Size
from ea_runtime.models.layout import PARTS, read_defaults, resolve_folder
from ea_runtime.models.loading import Parts


class Engine(Protocol):
    """Made by an EngineRecord's `build(model, bundle=, device=, dtype=)`."""

    def load(self, parts: Iterable[str]) -> Parts:
        """VAE, denoiser and text encoder as the pipeline uses them. Raises UserError."""
        ...

    def describe(self) -> str:
        """The device and library that it really runs on, in one line."""
        ...

    def check(self, num_frames: int, height: int, width: int) -> None:
        """Raises UserError, before any work, for a video that it cannot make."""
        ...


#: runs one graph: inputs -> outputs, float32 on the CPU
Session = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass
class PartRun:
    """A part's graphs, each opened when it is first run and again when its weights change."""

    size: Size
    infos: Mapping[str, GraphInfo]
    open: Callable[[GraphInfo, Mapping[str, Tensor]], Session]
    names: Callable[[GraphInfo], set[str]]
    weights: ExportedWeights | None = None
    sessions: dict[str, tuple[int, Session]] = field(default_factory=dict)

    @property
    def graphs(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """See export.parts.Run."""
        return {name: {one.name: one.shape for one in info.inputs} for name, info in self.infos.items()}

    def __call__(self, graph: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See export.parts.Run. Raises UserError for a graph that is not there."""
        if graph not in self.infos:
            raise UserError(f"the bundle has no graph {graph!r}, it has {', '.join(sorted(self.infos))}")
        version = 0 if self.weights is None else self.weights.version
        if graph not in self.sessions or self.sessions[graph][0] != version:
            self.sessions.pop(graph, None)  # two sets of weights need not be in memory
            overrides = {} if self.weights is None else self.weights.merged()
            if overrides:
                held = self.names(self.infos[graph])
                overrides = {name: tensor for name, tensor in overrides.items() if name in held}
            self.sessions[graph] = (version, self.open(self.infos[graph], overrides))
        return self.sessions[graph][1](inputs)


class ExportedEngine:
    """An engine that runs a bundle; subclasses say how one graph is opened (`open_graph`)."""

    target = ""

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        bundle: str | os.PathLike[str] | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if bundle is None:
            raise UserError(
                f"engine {self.target!r} runs a bundle, got none; make one with `ea export --{self.target}` and give"
                " its folder (`--bundle`, bundle=)"
            )
        from ea_runtime.export.trace import DTYPES

        self.folder = resolve_folder(model)
        self.device = device
        self.bundle: Bundle = open_bundle(bundle, self.target)
        self.dtype = DTYPES[self.bundle.dtype]
        self._check_model()
        self._check_dtype(dtype)

    def open_graph(self, info: GraphInfo, overrides: Mapping[str, Tensor]) -> Session:
        """A session over one graph; overrides: weights in place of the bundle's."""
        raise NotImplementedError

    def describe(self) -> str:
        """The device and library that it really runs on, in one line."""
        raise NotImplementedError

    def check(self, num_frames: int, height: int, width: int) -> None:
        """See Engine."""
        size = self.bundle.size
        if (num_frames, height, width) != (size.num_frames, size.height, size.width):
            got = "a picture" if num_frames == 1 else f"{num_frames} frames"
            raise UserError(
                f"this bundle makes {size.words()}, got {got} of {width}x{height}; export one of that size"
                f" (--size {width}x{height} --num-frames {num_frames})"
            )

    def load(self, parts: Iterable[str]) -> Parts:
        """The parts asked for. Each must be in the bundle: PyTorch never runs one in its place unasked."""
        from ea_runtime.export.networks import open_source
        from ea_runtime.text.encoder import TextEncoder
        from ea_runtime.text.tokenizer import load_tokenizer

        wanted = tuple(parts)
        loaded: dict[str, Any] = {}
        for name in wanted:
            held = [part for part in self.bundle.parts if EXPORT_PARTS[part] == name]
            if not held:
                missing = next(part for part, owner in EXPORT_PARTS.items() if owner == name)
                raise UserError(
                    f"the bundle has no {missing}, it has {', '.join(self.bundle.parts)}; export it, too"
                )
            source = open_source(self.folder, name)
            weights = None if name == "vae" else ExportedWeights(source, self.dtype)
            runs = {part: self._run(part, weights) for part in held}
            attached = source.exporter.attach(source.network, runs)
            attached.weights = weights
            loaded[name] = attached
            if name == "text":
                loaded[name] = TextEncoder(attached, load_tokenizer(Path(self.folder) / "tokenizer"))
        scheduler_config, defaults = read_defaults(self.folder)
        size = self.bundle.size
        own = {"num_frames": size.num_frames, "height": size.height, "width": size.width}
        return Parts(self.folder, scheduler_config, defaults.model_copy(update=own), **loaded)

    def _run(self, part: str, weights: ExportedWeights | None) -> PartRun:
        infos = {graph.name: graph for graph in self.bundle.graphs if graph.part == part}
        return PartRun(
            self.bundle.size, infos, self.open_graph, partial(weight_names, self.bundle.folder), weights
        )

    def _check_model(self) -> None:
        from ea_runtime.models.hash import part_digest

        for name, digest in self.bundle.part_hashes.items():
            if name not in PARTS or part_digest(self.folder, name) != digest:
                raise UserError(
                    f"the bundle was made from another model than {str(self.folder)!r}: its {name} differs"
                    f" (the bundle says {self.bundle.model!r}); give that model, or export this one"
                )

    def _check_dtype(self, dtype: Any) -> None:
        from ea_runtime.machine.device import check_dtype_name

        if dtype is None or dtype == "auto":
            return
        name = check_dtype_name(dtype) if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
        held = str(self.dtype).removeprefix("torch.")
        if name != held:
            raise UserError(
                f"`dtype` is {name}, but this bundle computes in {held}; leave it out, or export another"
            )


def exported_weights(pipe: Any) -> dict[str, ExportedWeights]:
    """Weights of a pipeline's exported networks by part ("denoiser", "text"); empty if PyTorch runs them.

    For adapters: `ExportedWeights.network` is what they can be put on, `add` puts them there.
    """
    found = {}
    for name, part in (("denoiser", getattr(pipe, "denoiser", pipe)), ("text", getattr(pipe, "text", None))):
        weights = getattr(part, "weights", None) or getattr(getattr(part, "model", None), "weights", None)
        if isinstance(weights, ExportedWeights):
            found[name] = weights
    return found
