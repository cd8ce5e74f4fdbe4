"""The metric `clip-score`: how well frames suit the prompt, by a CLIP model in a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ea_runtime.errors import UserError
from ea_runtime.evaluation.clip import Clip
from ea_runtime.evaluation.metric import evenly
from ea_runtime.settings import missing_path
from ea_runtime.video.clip_pictures import normalisation, prepare

if TYPE_CHECKING:
    import torch

_WHAT = "the folder of a CLIP model as transformers saves it, with its tokenizer"


class ClipScoreOptions(BaseModel):
    """clip: folder of a CLIP model with its tokenizer. frames: of each video, spread evenly. device: "cpu", "cuda"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: str = ""
    frames: int = Field(8, ge=1)
    device: str = "cpu"


class ClipScore:
    """100 max(0, cosine) of a frame's and the prompt's embedding (Hessel et al. 2021), mean of the frames: 0 to 100.

    None for a video whose prompt is not known. Longer prompts than the model takes are cut.
    """

    def __init__(self, options: ClipScoreOptions) -> None:
        self.options = options
        self._parts: tuple[Any, Any, tuple[Any, ...]] | None = None

    def missing(self) -> list[str]:
        """A line about the folder if it is not there."""
        return missing_path("clip-score", "clip", self.options.clip, _WHAT)

    def __call__(self, clip: Clip) -> float | None:
        """Raises UserError for a folder that is no CLIP model."""
        if not clip.prompt:
            return None
        import torch

        if self._parts is None:
            self._parts = self._load()
        model, tokenizer, look = self._parts
        longest = model.config.text_config.max_position_embeddings
        words = tokenizer([clip.prompt], truncation=True, max_length=longest, return_tensors="pt")
        frames = [clip.frames[i] for i in evenly(len(clip.frames), self.options.frames)]
        pixels = torch.from_numpy(np.stack([prepare(frame, *look) for frame in frames]))  # N 3 S S
        device = self.options.device
        with torch.inference_mode():
            found = model(
                input_ids=words["input_ids"].to(device),
                attention_mask=words["attention_mask"].to(device),
                pixel_values=pixels.to(device),
            )
            cosines = _unit(found.image_embeds.float()) @ _unit(found.text_embeds.float())[0]
        return float(np.maximum(cosines.cpu().numpy(), 0).mean(dtype=np.float64)) * 100

    def _load(self) -> tuple[Any, Any, tuple[Any, ...]]:
        from transformers import AutoTokenizer, CLIPModel

        folder = Path(self.options.clip).expanduser()
        try:
            model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"clip-score: {str(folder)!r} is not {_WHAT}: {error}") from error
        look = (model.config.vision_config.image_size, *normalisation(folder, "clip-score"))
        return model.to(self.options.device).eval(), tokenizer, look


def _unit(embeds: torch.Tensor) -> torch.Tensor:
    return embeds / embeds.norm(dim=-1, keepdim=True)
