"""The tables of a `vae` config, and the checks across them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ea_runtime.errors import UserError
from ea_runtime.training.data.dataset import SetOptions
from ea_runtime.training.options import Table

Stage = Literal["magvit", "slice", "slice-decoder"]


class DataTable(SetOptions):
    """The set and its cut. Clips have 4k + 1 frames, at most `num_frames` (slices: 4k too)."""

    # Left at the set's own default of a VAE chunk, clips between two chunks would lose frames that fit here.
    chunk: int = Field(
        default=1, gt=0, description="a video too short for num_frames gives a multiple of this many frames"
    )
    crop: Literal["centre", "random"] = Field(
        default="random", description="where a file of another shape is cut"
    )


class InitTable(Table):
    """The start of a run, and a change to the latents after its last step."""

    folder: str | None = Field(default=None, description="start from this VAE instead of [model]")
    inflate: bool = Field(
        default=False, description="put picture weights into the last tap of every kernel in time"
    )
    whiten: bool = Field(
        default=False,
        description="after the last step, fold a scale and a shift per channel into the quant convolutions, so that "
        "0.18215 x latent has zero mean and unit deviation over the set",
    )


class LossTable(Table):
    """Weights of the terms and when they begin. Each term is a mean over its elements (see `reduction`)."""

    l1: float = Field(default=1.0, ge=0)
    mse: float = Field(default=0.1, ge=0)
    kl: float = Field(default=1e-6, ge=0)
    perceptual: float = Field(
        default=1.0, ge=0, description="of the perceptual distance; off without its weights"
    )
    perceptual_name: str = Field(default="lpips", description="an installed distance")
    perceptual_weights: str | None = Field(
        default=None, description="its weights: a .safetensors file, or a folder of them"
    )
    adversarial: float = Field(
        default=0.5, ge=0, description="of the discriminators' term, times the adaptive weight; 0: none"
    )
    adversarial_start: int = Field(
        default=50_001, ge=0, description="first step, counted from 0, with discriminators"
    )
    reduction: Literal["mean", "sum"] = Field(
        default="mean",
        description="'sum': over each frame's and each video's elements, as EasyAnimate; see losses.py",
    )


class DiscriminatorTable(Table):
    """Sizes of the discriminators."""

    channels: int = Field(
        default=64, gt=0, description="width of the first layer of the frames' discriminator"
    )
    num_layers: int = Field(default=3, gt=0, description="its strided layers")
    clip_channels: tuple[int, ...] = Field(
        default=(64, 128, 256), min_length=1, description="widths of the clips' blocks"
    )


class RatesTable(Table):
    """A factor for the learning rate of each part."""

    encoder: float = Field(default=1.0, gt=0)
    decoder: float = Field(default=1.0, gt=0)
    discriminator: float = Field(default=1.0, gt=0)


class VaeOptions(Table):
    """`stage` and the tables [data], [model], [init], [loss], [discriminator] and [rates] of a `vae` config.

    stage: "magvit" trains the causal VAE on pictures and clips of 4k + 1 frames; "slice" starts from its weights
    and trains the whole network slice by slice; "slice-decoder" continues with the decoder alone.
    """

    stage: Stage = "magvit"
    data: DataTable
    model: dict[str, Any] = Field(default_factory=dict)
    init: InitTable = InitTable()
    loss: LossTable = LossTable()
    discriminator: DiscriminatorTable = DiscriminatorTable()
    rates: RatesTable = RatesTable()
    memory_format: Literal["contiguous", "channels_last_3d"] = "channels_last_3d"

    def check(self) -> None:
        """Raises UserError, one line, if keys contradict each other."""
        init = self.init
        if self.stage != "magvit" and init.folder is None:
            before = "magvit" if self.stage == "slice" else "slice"
            raise UserError(
                f"`init.folder` must name a VAE of stage {before!r} for `stage` {self.stage!r}, got nothing; "
                f"train that first"
            )
        if init.folder is not None and self.model:
            raise UserError(
                "[model] and `init.folder` exclude each other: the folder's config.json describes the VAE; "
                "leave one out"
            )
        if init.inflate and self.stage != "magvit":
            raise UserError(f"`init.inflate` is for causal kernels, `stage` is {self.stage!r}; leave it out")
        if init.whiten and self.stage == "slice-decoder":
            raise UserError(
                "`init.whiten` changes the encoder, which `stage` 'slice-decoder' keeps; leave it out"
            )
        if not any((self.loss.l1, self.loss.mse, self.loss.perceptual)):
            raise UserError(
                "`loss.l1`, `loss.mse` and `loss.perceptual` are all 0: no loss of reconstruction is left; set one"
            )
