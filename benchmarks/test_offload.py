"""Group offloading on the CPU: a published-size transformer of random bfloat16 weights, at 256x256, 9 frames.

Peak resident set of a separate process that loads the transformer and predicts the noise of two steps with guidance,
once with all weights in memory and once with blocks read from their files. The outputs must be bit-exact.

`uv run pytest benchmarks/test_offload.py -s`; needs 4 GB of disk and of memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ea_runtime.planning.units import in_gb

_CHILD = """
import hashlib, json, sys
import torch
from pathlib import Path
from ea_runtime.machine.memory import peak_rss
from ea_runtime.models.layout import PARTS
from ea_runtime.models.loading import load_part, plan_part

def programs_own():
    return peak_rss()

torch.manual_seed(0)
plan = plan_part(Path(sys.argv[1]), PARTS["denoiser"])
plan.record.build()
before = peak_rss()
model = load_part(plan, dtype=torch.bfloat16, waits=sys.argv[2] == "group")
loaded = peak_rss()
latents = torch.randn(1, 4, 3, 32, 32, dtype=torch.bfloat16)
text, mask = torch.randn(2, 120, 4096, dtype=torch.bfloat16), torch.zeros(2, 120, dtype=torch.long)
mask[0, :1] = mask[1, :20] = 1
digest = hashlib.sha256()
with torch.inference_mode():
    prepared = model.prepare(text, mask, [900.0, 500.0])
    for step in (900.0, 500.0):
        latents = model(latents, step, prepared=prepared).sample[:1, :4].contiguous()
        assert torch.isfinite(latents).all()
        digest.update(latents.view(torch.int16).numpy().tobytes())
print(json.dumps({"before": before, "loaded": loaded, "peak": peak_rss(), "digest": digest.hexdigest(),
                  "parameters": sum(p.numel() for p in model.parameters())}))
"""


def write_transformer(folder: Path) -> None:
    """A transformer folder of EasyAnimate V2's sizes, with random weights as bfloat16."""
    import torch
    from safetensors.torch import save_file

    from ea_dit import Transformer3DModel

    with torch.device("meta"):
        model = Transformer3DModel()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in model.state_dict().items():
        scale = 1.0 if tensor.ndim < 2 else tensor[0].numel() ** -0.5
        tensors[name] = torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(
            std=scale, generator=generator
        )
    folder.mkdir(parents=True)
    config = {
        "_class_name": "Transformer3DModel",
        **{k: v for k, v in model.config.items() if not k.startswith("_")},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a transformer alone, written by another process."""
    folder = tmp_path_factory.mktemp("large")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; "
    code += f"from test_offload import write_transformer; write_transformer(Path({str(folder / 'transformer')!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    return folder


def test_a_large_transformer_runs_in_less_than_half_its_memory(model_folder: Path) -> None:
    found = {}
    for mode in ("none", "group"):
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(model_folder), mode],
            check=True,
            capture_output=True,
            text=True,
        )
        found[mode] = json.loads(done.stdout.splitlines()[-1])
        print(mode, {k: in_gb(v) if k in ("before", "loaded", "peak") else v for k, v in found[mode].items()})
    assert found["group"]["digest"] == found["none"]["digest"]
    assert found["group"]["peak"] < found["none"]["peak"] / 2
