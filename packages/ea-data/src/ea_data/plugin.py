"""What ea-data brings to the host."""

from __future__ import annotations

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import (
    CaptionerRecord,
    CommandRecord,
    DatasetRecord,
    FilterRecord,
    RecipeRecord,
    ScorerRecord,
    SplitterRecord,
)


@hookimpl
def ea_commands() -> list[CommandRecord]:
    return [
        CommandRecord(
            "data", "Draw training sets and check what a model made of their prompts.", "ea_data.commands:app"
        )
    ]


@hookimpl
def ea_recipes() -> list[RecipeRecord]:
    return [
        RecipeRecord(
            "text",
            "A small T5 encoder and its tokenizer, from the captions of drawn scenes",
            "ea_data.training.text_recipe:TextRecipe",
        )
    ]


@hookimpl
def ea_datasets() -> list[DatasetRecord]:
    return [
        DatasetRecord(
            "easyanimate",
            "EasyAnimate's JSON or CSV of pictures and videos",
            "ea_data.training.dataset:EasyAnimateSet",
        )
    ]


@hookimpl
def ea_splitters() -> list[SplitterRecord]:
    return [
        SplitterRecord(
            "scenedetect",
            "Cuts at scene changes, found in several passes; 3 to 10 seconds",
            "ea_data.split.scenes:build",
            "ea_data.split.scenes:SceneOptions",
        ),
        SplitterRecord(
            "whole", "Each file is one clip", "ea_data.split.whole:build", "ea_data.split.whole:WholeOptions"
        ),
    ]


@hookimpl
def ea_scorers() -> list[ScorerRecord]:
    rows = [
        ("probe", "Seconds, size and rate, from the record", "probe", "build", "NoOptions"),
        ("dis", "Motion: OpenCV's DIS flow, frame diagonals a second", "motion", "build_dis", "DisOptions"),
        (
            "farneback",
            "Motion: Farneback flow as EasyAnimate V2, pixels in half a second",
            "motion",
            "build_farneback",
            "NoOptions",
        ),
        (
            "raft",
            "Motion: RAFT flow, frame diagonals a second; local weights",
            "raft",
            "build",
            "RaftOptions",
        ),
        ("rapidocr", "Share of the frame that text covers", "text", "build", "RapidOcrOptions"),
        (
            "clip-aesthetic",
            "Aesthetic score: a head on CLIP; local weights",
            "aesthetic",
            "build",
            "ClipAestheticOptions",
        ),
        (
            "technical",
            "Sharpness, exposure, contrast and noise, 0 to 1",
            "technical",
            "build",
            "TechnicalOptions",
        ),
        ("duplicates", "Perceptual hash, for the filter `duplicate`", "duplicates", "build", "HashOptions"),
    ]
    return [
        ScorerRecord(name, summary, f"ea_data.score.{module}:{build}", f"ea_data.score.{module}:{options}")
        for name, summary, module, build, options in rows
    ]


@hookimpl
def ea_filters() -> list[FilterRecord]:
    rows = [
        (
            "threshold",
            "Keeps what lies within limits, of any score",
            "limits",
            "build_threshold",
            "LimitOptions",
        ),
        ("duration", "Keeps clips of so many seconds", "limits", "build_duration", "DurationOptions"),
        ("size", "Drops clips that are too small or too narrow", "limits", "build_size", "SizeOptions"),
        ("motion", "Drops clips that stand still or race", "limits", "build_motion", "MotionOptions"),
        ("text-area", "Drops clips with much text", "limits", "build_text_area", "TextAreaOptions"),
        (
            "aesthetic",
            "Keeps clips with a high aesthetic score",
            "limits",
            "build_aesthetic",
            "AestheticOptions",
        ),
        (
            "technical",
            "Drops clips that are blurred, dark, flat or noisy",
            "limits",
            "build_technical",
            "TechnicalOptions",
        ),
        ("duplicate", "Keeps the largest of clips that look alike", "duplicate", "build", "DuplicateOptions"),
    ]
    return [
        FilterRecord(name, summary, f"ea_data.filter.{module}:{build}", f"ea_data.filter.{module}:{options}")
        for name, summary, module, build, options in rows
    ]


@hookimpl
def ea_captioners() -> list[CaptionerRecord]:
    rows = [
        ("folder", "The text of the .txt beside the video", "files", "build_folder", "FolderOptions"),
        ("draw", "What was drawn, of drawn videos", "files", "build_draw", "NoOptions"),
        ("none", "No captions", "files", "build_none", "NoOptions"),
        ("openai", "Any OpenAI-compatible server: vLLM, SGLang", "openai", "build", "OpenAiOptions"),
        (
            "transformers",
            "A vision-language model that transformers knows, run here",
            "transformers",
            "build",
            "TransformersOptions",
        ),
    ]
    return [
        CaptionerRecord(
            name, summary, f"ea_data.caption.{module}:{build}", f"ea_data.caption.{module}:{options}"
        )
        for name, summary, module, build, options in rows
    ]
