"""What ea_runtime itself brings through the hooks: samplers, the T5 text encoder, commands."""

from __future__ import annotations

from typing import Any

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import CommandRecord, SamplerRecord, StepCacheRecord, TextEncoderRecord


@hookimpl
def ea_samplers() -> list[SamplerRecord]:
    from ea_runtime.samplers import SAMPLERS

    return list(SAMPLERS)


@hookimpl
def ea_step_caches() -> list[StepCacheRecord]:
    from ea_runtime.step_cache import TEACACHE

    return [TEACACHE]


def _t5(folder: str, **settings: Any) -> Any:
    from ea_runtime.text import TextEncoder

    return TextEncoder.from_pretrained(folder, **settings)


@hookimpl
def ea_text_encoders() -> list[TextEncoderRecord]:
    return [
        TextEncoderRecord(
            "t5",
            "T5 encoder of transformers, 120 tokens, captions cleaned as V2 does",
            _t5,
            class_names=("T5EncoderModel",),
        )
    ]


def _generate() -> Any:
    from ea_runtime.cli.generate import app

    return app


def _plugins() -> Any:
    from ea_runtime.cli.plugins import app

    return app


def _models() -> Any:
    from ea_runtime.cli.models import app

    return app


def _train() -> Any:
    from ea_runtime.cli.train import app

    return app


def _bench() -> Any:
    from ea_runtime.cli.bench import app

    return app


@hookimpl
def ea_commands() -> list[CommandRecord]:
    return [
        CommandRecord("bench", "Turn benchmark results into a table and a plot.", _bench),
        CommandRecord("generate", "Make a video or a picture from a prompt.", _generate),
        CommandRecord("models", "List, check and convert model folders.", _models),
        CommandRecord("plugins", "List installed plugins and what they bring.", _plugins),
        CommandRecord("train", "Train a part of a model from a config file.", _train),
    ]
