"""The tables of a `lora` config, checked once: [base], [network], [init], [card], [memory]; the rest are the base's."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ea_lora.adapters import ALPHA, MAX_RANK, RANK
from ea_runtime.training.options import Table


class BaseTable(Table):
    """The network to adapt. `recipe`: the denoiser's training recipe, found through the host; `settings`: other tables
    of its config, such as {stage = "finetune"}."""

    model: str = Field(default="tiny", description="model folder, or the name of an installed model")
    recipe: str = Field(default="dit", description="recipe that trains this model's denoiser")
    settings: dict[str, Any] = Field(default_factory=dict)


class NetworkTable(Table):
    """The layers that get adapters, and their size. The defaults are V2's."""

    rank: int = Field(default=RANK, gt=0, le=MAX_RANK)
    alpha: float = Field(default=ALPHA, gt=0, description="the change is alpha / rank times up x down")
    dropout: float = Field(default=0.0, ge=0, lt=1)
    include: tuple[str, ...] = Field(default=("*",), description="shell patterns over module paths")
    exclude: tuple[str, ...] = ()
    motion: bool = Field(default=True, description="adapt the motion modules too, as V2 does")
    text: bool = Field(default=False, description="adapt the text encoder too")
    text_rate: float = Field(default=0.1, gt=0, description="its learning rate, as a share of the denoiser's")


class InitTable(Table):
    """The start of the adapters; without one, up is zero."""

    lora: str | None = Field(default=None, description="LoRA file of the same rank, to train it further")


class CardTable(Table):
    """The file's metadata. `trigger_words`: words in a prompt that call the style."""

    name: str = Field(
        default="lora", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="also the file's name"
    )
    trigger_words: tuple[str, ...] = ()
    save_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


class MemoryTable(Table):
    """`low_vram`: the VAE and the text encoder code the set once and leave the device. `offload_blocks`: this many of
    the denoiser's frozen blocks stay on the CPU and are copied one at a time (needs train.gradient_checkpointing)."""

    low_vram: bool = False
    offload_blocks: int = Field(default=0, ge=0)


class LoraOptions(Table):
    """A whole `lora` config except [run] and [train].

    data, loss, inpaint, samples, phases: as in the base's recipe; [data] needs no `parts`: it is the base.
    """

    base: BaseTable = BaseTable()
    network: NetworkTable = NetworkTable()
    init: InitTable = InitTable()
    card: CardTable = CardTable()
    memory: MemoryTable = MemoryTable()
    data: dict[str, Any]
    loss: dict[str, Any] = Field(default_factory=dict)
    inpaint: dict[str, Any] = Field(default_factory=dict)
    samples: dict[str, Any] = Field(default_factory=dict)
    phases: list[dict[str, Any]] = Field(default_factory=list)

    def for_base(self, folder: str, multiple: int) -> dict[str, Any]:
        """The config for the base's own recipe. folder: the base's model folder; multiple: its sizes are multiples of
        this many pixels."""
        cached = {"cache": "make"} if self.memory.low_vram else {}
        tables: dict[str, Any] = {
            "stage": "finetune",
            "init": {"folder": f"{folder}/transformer"},
            **self.base.settings,
            "data": {"parts": folder, "multiple": multiple, **cached, **self.data},
        }
        more = {"loss": self.loss, "inpaint": self.inpaint, "samples": self.samples, "phases": self.phases}
        return tables | {key: value for key, value in more.items() if value}
