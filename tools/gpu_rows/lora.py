"""Steps of `ea train lora` at 512x512 on the published network with random weights, under a cap of memory."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from gpu_rows.bench import TOY_DIT, Bench, NotHere
from gpu_rows.memory import capped

_STEPS = 4


def run(bench: Bench, cap: float) -> dict[str, Any]:
    """Seconds of a step and the peak, by the command itself. Raises RuntimeError if the command fails."""
    try:
        from ea_runtime.cli.main import run as command
    except ImportError as error:  # a wheel that was not carried
        raise NotHere(f"the training command needs {error.name}, which is not here") from error

    bench.drop()
    edge = 64 if bench.is_cpu else 512
    model = str(_write_model(bench, bench.work / "model"))
    _write_set(bench.work / "set", edge)
    out = bench.work / "lora"
    shutil.rmtree(out, ignore_errors=True)
    config = bench.work / "lora.toml"
    config.write_text(_config(model, bench.work / "set", out, edge, bench), encoding="utf-8")
    bench.free()
    with capped(bench, cap):
        code = command(["train", "lora", str(config)])
        peak = bench.peak()
    if code != 0:
        raise RuntimeError(f"`ea train lora` ended with {code}; its lines are above")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(seconds) >= 2, f"{len(seconds)} steps are in the log"
    assert all(np.isfinite(losses)), f"losses {losses}"
    return {
        "ours_s": statistics.median(seconds[1:]),
        "first_s": seconds[0],
        "peak": peak,
        "cap": cap,
        "steps": len(seconds),
    }


def _write_model(bench: Bench, folder: Path) -> Path:
    """A model folder: the published denoiser, but for `tiny`'s text encoder, and the published VAE."""
    import torch

    from ea_dit import Transformer3DModel
    from ea_runtime.models.layout import resolve_folder

    tiny = resolve_folder("tiny")
    for part in ("text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(tiny / part, folder / part, dirs_exist_ok=True)
    width = json.loads((tiny / "text_encoder" / "config.json").read_text(encoding="utf-8"))["d_model"]
    sizes = TOY_DIT if bench.is_cpu else {}
    with bench.device, torch.no_grad():
        denoiser: Any = Transformer3DModel(**{**sizes, "caption_channels": width})
    denoiser.to(bench.dtype).save_pretrained(folder / "transformer")
    del denoiser
    bench.vae().save_pretrained(folder / "vae")
    bench.drop()
    return folder


def _write_set(folder: Path, edge: int) -> None:
    """Two pictures with captions, in V2's JSON."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (edge, edge, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        row = {"file_path": f"{number}.png", "text": f"picture {number}", "type": "image"}
        rows.append({**row, "width": edge, "height": edge})
    (folder / "dataset.json").write_text(json.dumps(rows), encoding="utf-8")


def _config(model: str, data: Path, out: Path, edge: int, bench: Bench) -> str:
    rank, dtype = (2, "fp32") if bench.is_cpu else (128, "bf16")
    return f"""
[run]
recipe = "lora"
out = {json.dumps(str(out))}

[base]
model = {json.dumps(model)}

[network]
rank = {rank}
alpha = {rank / 2}

[memory]
low_vram = true

[data]
path = {json.dumps(str(data))}
size = {edge}
num_frames = 1

[train]
steps = {2 if bench.is_cpu else _STEPS}
batch_size = 1
lr = 1e-4
warmup = 0
ema = 0.99
dtype = "{dtype}"
gradient_checkpointing = true
save_every = 1000
sample_every = 0
log_every = 1
"""
