"""The settings of a CLIP picture encoder and of its preprocessing, as a model folder gives them. Imports no torch.

image_encoder/config.json               a CLIPVisionModelWithProjection, or the picture half of a whole CLIPModel
image_encoder/preprocessor_config.json  also image_processor/, clip_image_processor/ or feature_extractor/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ea_runtime.errors import UserError
from ea_runtime.files.safe import inside, is_file, quote, read_json
from ea_runtime.models.config import check_config, check_no_code
from ea_runtime.models.layout import IMAGE_ENCODER, PREPROCESSOR_FOLDERS
from ea_runtime.settings import validate

#: width of the embedding that V3's denoiser takes
WIDTH = 768
_MAX_PATCHES = 1 << 16
#: keys that libraries write, or that count in training alone
_BOOKKEEPING = {
    *("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "vision_config"),
    *("initializer_range", "initializer_factor", "attention_dropout", "dropout", "logit_scale_init_value"),
    *("text_config", "text_config_dict", "vision_config_dict"),
    *("feature_extractor_type", "image_processor_type", "processor_class"),
}

Side = Annotated[int, Field(ge=1, le=4096)]


class ClipVision(BaseModel):
    """Settings of CLIP's picture encoder by their names in transformers; defaults are CLIP's, width V3's."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    hidden_size: int = Field(default=768, ge=1, le=1 << 14)
    intermediate_size: int = Field(default=3072, ge=1, le=1 << 16)
    num_hidden_layers: int = Field(default=12, ge=1, le=512)
    num_attention_heads: int = Field(default=12, ge=1, le=1024)
    num_channels: Literal[3] = 3
    image_size: Side = 224
    patch_size: Side = 32
    hidden_act: Literal["quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh"] = "quick_gelu"
    layer_norm_eps: float = Field(default=1e-5, gt=0, le=1)
    projection_dim: int = Field(default=512, ge=1, le=1 << 16)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("`hidden_size` must be a multiple of `num_attention_heads`")
        if not 1 <= (self.image_size // self.patch_size) ** 2 <= _MAX_PATCHES:
            raise ValueError(f"`image_size` must hold 1 to {_MAX_PATCHES:,} patches of `patch_size`")
        if self.projection_dim != WIDTH:
            raise ValueError(f"`projection_dim` must be {WIDTH}, which V3's denoiser takes")
        return self


def _whole_size(value: Any) -> Any:
    """`{"height": h, "width": w}` or the `{"shortest_edge": s}` that older files write as a number, as (h, w) or s."""
    if isinstance(value, Mapping):
        if set(value) == {"shortest_edge"}:
            return value["shortest_edge"]
        if set(value) == {"height", "width"}:
            return (value["height"], value["width"])
        raise ValueError("must be a number, `shortest_edge`, or `height` and `width`")
    return value


Size = Annotated[Side | tuple[Side, Side], BeforeValidator(_whole_size)]
Three = Annotated[list[float], Field(min_length=3, max_length=3)]


class Preprocessing(BaseModel):
    """Preprocessing of a picture for CLIP, by its names in transformers; the defaults are CLIP's own numbers.

    size: (height, width), or the shorter side. crop_size: the same, a number for a square. resample: Pillow's number.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    do_resize: bool = True
    size: Size = 224
    resample: int = Field(default=3, ge=0, le=5)
    do_center_crop: bool = True
    crop_size: Size = 224
    do_rescale: bool = True
    rescale_factor: float = Field(default=1 / 255, gt=0, le=1)
    do_normalize: bool = True
    image_mean: Three = [0.48145466, 0.4578275, 0.40821073]
    image_std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] = [
        *(0.26862954, 0.26130258, 0.27577711)
    ]
    do_convert_rgb: bool = True

    @model_validator(mode="after")
    def _gives_one_size(self) -> Self:
        if self.do_resize and self.do_center_crop:
            shorter = (self.size, self.size) if isinstance(self.size, int) else self.size
            if any(large < small for large, small in zip(shorter, self.cropped, strict=True)):
                raise ValueError("`crop_size` must be at most `size`")
        elif not self.do_resize or isinstance(self.size, int):
            raise ValueError(
                "`do_resize` and `do_center_crop` must be true, so that every picture gets one size"
            )
        return self

    @property
    def cropped(self) -> tuple[int, int]:
        """Height and width of what the encoder gets."""
        if not self.do_center_crop:
            assert not isinstance(self.size, int), "checked above"
            return self.size
        return (self.crop_size, self.crop_size) if isinstance(self.crop_size, int) else self.crop_size

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """A picture as the encoder takes it: (3, height, width), float32, as transformers' CLIPImageProcessor gives it.

        Own arithmetic on Pillow: transformers' processor is another one, with other rounding, once torchvision is
        installed.
        """
        picture = picture.convert("RGB")
        width, height = picture.size
        if isinstance(self.size, int):
            short, long = min(width, height), max(width, height)
            longer = int(self.size * long / short)
            new = (self.size, longer) if width <= height else (longer, self.size)
        else:
            new = (self.size[1], self.size[0])
        picture = picture.resize(new, Image.Resampling(self.resample))
        if self.do_center_crop:
            rows, columns = self.cropped
            top, left = (picture.height - rows) // 2, (picture.width - columns) // 2
            picture = picture.crop((left, top, left + columns, top + rows))
        values = np.asarray(picture, np.float64)
        if self.do_rescale:
            values = values * self.rescale_factor
        if self.do_normalize:
            values = (values - self.image_mean) / self.image_std
        return np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32)


def read_clip_vision(folder: Path, num_tensors: int | None = None) -> tuple[ClipVision, list[str]]:
    """The encoder's settings, and the keys of its config.json that count for nothing.

    num_tensors: in the part's files, which bounds its depth. Raises UserError.
    """
    name = f"{IMAGE_ENCODER}/config.json"
    config = read_json(folder, name)
    check_config(config, name, num_tensors)
    kinds = {config.get("model_type"), *_names(config.get("architectures"))}
    if not kinds & {"clip_vision_model", "clip", "CLIPVisionModelWithProjection", "CLIPModel"}:
        raise UserError(
            f"{name} must be of a CLIP picture encoder (`model_type` 'clip_vision_model'), got "
            f"{quote(config.get('model_type'))}; a model of V3 comes with one"
        )
    vision = config.get("vision_config", config)
    if isinstance(vision, dict) and "projection_dim" in config:
        vision = {"projection_dim": config["projection_dim"], **vision}
    return validate(ClipVision, vision, name), _unknown(ClipVision, config)


def read_preprocessing(folder: Path, side: int) -> tuple[Preprocessing, str | None, list[str]]:
    """The preprocessing of a model folder whose encoder takes pictures of `side` x `side`.

    Returns the settings, the file that they are from (None: CLIP's own numbers), and its keys that count for nothing.
    Raises UserError.
    """
    names = [f"{part}/preprocessor_config.json" for part in PREPROCESSOR_FOLDERS]
    found = next((name for name in names if is_file(inside(folder, name))), None)
    if found is None:
        return Preprocessing(size=side, crop_size=side), None, []
    table = read_json(folder, found)
    check_no_code(table, found)
    settings = validate(Preprocessing, table, found)
    if settings.cropped != (side, side):
        raise UserError(
            f"{found} gives pictures of {settings.cropped[1]}x{settings.cropped[0]}, and the encoder takes "
            f"{side}x{side}; copy both files from the same model"
        )
    return settings, found, _unknown(Preprocessing, table)


def _names(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _unknown(model: type[BaseModel], table: Mapping[str, Any]) -> list[str]:
    known = _BOOKKEEPING | set(model.model_fields)
    return sorted(key for key in table if key not in known and not key.startswith("_"))
