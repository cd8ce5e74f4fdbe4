"""The mapping of pixels to latents, and the numbers of frames and sizes that fit.

"frames" are pixels, "latent frames" latents. The number of latent frames follows from the VAE's config; the sizes
that fit from the VAE's and the denoiser's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

from ea_runtime.errors import UserError

#: Frames x height x width of one request, all its videos together: V2's largest, 144 x 768 x 768, three times
#: over.
MAX_PIXELS = 1 << 28
#: The number that EasyAnimate V2 divides latents by, whatever the VAE's config says.
V2_SCALE = 0.18215
_REFERENCE_CLASS_DEFAULT = 0.1825
#: Latent frames that a motion module has positions for, if its config does not say.
MAX_POSITIONS = 4096


@dataclass(frozen=True, slots=True)
class Geometry:
    """The mapping of pixels to latents, in space and time.

    latent_channels: C. spatial_ratio: pixels per latent position. size_multiple: height and width in pixels must be
    multiples of it. chunk_frames, chunk_latents: frames and latent frames that the VAE processes together. is_slice:
    the slice VAE's rule (4k or 4k + 1 frames) instead of MagViT's (1 or a multiple of 9). max_latent_frames: the
    number that the denoiser has positions for, or None. scale: the denoiser's latents are the VAE's times this.
    """

    latent_channels: int = 4
    spatial_ratio: int = 8
    size_multiple: int = 16
    chunk_frames: int = 9
    chunk_latents: int = 3
    is_slice: bool = False
    max_latent_frames: int | None = None
    scale: float = V2_SCALE

    @classmethod
    def from_configs(cls, vae: Any = None, denoiser: Any = None) -> Geometry:
        """From the parts' configs: mappings or attribute holders; None stands for EasyAnimate V2's."""
        blocks = _get(vae, "down_block_types")
        if blocks is None:
            widths = _get(vae, "block_out_channels") or _get(vae, "ch_mult") or (1, 2, 4, 4)
            halvings = len(widths) - 1
        else:
            halvings = sum("Spatial" in name for name in list(blocks)[:-1])
        ratio = 2**halvings
        motions = motion_settings(denoiser)
        is_grid = _get(denoiser, "motion_module_type") == "VanillaGrid"
        grid = int(_get(motions[0], "block_size") or 1) if is_grid and motions else 1
        positions = [
            int(_get(motion, "temporal_position_encoding_max_len") or MAX_POSITIONS)
            for motion in motions
            if _get(motion, "temporal_position_encoding") is not False
        ]
        return cls(
            latent_channels=latent_channels(denoiser) or int(_get(vae, "latent_channels") or 4),
            spatial_ratio=ratio,
            size_multiple=ratio * int(_get(denoiser, "patch_size") or 2) * grid,
            chunk_frames=int(_get(vae, "mini_batch_encoder") or 9),
            chunk_latents=int(_get(vae, "mini_batch_decoder") or 3),
            is_slice=bool(_get(vae, "slice_compression_vae")),
            max_latent_frames=min(positions, default=None),
            scale=latent_scale(vae),
        )

    @property
    def temporal_ratio(self) -> int:
        """Frames per latent frame (V2: 4)."""
        if self.is_slice:
            return self.chunk_frames // self.chunk_latents
        return (self.chunk_frames - 1) // max(self.chunk_latents - 1, 1)

    def num_latents(self, num_frames: int) -> int:
        """Latent frames of a video of `num_frames` frames, a number that fits."""
        if self.is_slice:
            return -(-num_frames // self.temporal_ratio)
        return 1 if num_frames == 1 else num_frames // self.chunk_frames * self.chunk_latents

    def pieces(self, num_frames: int) -> list[slice]:
        """The frames of each pass of the VAE's encoder, which sees nothing of the others."""
        alone = num_frames % 2 if self.is_slice else 0
        starts = range(alone, num_frames, self.chunk_frames)
        return [slice(0, 1)] * alone + [slice(i, min(i + self.chunk_frames, num_frames)) for i in starts]

    def num_frames(self, num_latents: int) -> int:
        """Frames that `num_latents` latent frames decode to. Raises UserError if no video has that many."""
        if self.is_slice:  # as the reference: an odd number of latent frames has frame 0 alone
            alone = num_latents % 2
            return alone + (num_latents - alone) * self.temporal_ratio
        if num_latents != 1 and num_latents % self.chunk_latents:
            raise UserError(
                f"`latents` must have 1 latent frame or a multiple of {self.chunk_latents}, got {num_latents}"
            )
        return 1 if num_latents == 1 else num_latents // self.chunk_latents * self.chunk_frames

    def fits(self, num_frames: int) -> bool:
        """True if a video may have that many frames."""
        if num_frames == 1:
            return True
        if self.is_slice:
            return num_frames >= self.temporal_ratio and num_frames % self.temporal_ratio in (0, 1)
        return num_frames > 0 and num_frames % self.chunk_frames == 0

    def check_num_frames(self, value: Any) -> int:
        """`num_frames` as an int. Raises UserError with the two nearest numbers that fit."""
        number = check_int("num_frames", value)
        limit = self.max_latent_frames
        if limit is not None:
            longest = range((limit + 1) * self.chunk_frames, 0, -1)
            most = next(n for n in longest if self.fits(n) and self.num_latents(n) <= limit)
            if number > most:
                raise UserError(
                    f"`num_frames` must be at most {most} for this denoiser, got {number}; use {most}"
                )
        if not self.fits(number):
            rule = f"1 or a multiple of {self.chunk_frames}"
            if self.is_slice:
                rule = f"a multiple of {self.temporal_ratio}, or one more"
            below = next(
                (n for n in range(number - 1, max(number - 1 - self.chunk_frames, 0), -1) if self.fits(n)),
                None,
            )
            above = next(
                n for n in range(max(number, 0) + 1, max(number, 0) + 2 + self.chunk_frames) if self.fits(n)
            )
            use = f"{above}" if below is None else f"{below} or {above}"
            raise UserError(f"`num_frames` must be {rule}, got {number}; use {use}")
        return number

    def check_size(self, height: Any, width: Any, limit: int = MAX_PIXELS) -> tuple[int, int]:
        """Height and width in pixels as ints. limit: pixels of a frame.

        Raises UserError with the two nearest sizes that fit.
        """
        height, width = check_int("height", height), check_int("width", width)
        step = self.size_multiple
        if height * width > limit:
            side = math.isqrt(limit) // step * step
            raise UserError(
                f"`width` and `height` must give at most {limit:,} pixels, got {width}x{height}; "
                f"use up to {side}x{side}"
            )
        if min(height, width) < 1 or height % step or width % step:
            low = [max(size // step, 1) * step for size in (width, height)]
            high = [max(-(-size // step), 1) * step for size in (width, height)]
            use = " or ".join(dict.fromkeys(f"{w}x{h}" for w, h in (low, high)))
            raise UserError(
                f"`width` and `height` must be multiples of {step}, "
                f"got {width}x{height} (width x height); use {use}"
            )
        return height, width

    def latent_shape(
        self, batch: int, num_frames: int, height: int, width: int
    ) -> tuple[int, int, int, int, int]:
        """(B, C, t, h, w)."""
        t, ratio = self.num_latents(num_frames), self.spatial_ratio
        return (batch, self.latent_channels, t, height // ratio, width // ratio)

    def check_budget(
        self, batch: int, num_frames: int, height: int, width: int, limit: int = MAX_PIXELS
    ) -> None:
        """Raises UserError, with what fits, if the videos' pixels exceed `limit`."""
        pixels = batch * num_frames * height * width
        if pixels <= limit:
            return
        most = limit // (batch * height * width)
        fitting = next((n for n in range(most, 0, -1) if self.fits(n)), None)
        side = int(math.sqrt(limit / (batch * num_frames))) // self.size_multiple * self.size_multiple
        uses = [f"num_frames {fitting}"] if fitting else []
        uses += [f"size {side}x{side}"] if side else []
        uses += ["fewer prompts at a time"] if batch > 1 else []
        videos = f"{batch} videos of " if batch > 1 else ""
        raise UserError(
            f"{videos}{num_frames} frames of {width}x{height} are {pixels:,} pixels, at most {limit:,} "
            f"may be asked for at once; use {' or '.join(uses) or 'a smaller size'}"
        )


def latent_scale(vae_config: Any) -> float:
    """The factor between a denoiser's latents and the VAE's own.

    V2 multiplies by 0.18215 and ignores the config; its class default 0.1825 was never in use. Any other value in
    a config counts. Differs from EasyAnimate: there such a config has no effect.
    """
    scale = _get(vae_config, "scaling_factor")
    return V2_SCALE if scale in (None, _REFERENCE_CLASS_DEFAULT) else float(scale)


def motion_settings(denoiser: Any) -> list[Any]:
    """The settings of a denoiser's motion modules: one for all blocks (V2), or of even and of odd ones (V3)."""
    keys = ["motion_module_kwargs"]
    if _get(denoiser, "basic_block_type") == "global_motionmodule":
        keys = ["motion_module_kwargs_even", "motion_module_kwargs_odd"]
    return [found for found in (_get(denoiser, key) for key in keys) if found]


def takes_known_frames(denoiser: Any) -> bool:
    """True for a denoiser that takes known frames as channels next to the latents, as V3's inpainting models do."""
    into, out = _get(denoiser, "in_channels"), _get(denoiser, "out_channels")
    return bool(into and out) and 2 * int(into) == 3 * int(out)


def takes_picture(denoiser: Any) -> bool:
    """True for a denoiser that takes known frames and CLIP's embedding of the first one, as V3's does."""
    return takes_known_frames(denoiser) and _get(denoiser, "enable_clip_in_inpaint") is not False


def latent_channels(denoiser: Any) -> int | None:
    """C, the channels of the latents that a denoiser takes; None if its config does not say."""
    into = _get(denoiser, "in_channels")
    if not into:
        return None
    return int(into) // 3 if takes_known_frames(denoiser) else int(into)


def check_int(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """`value` as an int within low..high. Raises UserError."""
    bounds = "" if low is None else f" of {low} or more" if high is None else f" from {low} to {high}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = index(value)
    except TypeError as error:
        raise UserError(f"`{name}` must be a whole number{bounds}, got {short(value)}") from error
    if (low is not None and number < low) or (high is not None and number > high):
        raise UserError(f"`{name}` must be a whole number{bounds}, got {number}")
    return number


def _get(config: Any, name: str) -> Any:
    if config is None:
        return None
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def short(value: Any) -> str:
    """Type and value for an error's line, cut at 40 characters."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
