"""Records that ea_runtime itself brings through the hooks: samplers, the T5 text encoder, engines, commands."""

from __future__ import annotations

from functools import partial

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import (
    CommandRecord,
    EngineRecord,
    Named,
    SamplerRecord,
    StepCacheRecord,
    TextEncoderRecord,
)


@hookimpl
def ea_samplers() -> list[SamplerRecord]:
    from ea_runtime.samplers import SAMPLERS

    return list(SAMPLERS)


@hookimpl
def ea_step_caches() -> list[StepCacheRecord]:
    return [
        StepCacheRecord(
            "teacache",
            "skips passes whose input moved less than a threshold (0.1: mild)",
            "ea_runtime.generation.step_cache:tea_cache",
        )
    ]


@hookimpl
def ea_text_encoders() -> list[TextEncoderRecord]:
    return [
        TextEncoderRecord(
            "t5",
            "T5's encoder, 120 tokens, captions cleaned as V2 does",
            "ea_runtime.text.encoder:TextEncoder.from_pretrained",
            class_names=("T5EncoderModel",),
            export="ea_runtime.export.t5",
        )
    ]


@hookimpl
def ea_engines() -> list[EngineRecord]:
    tensorrt = Named("ea_runtime.engines.tensorrt_engine:TensorRtEngine", is_called=True)
    onnx = "ea_runtime.engines.onnx_engine:OnnxEngine"
    rows = [
        ("onnx", "ONNX Runtime on a CPU or an NVIDIA GPU (`ea export --onnx`)", onnx),
        ("trt", "TensorRT engines (`ea export --trt`)", partial(tensorrt, target="trt")),
        ("trt-rtx", "TensorRT-RTX engines (`ea export --trt-rtx`)", partial(tensorrt, target="trt-rtx")),
    ]
    return [
        EngineRecord(
            "torch", "PyTorch, from the model folder", "ea_runtime.engines.torch_engine:TorchEngine"
        ),
        *(EngineRecord(name, summary, build, needs_bundle=True) for name, summary, build in rows),
    ]


@hookimpl
def ea_commands() -> list[CommandRecord]:
    rows = [
        ("bench", "Turn benchmark results into a table and a plot."),
        ("bundles", "List, check and accept exported bundles."),
        ("doctor", "Check this machine: torch, number formats, devices, codecs, memory."),
        ("export", "Export a model to ONNX or TensorRT, with a parity report."),
        ("generate", "Make a video or a picture from a prompt."),
        ("models", "List, check and convert model folders."),
        ("plan", "Tell memory and time of a generation before anything is loaded."),
        ("plugins", "List installed plugins and their parts."),
        ("serve", "Serve a page and an API that make videos, with a queue."),
        ("train", "Train a part of a model from a config file."),
    ]
    homes = {"generate": "generate.command"}
    return [
        CommandRecord(name, summary, f"ea_runtime.cli.{homes.get(name, name)}:app") for name, summary in rows
    ]
