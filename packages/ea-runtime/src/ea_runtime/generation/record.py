"""The shape of a record: what a sidecar holds, and after reading also what an output says of its making."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from ea_runtime.settings import validate

VERSION = 1


class _Model(BaseModel):
    model_config = ConfigDict(strict=True)


class _Settings(_Model):
    """Arguments of VideoPipeline.__call__; others are refused, since they go into a call."""

    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: str
    negative_prompt: str
    num_frames: int
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    seed: int
    smooth: bool
    step_cache: str = ""  # there if one was used
    # there if the video starts from pictures or a video: names of files, and what was asked for
    image: str = ""
    image_end: str = ""
    video: str = ""
    mask: str = ""
    strength: float = 1.0
    fit: str = "crop"
    posterior: str = "mode"
    clip_apply_ratio: float = 0.5
    # there if the video was made in windows: frames of each; prompts after the first, as ["36f", text]
    window: int = 0
    loop: bool = False
    join: str = "latents"
    prompts_at: list[list[str]] = []


class _Named(_Model):
    name: str
    sha256: str


class _Device(_Model):
    device: str
    dtype: str
    threads: int = 0
    compiled: bool = False
    cuda_graphs: bool = False
    quantize: str = ""
    gguf_sha256: str = ""
    attention: str = ""


class _File(_Model):
    file: str
    kind: str
    sha256: str
    unsigned_sha256: str = ""


class _Lora(_Model):
    file: str
    sha256: str
    weight: float


class _Engine(_Model):
    name: str
    bundle: str = ""


class _Join(_Model):
    frame: int
    delta_e: float
    sharpness: float
    flow_jump: float


class _Sidecar(_Model):
    settings: _Settings
    fps: float
    model: _Named
    device: _Device
    versions: dict[str, Any]
    output: _File
    loras: list[_Lora] = []
    inputs: dict[str, str] = {}  # hashes of the files among the settings
    engine: _Engine | None = None
    joins: list[_Join] = []  # measures of where windows meet


def check_record(record: dict[str, Any], name: str) -> None:
    """Raises UserError in one line if a record has another shape. name: of its file, quoted."""
    validate(_Sidecar, record, name, "; the file is damaged, or a newer version wrote it")
