"""A set as the denoiser sees it: latents and text features, computed once and kept in one safe file.

The file is keyed by the set's dataset.json, the weights of the VAE and the text encoder, and the frame count;
when any of them changes, another file is made.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ea_runtime.errors import UserError
from ea_runtime.pipeline_settings import latent_scale
from ea_runtime.training.clips import ClipSet, to_float
from ea_runtime.training.processes import wait_for_all, world
from ea_runtime.training.recipe import Context

#: Clips coded at a time.
BATCH = 16


class EncodedSet:
    """Latents (fp16; one draw from the posterior) and token features (fp16) of every item, in memory.

    folder: the set, all of one size. parts: the model folder that codes it. num_frames: frames of a clip.
    kinds: what of the set is used; sample numbers count the used items.
    shapes: ("image" or "video", C, t, h, w) of each sample, the bucket key.
    width: D of the token features. scale: what latents are multiplied by, as the pipeline has it (`latent_scale`).
    Raises UserError, one line: no set, no such model folder, a file that does not decode or is too short.
    """

    def __init__(
        self,
        folder: Path,
        parts: Path,
        num_frames: int,
        kinds: Literal["both", "videos", "pictures"],
        context: Context,
    ) -> None:
        clips = ClipSet(folder, keep_bytes=0)
        used = clips.choose(kinds)
        path = folder / "cache" / f"encoded-{_key(folder, parts, num_frames)}.safetensors"
        if world()[0] == 0 and not _is_whole(path):
            _encode(clips, parts, num_frames, path, context)
        wait_for_all()
        context.say(f"latents and text: {path.name}")
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            self.scale = float(file.metadata()["scaling_factor"])
        self._latents = {
            key: tensors[f"latents/{key}"] for key in ("image", "video") if f"latents/{key}" in tensors
        }
        place = tensors["place"].tolist()
        self._where = [("video" if clips.items[i].is_video else "image", place[i]) for i in used]
        self._tokens = tensors["tokens"]  # (sum of lengths, D)
        self.width = self._tokens.shape[1]
        ends = tensors["token_ends"].tolist()
        self._spans = [(ends[i - 1] if i else 0, ends[i]) for i in used]
        self._empty = (ends[len(clips) - 1], ends[len(clips)])
        self.shapes = [(k, *self._latents[k].shape[1:]) for k, _ in self._where]

    def latents(self, indices: list[int]) -> Tensor:
        """Latents times the scaling factor, float32 (B, C, t, h, w)."""
        kind = self._where[indices[0]][0]
        rows = torch.tensor([self._where[i][1] for i in indices])
        return self._latents[kind][rows].float() * self.scale

    def text(self, indices: list[int], dropped: list[bool]) -> tuple[Tensor, Tensor]:
        """Features (B, L, D) float32 and mask (B, L) int64, 1 on tokens; L is the longest of the batch.

        dropped: which samples see the empty prompt in place of their own.
        """
        spans = [self._empty if drop else self._spans[i] for i, drop in zip(indices, dropped, strict=True)]
        longest = max(end - start for start, end in spans)
        text = torch.zeros(len(spans), longest, self.width)
        mask = torch.zeros(len(spans), longest, dtype=torch.int64)
        for row, (start, end) in enumerate(spans):
            text[row, : end - start] = self._tokens[start:end]
            mask[row, : end - start] = 1
        return text, mask


def _key(folder: Path, parts: Path, num_frames: int) -> str:
    digest = hashlib.sha256(f"2:{num_frames}".encode())
    files = [folder / "dataset.json"]
    for part in ("vae", "text_encoder", "tokenizer"):
        files += sorted(
            p for p in (parts / part).glob("*") if p.suffix in (".json", ".safetensors", ".model")
        )
    for file in files:
        if not file.exists():
            raise UserError(
                f"{str(file)!r} is not there; `data.path` must be a set and `data.parts` a model folder"
            )
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]


def _is_whole(path: Path) -> bool:
    """Whether the file is there, has all its bytes, and is of the present kind."""
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except (OSError, SafetensorError):
        return False
    return {"place", "tokens", "token_ends"} <= names and bool({"latents/image", "latents/video"} & names)


def _encode(clips: ClipSet, parts: Path, num_frames: int, path: Path, context: Context) -> None:
    """Codes the whole set into the file `path`, which appears whole or not at all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or threads)  # the other processes wait
    try:
        tensors, scale = _code(clips, parts, num_frames, context)
    finally:
        torch.set_num_threads(threads)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"scaling_factor": repr(scale)})
    partial.replace(path)


@torch.inference_mode()
def _code(clips: ClipSet, parts: Path, num_frames: int, context: Context) -> tuple[dict[str, Tensor], float]:
    """The file's tensors, and the scale of its latents."""
    from ea_runtime.folder import load_parts

    loaded = load_parts(parts, device=context.device, dtype=torch.float32, parts=("vae", "text"))
    vae, text = loaded.vae, loaded.text
    place = torch.zeros(len(clips), dtype=torch.int64)
    latents: dict[str, list[Tensor]] = {"image": [], "video": []}
    generator = torch.Generator().manual_seed(0)
    for kind in ("image", "video"):
        members = [i for i, item in enumerate(clips.items) if item.is_video == (kind == "video")]
        wanted = 1 if kind == "image" else num_frames
        for start in range(0, len(members), BATCH):
            batch = members[start : start + BATCH]
            place[batch] = torch.arange(start, start + len(batch))
            frames = torch.from_numpy(to_float([_cut(clips, i, wanted) for i in batch])).to(context.device)
            latents[kind].append(vae.encode_video(frames, generator=generator).half().cpu())
            if start // BATCH % 50 == 0:
                context.say(f"coding {kind}s: {start + len(batch)} of {len(members)}")
    tensors: dict[str, Tensor] = {f"latents/{k}": torch.cat(v) for k, v in latents.items() if v}
    tensors |= _encode_text([item.text for item in clips.items], text)
    tensors["place"] = place
    return tensors, latent_scale(vae.config)


def _encode_text(captions: list[str], text: Any) -> dict[str, Tensor]:
    """Features of every caption and, last, of the empty prompt; padding is cut."""
    tokens, ends, total = [], [], 0
    prompts = [*captions, ""]
    for start in range(0, len(prompts), 256):
        encoded = text.encode(prompts[start : start + 256])
        for embeds, mask in zip(encoded.embeds, encoded.mask, strict=True):
            kept = embeds[mask.bool()].half().cpu()
            tokens.append(kept)
            total += len(kept)
            ends.append(total)
    return {"tokens": torch.cat(tokens), "token_ends": torch.tensor(ends)}


def _cut(clips: ClipSet, index: int, wanted: int) -> Any:
    frames = clips.frames(index)
    if len(frames) < wanted:
        name = clips.items[index].path.name
        raise UserError(
            f"`data.num_frames` is {wanted}, but {name} has {len(frames)} frames; "
            "lower it or leave such files out"
        )
    return frames[:wanted]
