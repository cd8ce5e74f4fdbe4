"""The captioner `openai`: any server with OpenAI's /chat/completions, such as vLLM or SGLang."""

from __future__ import annotations

import base64
import os
from contextlib import suppress
from dataclasses import fields
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field, field_validator

from ea_data.caption.words import PRESETS, Preset, prompt_hash, tidy
from ea_data.options import Options
from ea_data.protocols import Caption, FrameRequest, Frames
from ea_runtime.errors import UserError

if TYPE_CHECKING:
    from ea_data.caption.http import JsonClient


class OpenAiOptions(Options):
    """url: of the API, such as http://localhost:8000/v1. model: its name there. api_key_env: the environment variable
    that holds the key; the key itself is in no file. preset: frames, size and prompt for a family of models;
    `frames`, `max_side` and `prompt` override it.

    max_tokens, temperature: of an answer. max_words: longer captions are cut; 0: never. quality: of the JPEGs.
    timeout, retries, backoff, longest_wait (seconds), concurrency (requests at once), max_requests and
    max_total_tokens (budget of one run in one process, 0: none): see ea_data.caption.http.RequestLimits.
    """

    url: str = ""
    model: str = ""
    api_key_env: str = ""
    preset: Literal["", "vila", "videochat2", "llava"] = ""
    frames: int | None = Field(None, ge=1, le=64)
    max_side: int | None = Field(None, ge=32)
    prompt: str | None = None
    max_tokens: int = Field(256, ge=1)
    temperature: float = Field(0.0, ge=0)
    max_words: int = Field(0, ge=0)
    quality: int = Field(85, ge=10, le=95)
    timeout: float = Field(120.0, gt=0)
    retries: int = Field(5, ge=0, le=20)
    backoff: float = Field(1.0, ge=0)
    longest_wait: float = Field(60.0, ge=0)
    concurrency: int = Field(4, ge=1, le=256)
    max_requests: int = Field(0, ge=0)
    max_total_tokens: int = Field(0, ge=0)

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if url and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError(f"`url` must be http(s)://HOST[:PORT]/v1, got {url!r}")
        if parts.username or parts.password:
            raise ValueError("`url` must hold neither user nor password; name a variable in `api_key_env`")
        return url.rstrip("/")


class OpenAiCaptioner:
    """Sends a clip's frames as JPEG data URLs with the prompt. Up to `concurrency` threads may call it at once."""

    version = "1"

    def __init__(self, options: OpenAiOptions) -> None:
        self.options = options
        self.concurrency = options.concurrency
        preset = PRESETS[options.preset]
        self.preset = Preset(
            options.frames or preset.frames,
            options.max_side or preset.max_side,
            options.prompt or preset.prompt,
        )
        self.needs = FrameRequest("even", self.preset.frames, self.preset.max_side)
        self._client: JsonClient | None = None

    def missing(self) -> list[str]:
        lines = []
        for name, example in (("url", "http://localhost:8000/v1"), ("model", "its name on the server")):
            if not getattr(self.options, name):
                lines.append(f"openai: `{name}` is not set; give {example}")
        variable = self.options.api_key_env
        if variable and not os.environ.get(variable):
            lines.append(f"openai: the environment variable {variable!r} (`api_key_env`) is not set")
        return lines

    def __call__(self, frames: Frames, record: dict[str, Any]) -> Caption:
        """frames.pixels: uint8 (N, H, W, 3).

        Raises UserError if the server refuses or answers without text, TransientError if it cannot be reached.
        """
        answer = self.client().post(self.request(frames.pixels))
        text = None
        with suppress(KeyError, IndexError, TypeError):
            text = answer["choices"][0]["message"]["content"]
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{self.options.url} answers without text for clip {record.get('clip_id', '?')}")
        caption = tidy(text, self.options.max_words)
        return Caption(caption, self.options.model, prompt_hash(self.preset.prompt))

    def client(self) -> JsonClient:
        """The client, made at the first call: no other process may share its sockets and locks."""
        if self._client is None:
            from ea_data.caption.http import JsonClient, RequestLimits

            if lines := self.missing():
                raise UserError("; ".join(lines))
            options = self.options
            limits = RequestLimits(**{one.name: getattr(options, one.name) for one in fields(RequestLimits)})
            key = os.environ.get(options.api_key_env, "")
            self._client = JsonClient(f"{options.url}/chat/completions", limits, key)
        return self._client

    def request(self, pixels: np.ndarray) -> dict[str, Any]:
        """The body of a request for frames, uint8 (N, H, W, 3)."""
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_url(frame, self.options.quality)}}
            for frame in pixels
        ]
        content.append({"type": "text", "text": self.preset.prompt})
        return {
            "model": self.options.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.options.max_tokens,
            "temperature": self.options.temperature,
        }


def data_url(frame: np.ndarray, quality: int) -> str:
    """A frame, uint8 (H, W, 3), as a JPEG in a data URL."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
