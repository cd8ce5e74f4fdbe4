"""The layout of a model folder, and its settings. Imports no torch.

    model_index.json              optional; its class names are not used: each part's config.json decides
    vae/ transformer/             config.json + diffusion_pytorch_model.safetensors
    text_encoder/                 config.json + model.safetensors
    tokenizer/                    spiece.model or tokenizer.json
    image_encoder/                optional, of V3: CLIP's picture encoder (clip_config.py)
    scheduler/scheduler_config.json   optional: the betas
    ea.json                       optional: sizes and settings that suit this model
Large weights may be in shards, named by `<stem>.safetensors.index.json`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ea_runtime.errors import UserError, nearest
from ea_runtime.files.safe import inside, is_file, quote, quote_path, read_json
from ea_runtime.samplers.schedule import schedule_of_model
from ea_runtime.settings import validate

BUNDLED = ("tiny",)
#: folder of the optional part: CLIP's picture encoder, for models of V3 (image_encoder.py)
IMAGE_ENCODER = "image_encoder"
#: where that part's preprocessor_config.json is looked for
PREPROCESSOR_FOLDERS = (IMAGE_ENCODER, "image_processor", "clip_image_processor", "feature_extractor")
#: environment variable: a folder whose subfolders are models
MODELS_DIR = "EA_MODELS_DIR"


@dataclass(frozen=True, slots=True)
class PartSpec:
    """One network of a model folder: its subfolder, the host's kind of record, the package that brings it."""

    name: str
    title: str
    folder: str
    kind: str
    package: str
    class_names: tuple[str, ...]


PARTS: dict[str, PartSpec] = {
    "vae": PartSpec("vae", "VAE", "vae", "vaes", "ea-vae", ("AutoencoderKL", "AutoencoderKLMagvit")),
    "denoiser": PartSpec(
        "denoiser",
        "denoiser",
        "transformer",
        "denoisers",
        "ea-dit",
        ("Transformer2DModel", "Transformer3DModel"),
    ),
    "text": PartSpec(
        "text", "text encoder", "text_encoder", "text_encoders", "ea-runtime", ("T5EncoderModel",)
    ),
}


class GenerationDefaults(BaseModel):
    """Settings that suit a model; read from its ea.json, otherwise those of EasyAnimate V2's script.

    height, width in pixels; num_frames and fps of the video; steps, guidance and sampler of denoising. keep_known: put
    known latents back after each step, also if the denoiser takes them as channels.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    height: int = Field(default=384, ge=8, le=16384)
    width: int = Field(default=672, ge=8, le=16384)
    num_frames: int = Field(default=144, ge=1, le=100_000)
    fps: int = Field(default=24, ge=1, le=1000)
    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=6.0, ge=0.0, le=1000.0, allow_inf_nan=False)
    sampler: str = Field(default="dpm++", min_length=1, max_length=64, pattern=r"^[a-z0-9+_-]+$")
    seed: int = Field(default=43, ge=0, lt=1 << 32)
    keep_known: bool = False


Beta = Annotated[float, Field(gt=0, lt=1)]


class NoiseSchedule(BaseModel):
    """Noise that a model was trained with, as a scheduler_config.json gives it."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    num_train_timesteps: int = Field(ge=1, le=100_000)
    beta_start: Beta
    beta_end: Beta
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
    trained_betas: list[Beta] = []
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    rescale_betas_zero_snr: bool = False
    clip_sample: bool = False
    clip_sample_range: float = Field(1.0, gt=0)

    @field_validator("beta_end")
    @classmethod
    def _after_the_start(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("beta_start", 0):
            raise ValueError("must be at least `beta_start`")
        return value

    @field_validator("trained_betas")
    @classmethod
    def _one_a_step(cls, value: list[float], info: ValidationInfo) -> list[float]:
        steps = info.data.get("num_train_timesteps")
        if len(value) != steps:
            raise ValueError(f"must be a list of {steps} numbers between 0 and 1")
        return value


def resolve_folder(name: str | os.PathLike[str]) -> Path:
    """The folder of a model: a bundled name ("tiny"), a name beneath EA_MODELS_DIR, or a path.

    Bundled names win over a folder of that name here (write `./tiny` for the latter). Raises UserError for a model
    that does not exist.
    """
    text = os.fspath(name)
    if text in BUNDLED:
        return bundled_folder(text)
    if not text or "\0" in text:
        raise UserError(
            f"`model` must be a bundled name ({', '.join(BUNDLED)}) or a folder, got {quote(text)}"
        )
    is_name = "/" not in text and os.sep not in text and text not in (".", "..")
    named = models_dir()
    try:
        if is_name and named is not None and (named / text).is_dir():
            return named / text
        path = Path(text).expanduser()
        if path.is_dir():
            return path
        exists = path.exists()
    except (OSError, RuntimeError) as error:
        raise UserError(f"`model` {quote(text)} cannot be read: {error}") from error
    if exists:
        raise UserError(
            f"`model` must be a folder, got the file {quote(text)}; give the folder that holds vae/ and "
            "transformer/"
        )
    known = [*BUNDLED, *(folder.name for folder in _models_in(named))]
    if is_name:
        raise UserError(
            f"no model is called {quote(text)}; there are: {', '.join(known)}; or give a model folder"
            f"{nearest(text, known)}"
        )
    raise UserError(
        f"there is no model folder {quote(text)}; give an existing folder or one of: {', '.join(known)}"
    )


def bundled_folder(name: str) -> Path:
    """The folder of a bundled model inside the installed package. Raises UserError if it is missing."""
    folder = Path(str(resources.files("ea_runtime").joinpath(name)))
    if not folder.is_dir():
        raise UserError(
            f"the bundled model {name!r} is not in this installation of ea-runtime; install the package again"
        )
    return folder


def models_dir() -> Path | None:
    """The folder that EA_MODELS_DIR names, or None."""
    value = os.environ.get(MODELS_DIR, "").strip()
    return Path(value).expanduser() if value else None


def known_models() -> Iterator[tuple[str, Path, str]]:
    """(name, folder, where it is from) of each bundled model and each one beneath EA_MODELS_DIR."""
    for name in BUNDLED:
        folder = Path(str(resources.files("ea_runtime").joinpath(name)))
        if folder.is_dir():
            yield name, folder, "bundled"
    for folder in _models_in(models_dir()):
        yield folder.name, folder, MODELS_DIR


def _models_in(directory: Path | None) -> list[Path]:
    if directory is None or not directory.is_dir():
        return []
    markers = ["model_index.json", *(f"{spec.folder}/config.json" for spec in PARTS.values())]
    return sorted(
        entry for entry in directory.iterdir() if any(is_file(entry / marker) for marker in markers)
    )


def class_name(config: dict[str, Any], spec: PartSpec) -> str:
    """The class that a part's config.json names. Raises UserError if it names none.

    Networks of diffusers carry `_class_name`, those of transformers `architectures` or at least `model_type`.
    """
    architectures = config.get("architectures")
    name = config.get("_class_name")
    if name is None and isinstance(architectures, list) and len(architectures) == 1:
        name = architectures[0]
    if name is None and config.get("model_type") == "t5":
        name = "T5EncoderModel"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w{0,99}", name):
        raise UserError(
            f"{spec.folder}/config.json must name its class as `_class_name`, got {quote(name)}; "
            f"a {spec.title} of this project says {spec.class_names[-1]!r}"
        )
    return name


def read_defaults(model: str | os.PathLike[str]) -> tuple[dict[str, Any], GenerationDefaults]:
    """The noise schedule and the generation defaults of a model. Raises UserError for values out of range.

    Returns:
        the noise schedule that the model was trained with (samplers.schedule lists the keys). How a sampler places
            and solves its steps is left out: the sampler is the user's choice.
        generation defaults.
    """
    folder = resolve_folder(model)
    return _read_scheduler(folder), _read_generation(folder)


def _read_generation(folder: Path) -> GenerationDefaults:
    if not is_file(inside(folder, "ea.json")):
        return GenerationDefaults()
    where = f"ea.json in model folder {quote_path(folder)}"
    return validate(GenerationDefaults, read_json(folder, "ea.json"), where)


def _read_scheduler(folder: Path) -> dict[str, Any]:
    name = "scheduler/scheduler_config.json"
    found = read_json(folder, name) if is_file(inside(folder, name)) else None
    settings = schedule_of_model(found)
    validate(NoiseSchedule, settings, f"{name} in {quote_path(folder)}")
    return settings
