"""What plugins hand to the host: frozen records whose `build` imports the heavy code only when called.

A record is cheap to make. Its `build` is a function that does its imports inside, so that listing every
plugin of an installation loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Record:
    """One named, replaceable part.

    name: what users type; lower case letters, digits, `-`, `_` and `+`, first a letter or digit.
    summary: one line for lists and help.
    build: makes the part; each subclass says from what and what comes back. Imports inside.
    options: the pydantic model of the part's settings, where it has any, or a function that returns it (so that
    listing plugins imports no pydantic).
    """

    name: str
    summary: str
    build: Callable[..., Any]
    options: type[BaseModel] | Callable[[], type[BaseModel]] | None = None

    def options_model(self) -> type[BaseModel] | None:
        """The pydantic model of the settings, or None."""
        return self.options if self.options is None or isinstance(self.options, type) else self.options()

    def __post_init__(self) -> None:
        allowed = isinstance(self.name, str) and re.fullmatch(r"[a-z0-9][a-z0-9_+-]*", self.name)
        if not allowed:
            raise ValueError(
                f"`name` of a {type(self).__name__} must be lower case letters, digits, '-', '_' or '+', "
                f"first a letter or digit, got {self.name!r}"
            )
        if not callable(self.build):
            raise ValueError(
                f"`build` of {type(self).__name__} {self.name!r} must be callable, got {self.build!r}"
            )
        if not isinstance(self.summary, str) or not self.summary or "\n" in self.summary:
            raise ValueError(
                f"`summary` of {type(self).__name__} {self.name!r} must be one line, got {self.summary!r}"
            )
        if not isinstance(getattr(self, "class_names", ()), tuple):
            raise ValueError(f"`class_names` of {type(self).__name__} {self.name!r} must be a tuple of names")


@dataclass(frozen=True, slots=True)
class SamplerRecord(Record):
    """`build(**scheduler_config)` returns a diffusers scheduler (set_timesteps, scale_model_input, step)."""


@dataclass(frozen=True, slots=True)
class StepCacheRecord(Record):
    """`build(threshold)` returns a callable that makes a cache of a number of network passes, one for each run.

    A cache is called as cache(signal, x, blocks) in place of blocks(x) and counts in `computed` and `skipped`.
    """


@dataclass(frozen=True, slots=True)
class VaeRecord(Record):
    """`build()` returns a video VAE class. `class_names`: the `_class_name`s of config.json that it loads.

    `export()` returns an `ea_runtime.export.parts.Exporter`: how the network is exported and run as graphs.
    """

    class_names: tuple[str, ...] = field(default=(), kw_only=True)
    export: Callable[[], Any] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class DenoiserRecord(Record):
    """`build()` returns a denoiser class. `class_names`: the `_class_name`s of config.json that it loads.

    `motion()`, for denoisers whose motion modules can be moved to another model, returns what has
    `extract_motion(model, output)` and `insert_motion(motion, model, output)`, each giving lines for the user.
    `export()` as of a VaeRecord.
    """

    class_names: tuple[str, ...] = field(default=(), kw_only=True)
    motion: Callable[[], Any] | None = field(default=None, kw_only=True)
    export: Callable[[], Any] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class TextEncoderRecord(Record):
    """`build(folder, device=, dtype=)` returns an encoder with `encode(prompts)`.

    `class_names`: the `architectures` of text_encoder/config.json that it loads. `export()` as of a VaeRecord;
    what it attaches stands in for the encoder's `model`.
    """

    class_names: tuple[str, ...] = field(default=(), kw_only=True)
    export: Callable[[], Any] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class RecipeRecord(Record):
    """`build()` returns a class that follows `ea_runtime.training.recipe.Recipe`."""


@dataclass(frozen=True, slots=True)
class DatasetRecord(Record):
    """`build()` returns a class that follows `ea_runtime.training.data.dataset.TrainingSet`."""


@dataclass(frozen=True, slots=True)
class PerceptualRecord(Record):
    """`build(weights, device=)` returns a module: two frames (N, 3, H, W) in -1..1 -> distances (N,).

    weights: the local file of its weights; without it the term is off, never random.
    """


@dataclass(frozen=True, slots=True)
class AdapterRecord(Record):
    """`build()` returns a callable `(pipeline, path, weight)` that puts an adapter file on a pipeline.

    What it returns has `summary` (one line: what matched), `weight` (may be set between runs) and `unload()`.
    """


@dataclass(frozen=True, slots=True)
class SplitterRecord(Record):
    """`build(options)` returns a callable that cuts one video file into spans."""


@dataclass(frozen=True, slots=True)
class ScorerRecord(Record):
    """`build(options)` returns a callable that turns a clip's frames into a score."""


@dataclass(frozen=True, slots=True)
class FilterRecord(Record):
    """`build(options)` returns a pure function of a clip's record: kept, or dropped with a reason."""


@dataclass(frozen=True, slots=True)
class CaptionerRecord(Record):
    """`build(options)` returns a callable that describes a clip in words."""


@dataclass(frozen=True, slots=True)
class EngineRecord(Record):
    """`build(model, bundle=, device=, dtype=)` returns an `ea_runtime.engines.base.Engine`: it loads a model's parts.

    needs_bundle: it runs what `ea export` wrote, and asks for the bundle's folder.
    """

    needs_bundle: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class CommandRecord(Record):
    """`build()` returns a typer.Typer: one command becomes `ea NAME`, several become `ea NAME ...`."""
