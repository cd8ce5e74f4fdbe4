"""Assembles trained parts into a model folder in half precision: the bundled model `tiny` was made this way.

    uv run python tools/bundle_tiny.py --vae runs/vae-clips-more/final --text runs/text/final \
        --transformer runs/dit/final --out packages/ea-runtime/src/ea_runtime/tiny

Without --transformer the folder holds the parts that `ea train dit` needs (`data.parts`).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

#: The model's own settings: `ea generate` reads them as its defaults.
GENERATION = {"height": 64, "width": 64, "num_frames": 18, "fps": 12}
GENERATION |= {"steps": 20, "guidance": 2.0, "sampler": "dpm++", "seed": 43}
GENERATION |= {"keep_known": True}
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,  # for ddim: these latents exceed -1..1
}
INDEX = {
    "_class_name": "EasyAnimatePipeline",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["ea_dit", "Transformer3DModel"],
    "vae": ["ea_vae", "AutoencoderKLMagvit"],
}


def copy_part(source: Path, target: Path) -> None:
    """Copies config files unchanged and weights as float16."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            tensors = {k: v.half() if v.dtype == torch.float32 else v for k, v in load_file(path).items()}
            save_file(tensors, target / path.name, metadata={"format": "pt"})
        elif path.suffix in (".json", ".model") and path.name != "manifest.json":
            shutil.copyfile(path, target / path.name)
    for path in target.iterdir():
        path.chmod(0o644)  # safetensors makes files readable by the owner alone


def cut_positions(folder: Path, max_len: int) -> None:
    """Keeps the first `max_len` rows of the motion modules' position tables, which are the same at any length.

    V2's tables have 4,096 rows; in a small model they would weigh more than everything else.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["motion_module_kwargs"]["temporal_position_encoding_max_len"] = max_len
    write_json(folder / "config.json", config)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        tensors = {
            k: v[:, :max_len].contiguous() if k.endswith("pos_encoder.pe") else v for k, v in tensors.items()
        }
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vae", type=Path, required=True, help="folder of the VAE")
    parser.add_argument("--text", type=Path, required=True, help="folder with text_encoder/ and tokenizer/")
    parser.add_argument("--transformer", type=Path, help="folder of the denoiser")
    parser.add_argument(
        "--max-latent-frames", type=int, default=256, help="rows of the position tables that stay"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    for folder in filter(None, (arguments.vae, arguments.text, arguments.transformer)):
        if not folder.is_dir():
            parser.error(f"{str(folder)!r} is no folder; train that part first, see configs/tiny")
    copy_part(arguments.vae, arguments.out / "vae")
    for part in ("text_encoder", "tokenizer"):
        copy_part(arguments.text / part, arguments.out / part)
    if arguments.transformer:
        copy_part(arguments.transformer, arguments.out / "transformer")
        cut_positions(arguments.out / "transformer", arguments.max_latent_frames)
    write_json(arguments.out / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(arguments.out / "model_index.json", INDEX)
    write_json(arguments.out / "ea.json", GENERATION)
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{arguments.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
