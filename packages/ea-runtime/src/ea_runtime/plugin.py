"""Records that ea_runtime itself brings through the hooks: samplers, the T5 text encoder, engines, commands."""

from __future__ import annotations

from functools import partial

from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import (
    CommandRecord,
    EngineRecord,
    MetricRecord,
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
def ea_metrics() -> list[MetricRecord]:
    home = "ea_runtime.evaluation.metrics"
    single = [
        ("sharpness", "Variance of the Laplacian of luma, mean of the frames", "higher", "levels²"),
        ("flicker", "Brightness that goes up and down from frame to frame", "lower", "levels"),
        ("stutter", "Uneven steps of motion: frames dropped or repeated", "lower", "octaves"),
        ("repeated", "Share of the frames that show what the one before shows", "lower", ""),
        ("frozen", "Longest stretch that stands still, as a share of the video", "lower", ""),
        ("colour-drift", "How far colours move away from those of the start", "lower", "ΔE"),
    ]
    pairs = [
        ("psnr", "Equality with the video of that name in the other folder", "higher", "dB"),
        ("ssim", "Structural similarity with the video of that name in the other folder", "higher", ""),
    ]
    weights: list[tuple[str, str, str, str, str, str, str]] = [
        ("clip-score", "Prompt and frames by CLIP", "higher", "", "video", "clip_score", "ClipScore"),
        (
            "fvd",
            "Fréchet distance of video features to the other folder's",
            "lower",
            "",
            "set",
            "frechet",
            "Fvd",
        ),
        ("vbench", "Dimensions of VBench, run by its own package", "higher", "", "video", "vbench", "VBench"),
    ]
    return [
        *(
            # a function is the metric itself
            MetricRecord(
                name, words, Named(f"{home}.single:{name.replace('-', '_')}"), better=better, unit=unit
            )
            for name, words, better, unit in single
        ),
        MetricRecord(
            "seam",
            "Jump at the joins of chunks and windows, above that around them",
            f"{home}.seam:Seam",
            f"{home}.seam:SeamOptions",
            better="lower",
            unit="levels",
        ),
        *(
            MetricRecord(name, words, Named(f"{home}.pairs:{name}"), better=better, unit=unit, of="pair")
            for name, words, better, unit in pairs
        ),
        *(
            MetricRecord(
                name,
                words,
                f"{home}.{module}:{built}",
                f"{home}.{module}:{built}Options",
                better=better,
                unit=unit,
                of=of,
                needs_weights=True,
            )
            for name, words, better, unit, of, module, built in weights
        ),
    ]


@hookimpl
def ea_commands() -> list[CommandRecord]:
    rows = [
        ("bench", "Turn benchmark results into a table and a plot."),
        ("bundles", "List, check and accept exported bundles."),
        ("doctor", "Check this machine: torch, number formats, devices, codecs, memory."),
        ("eval", "Judge a folder of videos, and compare it with another."),
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
