"""The tables of a `lora` config, checked once: [base], [network], [card], [memory]; [data] and more are the base's."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ea_lora.adapters import ALPHA, MAX_RANK, RANK


class BaseTable(BaseModel):
    """What is adapted. `recipe`: the training recipe of the denoiser, found through the host; `settings`: more tables
    of that recipe's config, such as {stage = "finetune"}."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(default="tiny", description="model folder, or the name of an installed model")
    recipe: str = Field(default="dit", description="recipe that trains this model's denoiser")
    settings: dict[str, Any] = Field(default_factory=dict)


class NetworkTable(BaseModel):
    """Which layers get adapters, and how large. The defaults are V2's."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(default=RANK, gt=0, le=MAX_RANK)
    alpha: float = Field(default=ALPHA, gt=0, description="the change is alpha / rank times up x down")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    include: tuple[str, ...] = Field(default=("*",), description="shell patterns over module paths")
    exclude: tuple[str, ...] = ()
    motion: bool = Field(default=True, description="adapt the motion modules too, as V2 does")
    text: bool = Field(default=False, description="adapt the text encoder too")
    text_rate: float = Field(default=0.1, gt=0, description="its rate, as a part of the denoiser's")


class CardTable(BaseModel):
    """What the file says of itself. `trigger_words`: what a prompt must hold to call the style."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        default="lora", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="also the file's name"
    )
    trigger_words: tuple[str, ...] = ()
    save_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


class MemoryTable(BaseModel):
    """`low_vram`: the VAE and the text encoder code the set once and leave the device. `offload_blocks`: so many of
    the denoiser's frozen blocks wait on the CPU and come over one at a time (needs train.gradient_checkpointing)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low_vram: bool = False
    offload_blocks: int = Field(default=0, ge=0)


class LoraOptions(BaseModel):
    """A whole `lora` config but for [run] and [train].

    data, loss, samples, phases: as the base's recipe has them; of [data] `parts` may be left out, it is the base.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: BaseTable = BaseTable()
    network: NetworkTable = NetworkTable()
    card: CardTable = CardTable()
    memory: MemoryTable = MemoryTable()
    data: dict[str, Any]
    loss: dict[str, Any] = Field(default_factory=dict)
    samples: dict[str, Any] = Field(default_factory=dict)
    phases: list[dict[str, Any]] = Field(default_factory=list)

    def for_base(self, folder: str, multiple: int) -> dict[str, Any]:
        """The config that the base's own recipe gets. folder: the base's model folder; multiple: pixels that its sizes
        are multiples of."""
        cached = {"cache": "make"} if self.memory.low_vram else {}
        tables: dict[str, Any] = {
            "stage": "finetune",
            "init": {"folder": f"{folder}/transformer"},
            **self.base.settings,
            "data": {"parts": folder, "multiple": multiple, **cached, **self.data},
        }
        more = {"loss": self.loss, "samples": self.samples, "phases": self.phases}
        return tables | {key: value for key, value in more.items() if value}
