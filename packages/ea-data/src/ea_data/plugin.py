"""Commands, recipes, data sets and components that ea-data brings to the host."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import (
    CaptionerRecord,
    CommandRecord,
    DatasetRecord,
    FilterRecord,
    MetricRecord,
    Named,
    RecipeRecord,
    ScorerRecord,
    SplitterRecord,
)

R = TypeVar("R")

#: (name, "module:class", class of the options, summary) of each component
_SPLITTERS = (
    (
        "transnetv2",
        "transnet:TransNetSplitter",
        "TransNetOptions",
        "Cuts between shots, gradual ones too, by the network TransNet V2; 3 to 10 seconds",
    ),
    (
        "adaptive",
        "adaptive:AdaptiveSplitter",
        "AdaptiveOptions",
        "Cuts where the picture changes far more than around; 3 to 10 seconds",
    ),
    (
        "scenedetect",
        "scenes:SceneSplitter",
        "SceneOptions",
        "Cuts at scene changes, found in several passes; 3 to 10 seconds",
    ),
    ("whole", "whole:WholeSplitter", "WholeOptions", "Each file is one clip"),
)
_SCORERS = (
    ("probe", "probe:ProbeScorer", "NoOptions", "Seconds, size and rate, from the record"),
    ("dis", "motion:DisScorer", "DisOptions", "Motion: OpenCV's DIS flow, frame diagonals a second"),
    (
        "farneback",
        "motion:FarnebackScorer",
        "NoOptions",
        "Motion: Farneback flow as EasyAnimate V2, pixels in half a second",
    ),
    ("raft", "raft:RaftScorer", "RaftOptions", "Motion: RAFT flow, frame diagonals a second; local weights"),
    ("rapidocr", "text:RapidOcrScorer", "RapidOcrOptions", "Share of the frame that text covers"),
    (
        "clip-aesthetic",
        "aesthetic:ClipAestheticScorer",
        "ClipAestheticOptions",
        "Aesthetic score: a head on CLIP; local weights",
    ),
    (
        "technical",
        "technical:TechnicalScorer",
        "TechnicalOptions",
        "Sharpness, exposure, contrast and noise, 0 to 1",
    ),
    (
        "compression",
        "compression:CompressionScorer",
        "CompressionOptions",
        "Blocking, mush and up-scaling, 0 to 1",
    ),
    (
        "duplicates",
        "duplicates:SignatureScorer",
        "SignatureOptions",
        "Small pictures of a clip, for `duplicate`",
    ),
)
_FILTERS = (
    ("threshold", "limits:LimitFilter", "LimitOptions", "Keeps what lies within limits, of any score"),
    ("duration", "limits:build_duration", "DurationLimits", "Keeps clips of so many seconds"),
    ("size", "limits:SizeFilter", "SizeOptions", "Drops clips that are too small or too narrow"),
    ("motion", "limits:build_motion", "MotionLimits", "Drops clips that stand still or race"),
    ("text-area", "limits:build_text_area", "TextAreaLimits", "Drops clips with much text"),
    ("aesthetic", "limits:build_aesthetic", "AestheticLimits", "Keeps clips with a high aesthetic score"),
    (
        "technical",
        "limits:build_technical",
        "TechnicalLimits",
        "Drops clips that are blurred, dark, flat or noisy",
    ),
    (
        "compression",
        "limits:build_compression",
        "CompressionLimits",
        "Drops clips that are blocky, mushy or scaled up",
    ),
    (
        "duplicate",
        "duplicate:DuplicateFilter",
        "DuplicateOptions",
        "Keeps the best of clips that show the same",
    ),
)
_CAPTIONERS = (
    ("folder", "files:FolderCaptioner", "FolderOptions", "The text of the .txt next to the video"),
    ("draw", "files:DrawCaptioner", "NoOptions", "What was drawn, of drawn videos"),
    ("none", "files:NoneCaptioner", "NoOptions", "No captions"),
    ("openai", "openai:OpenAiCaptioner", "OpenAiOptions", "Any OpenAI-compatible server: vLLM, SGLang"),
    (
        "transformers",
        "transformers:TransformersCaptioner",
        "TransformersOptions",
        "A vision-language model that transformers knows, run here",
    ),
)


def _records(kind: Callable[..., R], folder: str, rows: Iterable[tuple[str, ...]]) -> list[R]:
    found = []
    for name, built, options, summary in rows:
        module = f"ea_data.{folder}.{built.partition(':')[0]}"
        found.append(kind(name, summary, f"ea_data.{folder}.{built}", f"{module}:{options}"))
    return found


@hookimpl
def ea_commands() -> list[CommandRecord]:
    summary = "Prepare raw video for training: scan, split, score, filter, caption."
    return [CommandRecord("data", summary, "ea_data.commands:app")]


@hookimpl
def ea_recipes() -> list[RecipeRecord]:
    summary = "A small T5 encoder and its tokenizer, from the captions of drawn scenes"
    return [RecipeRecord("text", summary, "ea_data.training.text_recipe:TextRecipe")]


@hookimpl
def ea_datasets() -> list[DatasetRecord]:
    summary = "EasyAnimate's JSON or CSV of pictures and videos"
    return [DatasetRecord("easyanimate", summary, "ea_data.training.dataset:EasyAnimateSet")]


@hookimpl
def ea_splitters() -> list[SplitterRecord]:
    return _records(SplitterRecord, "split", _SPLITTERS)


@hookimpl
def ea_scorers() -> list[ScorerRecord]:
    return _records(ScorerRecord, "score", _SCORERS)


@hookimpl
def ea_filters() -> list[FilterRecord]:
    return _records(FilterRecord, "filter", _FILTERS)


@hookimpl
def ea_captioners() -> list[CaptionerRecord]:
    return _records(CaptionerRecord, "caption", _CAPTIONERS)


@hookimpl
def ea_metrics() -> list[MetricRecord]:
    return [
        MetricRecord(
            "warping",
            "Change from frame to frame that motion does not explain",
            "ea_data.score.warping:Warping",
            "ea_data.score.warping:WarpingOptions",
            better="lower",
            unit="levels",
        ),
        MetricRecord(
            "adherence",
            "Share of what a prompt of drawn scenes names that is shown",
            Named("ea_data.draw.adherence:adherence"),
        ),
        MetricRecord(
            "aesthetic",
            "Aesthetic score: a head on CLIP",
            "ea_data.score.aesthetic:Aesthetic",
            "ea_data.score.aesthetic:ClipAestheticOptions",
            needs_weights=True,
        ),
    ]
