"""Every hook of ea, in one place. A plugin implements any of them with `hookimpl`.

A plugin is a module (or object) with functions of these names, found in three ways: an installed package
with an entry point of group `ea`, a local file given as `--plugin FILE.py`, or what ea itself ships.
A plugin runs with the rights of the user who starts ea: there is no sandbox. No hook is called per frame
or per step; each returns records (ea_runtime.records), whose `build` is called when the part is needed.
docs/hooks.md shows a running example of each.
"""

# pyright: reportReturnType=false
# (a spec has no body: only its name and its docstring count)

from __future__ import annotations

import pluggy

from ea_runtime.records import (
    AdapterRecord,
    CaptionerRecord,
    CommandRecord,
    DatasetRecord,
    DenoiserRecord,
    EngineRecord,
    FilterRecord,
    MetricRecord,
    PerceptualRecord,
    RecipeRecord,
    Record,
    SamplerRecord,
    ScorerRecord,
    SplitterRecord,
    StepCacheRecord,
    TextEncoderRecord,
    VaeRecord,
)

hookspec = pluggy.HookspecMarker("ea")
hookimpl = pluggy.HookimplMarker("ea")


@hookspec
def ea_samplers() -> list[SamplerRecord]:
    """Samplers: what `--sampler` and `pipe(sampler=)` accept."""


@hookspec
def ea_step_caches() -> list[StepCacheRecord]:
    """Step caches, approximate: what `--step-cache` and `pipe(step_cache=)` accept."""


@hookspec
def ea_vaes() -> list[VaeRecord]:
    """Video VAEs, found by the `_class_name` in a model folder's vae/config.json."""


@hookspec
def ea_denoisers() -> list[DenoiserRecord]:
    """Denoisers, found by the `_class_name` in a model folder's transformer/config.json."""


@hookspec
def ea_text_encoders() -> list[TextEncoderRecord]:
    """Text encoders, found by the architecture in a model folder's text_encoder/config.json."""


@hookspec
def ea_recipes() -> list[RecipeRecord]:
    """Training recipes: what `ea train NAME CONFIG` accepts."""


@hookspec
def ea_datasets() -> list[DatasetRecord]:
    """Training sets: what `data.format` of a training config accepts."""


@hookspec
def ea_perceptual_losses() -> list[PerceptualRecord]:
    """Perceptual distances for training a VAE: what `loss.perceptual_name` accepts."""


@hookspec
def ea_adapters() -> list[AdapterRecord]:
    """Adapters that change a loaded pipeline, such as LoRA: what `ea generate --lora` uses."""


@hookspec
def ea_splitters() -> list[SplitterRecord]:
    """Splitters: how raw video is cut into clips."""


@hookspec
def ea_scorers() -> list[ScorerRecord]:
    """Scorers: numbers about a clip, for filters to compare."""


@hookspec
def ea_filters() -> list[FilterRecord]:
    """Filters: verdicts over a clip's scores."""


@hookspec
def ea_captioners() -> list[CaptionerRecord]:
    """Captioners: words for a clip."""


@hookspec
def ea_metrics() -> list[MetricRecord]:
    """Metrics of finished videos: what `ea eval --metric` accepts."""


@hookspec
def ea_engines() -> list[EngineRecord]:
    """Engines: what runs the networks."""


@hookspec
def ea_commands() -> list[CommandRecord]:
    """Commands of the `ea` program."""


#: kind (as in `ea plugins`) -> (hook name, record class)
KINDS: dict[str, tuple[str, type[Record]]] = {
    "samplers": ("ea_samplers", SamplerRecord),
    "step_caches": ("ea_step_caches", StepCacheRecord),
    "vaes": ("ea_vaes", VaeRecord),
    "denoisers": ("ea_denoisers", DenoiserRecord),
    "text_encoders": ("ea_text_encoders", TextEncoderRecord),
    "recipes": ("ea_recipes", RecipeRecord),
    "datasets": ("ea_datasets", DatasetRecord),
    "perceptual_losses": ("ea_perceptual_losses", PerceptualRecord),
    "adapters": ("ea_adapters", AdapterRecord),
    "splitters": ("ea_splitters", SplitterRecord),
    "scorers": ("ea_scorers", ScorerRecord),
    "filters": ("ea_filters", FilterRecord),
    "captioners": ("ea_captioners", CaptionerRecord),
    "metrics": ("ea_metrics", MetricRecord),
    "engines": ("ea_engines", EngineRecord),
    "commands": ("ea_commands", CommandRecord),
}
