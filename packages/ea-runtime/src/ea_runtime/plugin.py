"""What ea_runtime itself brings through the hooks: samplers, the T5 text encoder, engines, commands."""

from __future__ import annotations

from typing import Any

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import CommandRecord, EngineRecord, SamplerRecord, StepCacheRecord, TextEncoderRecord


@hookimpl
def ea_samplers() -> list[SamplerRecord]:
    from ea_runtime.samplers import SAMPLERS

    return list(SAMPLERS)


@hookimpl
def ea_step_caches() -> list[StepCacheRecord]:
    from ea_runtime.generation.step_cache import TEACACHE

    return [TEACACHE]


def _t5(folder: str, **settings: Any) -> Any:
    from ea_runtime.text.encoder import TextEncoder

    return TextEncoder.from_pretrained(folder, **settings)


def _t5_export() -> Any:
    from ea_runtime.export import t5

    return t5


@hookimpl
def ea_text_encoders() -> list[TextEncoderRecord]:
    return [
        TextEncoderRecord(
            "t5",
            "T5 encoder of transformers, 120 tokens, captions cleaned as V2 does",
            _t5,
            class_names=("T5EncoderModel",),
            export=_t5_export,
        )
    ]


def _generate() -> Any:
    from ea_runtime.cli.generate.command import app

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


def _doctor() -> Any:
    from ea_runtime.cli.doctor import app

    return app


def _torch_engine(model: Any, **settings: Any) -> Any:
    from ea_runtime.engines.torch_engine import TorchEngine

    return TorchEngine(model, **settings)


def _onnx_engine(model: Any, **settings: Any) -> Any:
    from ea_runtime.engines.onnx_engine import OnnxEngine

    return OnnxEngine(model, **settings)


def _trt_engine(model: Any, **settings: Any) -> Any:
    from ea_runtime.engines.tensorrt_engine import TensorRtEngine

    return TensorRtEngine(model, target="trt", **settings)


def _trt_rtx_engine(model: Any, **settings: Any) -> Any:
    from ea_runtime.engines.tensorrt_engine import TensorRtEngine

    return TensorRtEngine(model, target="trt-rtx", **settings)


@hookimpl
def ea_engines() -> list[EngineRecord]:
    return [
        EngineRecord("torch", "PyTorch: the model folder as it is", _torch_engine),
        EngineRecord(
            "onnx",
            "ONNX Runtime on a CPU or an NVIDIA GPU (`ea export --onnx`)",
            _onnx_engine,
            needs_bundle=True,
        ),
        EngineRecord("trt", "TensorRT engines (`ea export --trt`)", _trt_engine, needs_bundle=True),
        EngineRecord(
            "trt-rtx", "TensorRT-RTX engines (`ea export --trt-rtx`)", _trt_rtx_engine, needs_bundle=True
        ),
    ]


def _export() -> Any:
    from ea_runtime.cli.export import app

    return app


def _bundles() -> Any:
    from ea_runtime.cli.bundles import app

    return app


@hookimpl
def ea_commands() -> list[CommandRecord]:
    return [
        CommandRecord("bench", "Turn benchmark results into a table and a plot.", _bench),
        CommandRecord("bundles", "List, check and accept exported bundles.", _bundles),
        CommandRecord(
            "doctor", "Check this machine: torch, number formats, devices, codecs, memory.", _doctor
        ),
        CommandRecord("export", "Export a model to ONNX or TensorRT, with a parity report.", _export),
        CommandRecord("generate", "Make a video or a picture from a prompt.", _generate),
        CommandRecord("models", "List, check and convert model folders.", _models),
        CommandRecord("plugins", "List installed plugins and what they bring.", _plugins),
        CommandRecord("train", "Train a part of a model from a config file.", _train),
    ]
