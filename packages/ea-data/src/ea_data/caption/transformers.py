"""The captioner `transformers`: a vision-language model that transformers knows, run here.

Frames go in as several pictures of one question, as LLaVA, LLaVA-OneVision, Qwen-VL, InternVL and similar models take
them; `frames_as = "video"` passes them as a video, for processors that accept one (they need torchvision).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ea_data.caption.words import PROMPT, prompt_hash, tidy
from ea_data.options import Options
from ea_data.protocols import Caption, FrameRequest, Frames
from ea_runtime.errors import UserError


class TransformersOptions(Options):
    """model: a local folder, or the name of a model in the local cache. download: fetch it if missing.

    trust_remote_code: run Python code that comes with the model, with all your rights; off unless you set it.
    """

    model: str = ""
    prompt: str = Field(PROMPT, min_length=1)
    frames: int = Field(8, ge=1, le=64)
    max_side: int = Field(448, ge=32)
    frames_as: Literal["images", "video"] = "images"
    max_tokens: int = Field(200, ge=1)
    max_words: int = Field(0, ge=0)
    device: str = "cpu"
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    download: bool = False
    trust_remote_code: bool = False


class TransformersCaptioner:
    """Greedy decoding, so the same clip gets the same words."""

    version = "1"

    def __init__(self, options: TransformersOptions) -> None:
        self.options = options
        self.needs = FrameRequest("even", options.frames, options.max_side)
        self._parts: tuple[Any, Any] | None = None

    def missing(self) -> list[str]:
        name = self.options.model
        if not name:
            return [
                "transformers: `model` is not set; give a local folder or a model's name in the local cache"
            ]
        place = Path(name).expanduser()
        if (place / "config.json").is_file() or (self.options.download and not place.is_dir()):
            return []
        if place.is_dir():
            return [f"transformers: `model`: {name!r} has no config.json; give a model folder"]
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            is_cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
        except HFValidationError:
            is_cached = False
        message = f"{name!r} is no folder and not in the local cache; set download = true to fetch it"
        return [] if is_cached else [f"transformers: `model`: {message}"]

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Caption:
        """frames.pixels: uint8 (N, H, W, 3). Raises UserError if the model cannot be loaded or answers without text."""
        import torch
        from PIL import Image

        if self._parts is None:
            self._parts = self._load()
        processor, model = self._parts
        pictures = [Image.fromarray(frame) for frame in frames.pixels]
        shown = (
            [{"type": "video", "video": pictures}]
            if self.options.frames_as == "video"
            else [{"type": "image", "image": picture} for picture in pictures]
        )
        question = [{"role": "user", "content": [*shown, {"type": "text", "text": self.options.prompt}]}]
        inputs = processor.apply_chat_template(
            question, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.options.device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(model.dtype)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=self.options.max_tokens, do_sample=False)  # 1 L
        answer = tokens[:, inputs["input_ids"].shape[1] :]
        text = tidy(processor.batch_decode(answer, skip_special_tokens=True)[0], self.options.max_words)
        if not text:
            raise UserError(f"{self.options.model!r} has no words for clip {record.get('clip_id', '?')}")
        return Caption(text, self.options.model, prompt_hash(self.options.prompt))

    def _load(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        if lines := self.missing():
            raise UserError("; ".join(lines))
        options = self.options
        place = Path(options.model).expanduser()
        name = str(place) if place.is_dir() else options.model
        settings: dict[str, Any] = {
            "trust_remote_code": options.trust_remote_code,
            "local_files_only": place.is_dir() or not options.download,
        }
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[options.dtype]
        try:
            processor: Any = AutoProcessor.from_pretrained(name, **settings)
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                name, dtype=dtype, output_loading_info=True, **settings
            )
            model, report = loaded
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"transformers: {options.model!r} cannot be loaded: {reason}") from error
        if lost := sorted(report["missing_keys"]):
            raise UserError(
                f"transformers: {options.model!r} lacks weights, first {lost[0]!r}; its captions would be random"
            )
        if not getattr(processor, "chat_template", None):
            message = "has no chat template; give an instruction-tuned model"
            raise UserError(f"transformers: {options.model!r} {message}")
        return processor, model.to(options.device).eval()
