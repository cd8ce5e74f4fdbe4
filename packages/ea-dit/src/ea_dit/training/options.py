"""The tables of a `dit` config, checked once: [data], [model], [init], [loss], [inpaint], [trainable], and so on."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from ea_dit.training.known_frames import Kind
from ea_dit.training.trainable import LOW_RATE, Stage
from ea_runtime.training.latents.cache import EncodedOptions
from ea_runtime.training.options import Table


class DataTable(EncodedOptions):
    """The set, the model folder whose VAE and text encoder code it, and the draws of a batch."""

    drop_text: float = Field(
        0.1, ge=0, le=1, description="share of the samples that see the empty prompt, for guidance"
    )
    random_frame_crop: bool = Field(
        False, description="one batch of clips in ten is cut to a length of 1, 9, 18, ... frames"
    )


class InitTable(Table):
    """The start of the run; by default a fresh network as in [model]."""

    folder: str | None = Field(
        default=None, description="a trained transformer, such as the stage before's `final`"
    )
    from_2d: str | None = Field(
        default=None, description="a PixArt picture transformer; [model] overrides keys of its config"
    )
    motion: str | None = Field(
        default=None,
        description="motion modules to load on top: a file of `ea models extract-motion`, or V1's",
    )

    @model_validator(mode="after")
    def _one_start(self) -> InitTable:
        if self.folder and self.from_2d:
            raise ValueError("give either `folder` (a 3-D model) or `from_2d` (a picture model), not both")
        return self


class LossTable(Table):
    """`snr`: EasyAnimate's own weighting: up to step 249 the error in x_0 counts, in place of that in the noise.

    `min_snr`: weights the noise error by min(SNR, gamma) / SNR (Hang et al. 2023, arXiv 2303.09556); 0: off.

    Timesteps: `uniform_part` of them uniform, the rest sigmoid(normal(`t_mean`, `t_std`)) of the 1,000 steps,
    which spends more of a small budget on the steps that decide layout and motion.
    """

    snr: bool = False
    min_snr: float = Field(default=0.0, ge=0)
    uniform_part: float = Field(default=1.0, ge=0, le=1)
    t_mean: float = 0.0
    t_std: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _one_weighting(self) -> LossTable:
        if self.snr and self.min_snr:
            raise ValueError("`snr` and `min_snr` both weight the noise error; set one of them only")
        return self


class TrainableTable(Table):
    """Parameters to train: regular expressions (or plain pieces) that are searched in their names.

    `patterns`: at the full rate; none: the stage's own. `low`: at `low_rate` times the rate.
    """

    patterns: tuple[str, ...] = ()
    low: tuple[str, ...] = ()
    low_rate: float = Field(default=LOW_RATE, gt=0, le=1)


class PhaseTable(Table):
    """A stretch of the run, from step `start` (counted from 0); 0 takes a figure from [data] or [train]."""

    start: int = Field(ge=0)
    size: int = Field(default=0, ge=0)
    num_frames: int = Field(default=0, ge=0)
    batch_size: int = Field(default=0, ge=0)


class InpaintTable(Table):
    """The masks of known frames of `train.task = "inpaint"` (known_frames.py). The defaults are EasyAnimate V3's."""

    masks: dict[Kind, float] = Field(
        default_factory=lambda: dict.fromkeys(("all", "start", "ends", "box", "part"), 1.0),
        description="how often each kind of mask is drawn, as weights; a kind left out is not",
    )
    known_frames: tuple[int, ...] = Field(
        default=(1, 2, 3, 4),
        min_length=1,
        description="numbers of frames that `start` and `ends` choose from",
    )

    @model_validator(mode="after")
    def _drawable(self) -> InpaintTable:
        if min(self.masks.values(), default=0) < 0 or sum(self.masks.values()) <= 0:
            raise ValueError(f"`masks` must have weights of 0 or more, one above 0, got {self.masks}")
        if min(self.known_frames) < 1:
            raise ValueError(f"`known_frames` must be 1 or more, got {list(self.known_frames)}")
        return self


class SampleTable(Table):
    """The sheets in `samples/`: each of `sample_prompts`, drawn with the averaged weights; none: no sheets.

    Pixels and frames: 0 takes those of the last phase (in stage "align" one frame).
    """

    sample_prompts: tuple[str, ...] = ()
    height: int = Field(default=0, ge=0)
    width: int = Field(default=0, ge=0)
    num_frames: int = Field(default=0, ge=0)
    steps: int = Field(default=12, gt=0)
    guidance: float = Field(default=4.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=1 << 32)


class DitOptions(Table):
    """A whole `dit` config except [run] and [train].

    `stage`: "align" trains on pictures, with the motion modules left out; "motion" trains the motion modules;
    "finetune" the whole network, with [[phases]] from low to high resolution.
    """

    stage: Stage
    data: DataTable
    model: dict[str, Any] = Field(default_factory=dict)
    init: InitTable = InitTable()
    loss: LossTable = LossTable()
    trainable: TrainableTable = TrainableTable()
    inpaint: InpaintTable | None = None
    samples: SampleTable = SampleTable()
    phases: tuple[PhaseTable, ...] = (PhaseTable(start=0),)

    @model_validator(mode="after")
    def _consistent(self) -> DitOptions:
        starts = [phase.start for phase in self.phases]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"`phases` must start at 0 and then at ever later steps, got {starts}")
        if self.stage == "align" and self.data.kinds == "videos":
            raise ValueError("stage 'align' trains on pictures; set data.kinds to 'pictures' or leave it out")
        return self
