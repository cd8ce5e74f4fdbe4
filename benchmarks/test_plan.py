"""Plans against runs on the CPU: peak memory (resident set) and seconds of `ea generate` and of the pipeline.

Each run and each plan is a separate process; the processor time of a plan is measured too.

`uv run pytest benchmarks/test_plan.py -k memory` counts bytes, which other programs on the machine do not change; `-k
seconds` measures seconds in one to two hours, and wants an idle machine. Both calibrate first: how much of its
libraries a program holds depends on the system (120 MB between two kernels).

Other machines on the same host make everything slower for seconds or minutes, which no plan can know. So the
calibration and each run wait for a quiet machine (pace.py), and are repeated if they did not end on one.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pace import Pace
from safetensors.torch import save_file

from ea_runtime.models.layout import bundled_folder

#: 244 M parameters: 8 blocks of width 768, a decoder of half V2's widths, a T5 of 4 blocks
DENOISER = {
    "num_layers": 8,
    "num_attention_heads": 12,
    "attention_head_dim": 64,
    "cross_attention_dim": 768,
    "caption_channels": 512,
    "sample_size": 32,
}
V3 = DENOISER | {
    "in_channels": 12,
    "basic_block_type": "global_motionmodule",
    "motion_module_kwargs": None,
    "motion_module_kwargs_even": {"num_attention_heads": 8},
    "motion_module_kwargs_odd": {
        "num_attention_heads": 8,
        "attention_block_types": ["Temporal_Self", "Global_Self"],
    },
}
VAE = {"block_out_channels": [64, 128, 256, 256], "layers_per_block": 2, "norm_num_groups": 32}
SLICE_VAE = VAE | {
    "slice_compression_vae": True,
    "mini_batch_encoder": 8,
    "mini_batch_decoder": 2,
    "mid_block_attention_type": "spatial",
}
TEXT = {"d_model": 512, "d_ff": 2048, "d_kv": 64, "num_heads": 8, "num_layers": 6, "vocab_size": 32128}


#: calibrations, after each of which every setting runs: the medians of errors count
_ROUNDS = 3
#: seconds of a setting that is run three times after each calibration: a disturbance is a large part of them
_SHORT = 2.0
#: phases whose seconds are compared
_PHASES = "text", "encoding", "denoising", "decoding"
#: seconds that the machine is idle before a run, as it is for who types a command; a virtual machine's host takes back
#: what the run before gave up
_IDLE = 10


@dataclass(frozen=True)
class Case:
    """A setting: options of `ea plan` and `ea generate`. batch: videos through the pipeline itself, 0: the command."""

    model: str
    options: str
    batch: int = 0

    @property
    def name(self) -> str:
        return f"{self.model} {self.options}" + f" x{self.batch}" * bool(self.batch)


CASES = [
    Case("tiny", "--num-frames 1"),
    Case("tiny", "--num-frames 1 --size 512x512"),
    Case("tiny", "--num-frames 18"),
    Case("tiny", "--num-frames 18 --guidance 1"),
    Case("tiny", "--num-frames 18 --size 256x256"),
    Case("tiny", "--num-frames 9 --size 384x256 -o out.gif"),
    Case("tiny", "--num-frames 72 --size 128x128"),
    Case("tiny", "--num-frames 18 --size 192x192", batch=4),
    Case("tiny", "--num-frames 18 --size 128x128 --image in.png"),
    Case("tiled", "--num-frames 9 --size 512x512 --steps 1"),
    Case("middle", "--num-frames 1 --size 128x128"),
    Case("middle", "--num-frames 1 --size 384x384 --steps 1"),
    Case("middle", "--num-frames 9 --size 128x128"),
    Case("middle", "--num-frames 9 --size 192x192 --steps 1"),
    Case("middle", "--num-frames 18 --size 128x128 --steps 1 --no-smooth"),
    Case("middle", "--num-frames 9 --size 128x192 --steps 1 --guidance 1 -o out.gif"),
    Case("middle", "--num-frames 1 --size 256x256 --steps 1", batch=4),
    Case("middle", "--num-frames 9 --size 128x128 --steps 1", batch=2),
    Case("middle", "--num-frames 9 --size 128x128 --lora style.safetensors"),
    Case("middle", "--num-frames 9 --size 128x128 --steps 1 --image in.png"),
    Case("half", "--num-frames 9 --size 128x128 --steps 1"),
    Case("slice", "--num-frames 9 --size 128x128 --steps 1"),
    Case("v3", "--num-frames 9 --size 128x128 --steps 1"),
    Case("v3", "--num-frames 1 --size 128x128 --steps 1 --image in.png"),
    Case("tiny", "--num-frames 18 --offload group"),
    Case("middle", "--num-frames 9 --size 128x128 --offload group"),
    Case("middle", "--num-frames 9 --size 128x128 --offload group --lora style.safetensors"),
    Case("half", "--num-frames 9 --size 128x128 --steps 1 --offload group"),
]
#: numbers of settings, to look at some
_ONLY = os.environ.get("EA_PLAN_CASES")
CHOSEN = CASES if _ONLY is None else [CASES[int(number)] for number in _ONLY.split(",")]

_COMMAND = """
import os, sys
from ea_runtime.cli.main import run
from ea_runtime.machine.memory import peak_rss
code = run(sys.argv[1:])
print("peak", peak_rss())
sys.exit(code)
"""
_PIPELINE = """
import json, sys
from ea_runtime.machine.allocator import tune_allocator
tune_allocator()
from ea_runtime.machine.light_imports import import_diffusers
import_diffusers()  # as `ea generate` does: without torch._dynamo, 100 MB
from ea_runtime.generation.pipeline import VideoPipeline
from ea_runtime.machine.memory import peak_rss
settings = json.loads(sys.argv[1])
batch = settings.pop("batch")
pipe = VideoPipeline.from_pretrained(settings.pop("model"), device="cpu")
made = pipe([f"a red circle {n}" for n in range(batch)], batch_size=batch, seed=1, **settings)
print("timings", json.dumps(made.timings))
print("peak", peak_rss())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with random weights, a LoRA and a picture."""
    folder = tmp_path_factory.mktemp("plan")
    write_model(folder / "middle", DENOISER, VAE, torch.float32)
    write_model(folder / "half", DENOISER, VAE, torch.float16)
    write_model(folder / "v3", V3, VAE, torch.float16)
    shutil.copytree(bundled_folder("tiny"), folder / "tiled")
    config = folder / "tiled/vae/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_tiling": True}))
    write_model(folder / "slice", DENOISER, SLICE_VAE, torch.float32)
    write_lora(folder)
    from PIL import Image

    Image.new("RGB", (200, 200), (200, 60, 20)).save(folder / "in.png")
    return folder


def calibrate(folder: Path) -> tuple[str, float]:
    """The file that `ea plan --calibrate` writes, and the seconds it took."""
    env, words = environment(folder / "calibrated"), ["plan", "--calibrate", "--device", "cpu"]
    started = time.perf_counter()
    run([sys.executable, "-m", "ea_runtime.cli.main", *words], folder, env)
    return (folder / "calibrated/plans.json").read_text(), time.perf_counter() - started


def threads() -> str:
    """One thread, unless OMP_NUM_THREADS says otherwise."""
    return os.environ.get("OMP_NUM_THREADS", "1")


def environment(cache: Path) -> dict[str, str]:
    return os.environ | {"EA_CACHE": str(cache), "OMP_NUM_THREADS": threads()}


def write_model(folder: Path, denoiser: dict[str, Any], vae: dict[str, Any], dtype: torch.dtype) -> None:
    """A model folder with random weights and tiny's tokenizer."""
    from transformers import T5Config

    from ea_dit import Transformer3DModel
    from ea_runtime.text.t5 import T5Encoder
    from ea_vae import AutoencoderKLMagvit

    tiny = bundled_folder("tiny")
    text = json.loads((tiny / "text_encoder/config.json").read_text()) | TEXT
    with torch.device("meta"):
        networks = {
            "transformer": Transformer3DModel.from_config(denoiser),
            "vae": AutoencoderKLMagvit.from_config(vae),
            "text_encoder": T5Encoder(T5Config(**text)),
        }
    for name, network in networks.items():
        (folder / name).mkdir(parents=True)
        saved = text
        if name != "text_encoder":
            saved = {k: v for k, v in dict(network.config).items() if not k.startswith("_")}
            saved["_class_name"] = type(network).__name__
        (folder / name / "config.json").write_text(json.dumps(saved, default=list))
        tensors = {
            key: random_tensor(key, tuple(t.shape)).to(dtype) for key, t in network.state_dict().items()
        }
        tensors.pop("encoder.embed_tokens.weight", None)
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        save_file(tensors, folder / name / f"{stem}.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer").mkdir()
    for file in (tiny / "tokenizer").iterdir():
        (folder / "tokenizer" / file.name).write_bytes(file.read_bytes())


def random_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Values that keep activations near 1."""
    fan = math.prod(shape[1:]) if len(shape) > 1 else 1
    if len(shape) == 1 and "norm" in name and name.endswith("weight"):
        return torch.ones(shape)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.3 / math.sqrt(fan)


def write_lora(folder: Path) -> None:
    """A LoRA of rank 16 on all linears of the middle model's blocks."""
    from ea_dit import Transformer3DModel

    with torch.device("meta"):
        network: Any = Transformer3DModel.from_config(DENOISER)
    tensors = {}
    for path, module in network.named_modules():
        if path.startswith("transformer_blocks") and isinstance(module, torch.nn.Linear):
            tensors[f"transformer.{path}.lora_A.weight"] = torch.randn(16, module.in_features) * 0.01
            tensors[f"transformer.{path}.lora_B.weight"] = torch.randn(module.out_features, 16) * 0.01
    save_file(tensors, folder / "style.safetensors")


def options_of(case: Case, folder: Path) -> list[str]:
    """Its words on the command line, files by their place."""
    words = [str(folder / w) if (folder / w).is_file() else w for w in case.options.split()]
    model = case.model if case.model == "tiny" else str(folder / case.model)
    steps = [] if "--steps" in words else ["--steps", "2"]
    return ["a red circle moves right", "--model", model, "--device", "cpu", *steps, *words]


def run(words: Sequence[str], folder: Path, env: dict[str, str]) -> str:
    """The output of a process, which must succeed."""
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def planned(case: Case, folder: Path, env: dict[str, str]) -> tuple[dict[str, Any], float]:
    """The plan, and the seconds of processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "ea_runtime.cli.main", "plan", *options_of(case, folder), "--json"]
    found = json.loads(run(words + (["--batch", str(case.batch)] if case.batch else []), folder, env))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(
    case: Case, folder: Path, plan: dict[str, Any], env: dict[str, str]
) -> tuple[int, dict[str, float]]:
    """Peak of the resident set in bytes, and seconds by phase."""
    if case.batch:
        settings = {
            "model": case.model if case.model == "tiny" else str(folder / case.model),
            "batch": case.batch,
            "num_inference_steps": plan["steps"],
            "num_frames": plan["frames"],
            "height": plan["height"],
            "width": plan["width"],
        }
        lines = run([sys.executable, "-c", _PIPELINE, json.dumps(settings)], folder, env).splitlines()
        timings = json.loads(next(line for line in lines if line.startswith("timings")).partition(" ")[2])
    else:
        words = ["generate", *options_of(case, folder), "--overwrite"]
        output = [] if "-o" in words else ["-o", "out.png" if plan["frames"] == 1 else "out.mp4"]
        for old in folder.glob("out.*"):  # a sidecar of that name would stay with its file
            old.unlink()
        lines = run([sys.executable, "-c", _COMMAND, *words, *output], folder, env).splitlines()
        timings = json.loads((folder / "out.json").read_text())["timings"]
    return int(next(line for line in lines if line.startswith("peak")).split()[1]), timings


def test_memory(
    folder: Path,
    report: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = []
    cache = folder / "memory"
    cache.mkdir()
    env, (calibrated, _) = environment(cache), calibrate(folder)
    for case in CHOSEN:
        (cache / "plans.json").write_text(calibrated)  # no plan learns from the run before
        plan, spent = planned(case, folder, env)
        peak, _ = measured(case, folder, plan, env)
        error = plan["peak"] / peak - 1
        rows.append((case, plan["peak"], peak, error, spent))
        with capsys.disabled():
            print(
                f"{case.name:<75} {plan['peak'] / 1e6:8.0f} {peak / 1e6:8.0f} MB {error:+7.1%}  plan {spent:.2f} s",
                flush=True,
            )
    errors = [abs(error) for *_, error, _ in rows]
    figures: dict[str, Any] = {
        case.name: f"{peak / 1e6:.0f} MB, {error:+.1%}" for case, _, peak, error, _ in rows
    }
    figures |= {"largest error": f"{max(errors):.1%}", "median error": f"{statistics.median(errors):.1%}"}
    figures["plan, processor time"] = f"{statistics.median(spent for *_, spent in rows):.2f} s"
    if CHOSEN == CASES:
        report("plan_memory", figures)
    assert max(errors) <= 0.15
    assert statistics.median(errors) <= 0.05


def test_seconds(
    folder: Path,
    report: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Seconds of all phases but the imports, without learning from the runs; the medians of rounds, each with a
    calibration and all settings."""
    pace = Pace(int(threads()), _IDLE)
    cache = folder / "seconds"
    cache.mkdir()
    env = environment(cache)
    calibrations, disturbed = [], 0
    found: dict[Case, list[tuple[float, float]]] = {case: [] for case in CHOSEN}
    for _ in range(_ROUNDS):
        (text, spent), others = pace.undisturbed(partial(calibrate, folder))
        calibrations.append(spent)
        disturbed += others
        for case in CHOSEN:
            (cache / "plans.json").write_text(text)
            plan, _ = planned(case, folder, env)
            phases = {one["name"]: one["seconds"] for one in plan["phases"] if one["name"] in _PHASES}
            runs = []
            for _ in range(3 if sum(phases.values()) < _SHORT else 1):
                (_, timings), others = pace.undisturbed(partial(measured, case, folder, plan, env))
                runs.append(timings)
                disturbed += others
            timings = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            both = [name for name in phases if name in timings]
            expected, taken = sum(phases[name] for name in both), sum(timings[name] for name in both)
            found[case].append((taken, expected / taken - 1))
            with capsys.disabled():
                parts = " ".join(f"{name} {phases[name]:.2f}/{timings[name]:.2f}" for name in both)
                print(
                    f"{case.name:<75} {expected:7.2f} {taken:7.2f} s {expected / taken - 1:+6.1%}  {parts}",
                    flush=True,
                )
    figures: dict[str, Any] = {"calibration": f"{statistics.median(calibrations):.1f} s"}
    errors = []
    for case, runs in found.items():
        taken, error = (statistics.median(values) for values in zip(*runs, strict=True))
        figures[case.name] = f"{taken:.2f} s, {error:+.0%}"
        errors.append(abs(error))
    figures |= {"largest error": f"{max(errors):.1%}", "median error": f"{statistics.median(errors):.1%}"}
    each = [abs(error) for runs in found.values() for _, error in runs]
    figures["single runs"] = f"largest {max(each):.1%}, median {statistics.median(each):.1%}"
    figures["repeated, since they ended on a busy machine"] = disturbed
    if CHOSEN == CASES:
        report("plan_seconds", figures)
    assert max(errors) <= 0.15
    assert statistics.median(errors) <= 0.05
