"""Records that plugins return to the host, frozen; their `build` imports the heavy code only when called.

A record is cheap to make, and listing every plugin of an installation loads no torch: `build` is a function that does
its imports inside, or names what it wants as an entry point does, "module:name", imported when it is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class Named:
    """The object that "module:name", or "module", names. A call returns it, or with `is_called` calls it."""

    reference: str
    is_called: bool = False

    def __call__(self, *args: Any, **settings: Any) -> Any:
        module, _, name = self.reference.partition(":")
        found: Any = import_module(module)
        for part in name.split(".") if name else ():
            found = getattr(found, part)
        return found(*args, **settings) if self.is_called else found


@dataclass(frozen=True, slots=True)
class Record:
    """One named, replaceable part.

    name: what users type; lower case letters, digits, `-`, `_` and `+`, first a letter or digit.
    summary: one line for lists and help.
    build: makes the part; each subclass says from what and what comes back. A function, or the "module:name" of what
    `build()` returns, or of the function where `build` takes arguments; read back, it can be called.
    options: the pydantic model of the part's settings, if it has any; or a function that returns it, or its
    "module:name", so that listing plugins imports no pydantic.
    """

    name: str
    summary: str
    build: Any
    options: type[BaseModel] | Callable[[], type[BaseModel]] | str | None = None

    #: `build` takes arguments
    is_called: ClassVar[bool] = True

    def options_model(self) -> type[BaseModel] | None:
        """The pydantic model of the settings, or None."""
        options = Named(self.options) if isinstance(self.options, str) else self.options
        return options if options is None or isinstance(options, type) else options()

    def __post_init__(self) -> None:
        for attribute in ("build", "export", "motion"):
            reference = getattr(self, attribute, None)
            if isinstance(reference, str):
                if not re.fullmatch(r"[\w.]+(:[\w.]+)?", reference):
                    raise ValueError(
                        f"`{attribute}` of {type(self).__name__} {self.name!r} must be a function or "
                        f"'module:name', got {reference!r}"
                    )
                named = Named(reference, attribute == "build" and self.is_called)
                object.__setattr__(self, attribute, named)
        allowed = isinstance(self.name, str) and re.fullmatch(r"[a-z0-9][a-z0-9_+-]*", self.name)
        if not allowed:
            raise ValueError(
                f"`name` of a {type(self).__name__} must be lower case letters, digits, '-', '_' or '+', "
                f"first a letter or digit, got {self.name!r}"
            )
        if not callable(self.build):
            raise ValueError(
                f"`build` of {type(self).__name__} {self.name!r} must be callable or 'module:name', got {self.build!r}"
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

    is_called: ClassVar[bool] = False
    class_names: tuple[str, ...] = field(default=(), kw_only=True)
    export: Any = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class DenoiserRecord(Record):
    """`build()` returns a denoiser class. `class_names`: the `_class_name`s of config.json that it loads.

    `motion()`, for denoisers whose motion modules can be moved to another model, returns what has
    `extract_motion(model, output)` and `insert_motion(motion, model, output)`, each giving lines for the user.
    `export()` as of a VaeRecord.
    """

    is_called: ClassVar[bool] = False
    class_names: tuple[str, ...] = field(default=(), kw_only=True)
    motion: Any = field(default=None, kw_only=True)
    export: Any = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class TextEncoderRecord(Record):
    """`build(folder, device=, dtype=)` returns an encoder with `encode(prompts)`.

    `class_names`: the `architectures` of text_encoder/config.json that it loads. `export()` as of a VaeRecord;
    what it attaches replaces the encoder's `model`.
    """

    class_names: tuple[str, ...] = field(default=(), kw_only=True)
    export: Any = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class RecipeRecord(Record):
    """`build()` returns a class that follows `ea_runtime.training.recipe.Recipe`."""

    is_called: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class DatasetRecord(Record):
    """`build()` returns a class that follows `ea_runtime.training.data.dataset.TrainingSet`."""

    is_called: ClassVar[bool] = False


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

    is_called: ClassVar[bool] = False


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
class MetricRecord(Record):
    """`build(options)` returns an `ea_runtime.evaluation.metric.Metric`, or a `SetMetric` where `of` is "set".

    better: "higher" or "lower". unit: of its values, such as "dB". of: "video", "pair" (of one name in two folders) or
    "set" (all videos of two folders). needs_weights: it has a network, whose files the options name; it is measured
    only if asked for, and in one process.
    """

    better: str = field(default="higher", kw_only=True)
    unit: str = field(default="", kw_only=True)
    of: str = field(default="video", kw_only=True)
    needs_weights: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        # `super()` has no class to start from in a dataclass with slots
        Record.__post_init__(self)
        for attribute, allowed in (("better", ("higher", "lower")), ("of", ("video", "pair", "set"))):
            if getattr(self, attribute) not in allowed:
                raise ValueError(
                    f"`{attribute}` of MetricRecord {self.name!r} must be one of {', '.join(allowed)}, "
                    f"got {getattr(self, attribute)!r}"
                )


@dataclass(frozen=True, slots=True)
class EngineRecord(Record):
    """`build(model, bundle=, device=, dtype=)` returns an `ea_runtime.engines.base.Engine`: it loads a model's parts.

    needs_bundle: it runs what `ea export` wrote, and asks for the bundle's folder.
    """

    needs_bundle: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class CommandRecord(Record):
    """`build()` returns a typer.Typer: one command becomes `ea NAME`, several become `ea NAME ...`."""

    is_called: ClassVar[bool] = False
