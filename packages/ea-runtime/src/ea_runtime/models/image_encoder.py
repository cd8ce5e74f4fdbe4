"""The picture encoder of a V3 model: CLIP's embedding of the frame that a video starts with.

An optional part of a model folder (clip_config.py lists its files). Its weights are read when a picture is encoded and
dropped again: a video needs one embedding, and 1.2 GB would lie idle through denoising.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ea_runtime.errors import UserError
from ea_runtime.files.safe import inside, plain, quote_path
from ea_runtime.models.clip_config import (
    WIDTH,
    ClipVision,
    Preprocessing,
    read_clip_vision,
    read_preprocessing,
)
from ea_runtime.models.geometry import takes_picture
from ea_runtime.models.layout import IMAGE_ENCODER
from ea_runtime.models.weights import PartWeights, find_weights

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from ea_runtime.models.loading import Parts

logger = logging.getLogger("ea")

CLASS_NAME = "CLIPVisionModelWithProjection"
NO_PREPROCESSOR = (
    f"{IMAGE_ENCODER} has no preprocessor_config.json; pictures are prepared with CLIP's own numbers"
)


@dataclass(frozen=True, slots=True)
class ImageEncoderPlan:
    """An encoder that can be loaded: its settings and headers were read, no weight was.

    preprocessor: the file that says how a picture is prepared; None: CLIP's own numbers. unknown_keys: of both files.
    """

    label: str
    vision: ClipVision
    preprocessing: Preprocessing
    preprocessor: str | None
    weights: PartWeights
    unknown_keys: tuple[str, ...]

    def build(self) -> nn.Module:
        """The network with random weights. Raises UserError."""
        from transformers.models.clip.configuration_clip import CLIPVisionConfig
        from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

        try:
            return CLIPVisionModelWithProjection(CLIPVisionConfig(**self.vision.model_dump()))
        except Exception as error:  # a library's constructor, and data from outside
            reason = plain(error, 300)
            raise UserError(f"{IMAGE_ENCODER}/config.json does not fit {CLASS_NAME}: {reason}") from error

    def notes(self) -> list[str]:
        """One line for each thing that is ignored or assumed."""
        found = []
        if self.unknown_keys:
            shown = ", ".join(self.unknown_keys[:10])
            found.append(f"{IMAGE_ENCODER}: settings that its class does not know are ignored: {shown}")
        if self.preprocessor is None:
            found.append(NO_PREPROCESSOR)
        return found


def has_image_encoder(folder: Path) -> bool:
    """True if a model folder has the part at all, loadable or not."""
    return inside(folder, IMAGE_ENCODER).is_dir()


def image_encoder_of(parts: Parts) -> ImageEncoder | None:
    """The encoder for the denoiser of loaded parts: None if it takes none, or the folder has none.

    What is ignored in its files goes to the log. Raises UserError.
    """
    if not takes_picture(getattr(parts.denoiser, "config", None)) or not has_image_encoder(parts.folder):
        return None
    encoder = ImageEncoder(parts.folder)
    for note in encoder.notes:
        logger.warning("%s", note)
    return encoder


def plan_image_encoder(folder: Path) -> ImageEncoderPlan:
    """Read the settings and headers of the encoder of a model folder. Raises UserError."""
    weights = find_weights(folder, IMAGE_ENCODER)
    vision, unknown = read_clip_vision(folder, len(weights.tensors))
    preprocessing, file, further = read_preprocessing(folder, vision.image_size)
    label = f"{IMAGE_ENCODER} of model folder {quote_path(folder)}"
    return ImageEncoderPlan(
        label, vision, preprocessing, file, weights, tuple(plain(key) for key in (*unknown, *further))
    )


class ImageEncoder:
    """CLIP's picture encoder of a model folder.

    It computes in float32 on the CPU whatever the pipeline runs in and on: one picture is little work (0.16 TFLOP with
    ViT-L/14), the device's memory stays free, and the embedding depends on neither. Raises UserError for a folder that
    does not fit.
    """

    width = WIDTH

    def __init__(self, folder: Path) -> None:
        from ea_runtime.models import meta

        self.folder = folder
        plan = plan_image_encoder(folder)
        meta.require_fit(meta.compare(meta.build_shapes(plan.build), plan.weights.shapes), plan.label)
        self.notes = tuple(plan.notes())

    def encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures of any size -> embeddings (N, 768), float32 on the CPU. Raises UserError."""
        return self.load()(pictures)

    def load(self, device: str | torch.device = "cpu") -> Callable[[Sequence[Image.Image]], Tensor]:
        """`encode` with the weights kept, for many pictures. Raises UserError."""
        import torch

        from ea_runtime.models.loading import load_module

        plan = plan_image_encoder(self.folder)  # again: the files may have changed since
        network: Any = load_module(plan.build, plan.weights, plan.label, device=device, dtype=torch.float32)

        def encode(pictures: Sequence[Image.Image]) -> Tensor:
            pixels = torch.stack([torch.from_numpy(plan.preprocessing.pixels(one)) for one in pictures])
            with torch.no_grad():
                # one by one: a picture's embedding does not depend on the others
                return torch.cat([network(pixel_values=one[None]).image_embeds for one in pixels.to(device)])

        return encode
