"""The training recipe `lora`: adapters on a frozen denoiser, trained by the denoiser's own recipe.

The base's recipe (`dit` for V2's) is found through the host. It opens the set, draws timesteps and noise and computes
the loss; here its network is frozen and given peft's layers, and only those are trained, averaged and saved. A recipe
can be a base when it has `model` (the network), takes `data.parts` and `init.folder`, and its `fetch` and `loss` do
not depend on which parameters train.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ea_lora.adapters import MOTION_PATTERN, adapt, base_parameters, base_tensors
from ea_lora.card import Card
from ea_lora.further import start_from
from ea_lora.io import write_lora
from ea_lora.offload import offload_blocks
from ea_lora.options import LoraOptions
from ea_runtime.errors import UserError
from ea_runtime.files.safe import read_json
from ea_runtime.models.geometry import Geometry
from ea_runtime.models.hash import part_hash
from ea_runtime.models.layout import resolve_folder
from ea_runtime.plugins.host import get_host
from ea_runtime.settings import validate
from ea_runtime.text.lost_words import tell_lost_words
from ea_runtime.training.recipe import Batch, Context, Loss, Phase, RecipeDefaults, check_task
from ea_runtime.training.update.precision import DTYPES, short_attention


class LoraRecipe(RecipeDefaults):
    """Trains LoRA matrices; see `ea_runtime.training.recipe.Recipe`.

    base: the denoiser's own recipe. network: its frozen denoiser, with the adapters in place.
    Raises UserError, one line: no such model or recipe, all that the base's recipe refuses, no layer to adapt.
    """

    options_model = LoraOptions
    tasks = ("auto", "generate", "inpaint")

    def __init__(self, options: LoraOptions, context: Context) -> None:
        self.options, self.context = options, context
        self.folder = resolve_folder(options.base.model)
        recipe_class, for_base = _base_of(options)
        check_task(recipe_class, options.base.recipe, context.task)
        self.base = recipe_class(for_base, context)
        self.network: nn.Module = self.base.model
        table = options.network
        exclude = (*table.exclude, *(() if table.motion else (MOTION_PATTERN,)))
        sizes: dict[str, Any] = {"rank": table.rank, "alpha": table.alpha, "dropout": table.dropout}
        with torch.random.fork_rng(devices=[]):
            if not context.dry_run:
                torch.manual_seed(context.seed)
            self.adapters = {"lora": adapt(self.network, include=table.include, exclude=exclude, **sizes)}
            if table.text:
                from ea_lora.trained_text import TrainedText

                self.text = TrainedText(self.base, sizes, options.memory.low_vram)
                self.adapters["lora_text"] = self.text.adapters
        if options.init.lora is not None:
            for line in start_from(options.init.lora, self.adapters.values(), options.base.model):
                context.say(line)
        # 16-bit training computes on copies in 16 bits: a frozen base is kept once, in that type
        for tensor in base_tensors(self.network):
            tensor.data = tensor.data.to(DTYPES[context.dtype])
        lost = tell_lost_words(options.card.trigger_words, "`card.trigger_words`")
        if lost:
            context.say(lost)
        self._steps = 0
        self._save_memory()

    def _save_memory(self) -> None:
        memory, context = self.options.memory, self.context
        if memory.low_vram and not context.dry_run:
            self.base.source.coder.free()
        if memory.offload_blocks:
            if not context.gradient_checkpointing:
                raise UserError(
                    "`memory.offload_blocks` needs `train.gradient_checkpointing = true`: a block is copied a second "
                    "time for its gradients"
                )
            count = offload_blocks(
                self.network, memory.offload_blocks, context.device, lambda: short_attention(context.device)
            )
            context.say(
                f"{memory.offload_blocks} frozen blocks stay on the CPU: {count / 1e6:,.0f} MB less on the device"
            )

    @classmethod
    def cache(cls, options: LoraOptions, context: Context) -> None:
        """`ea train cache`: as the base's recipe does."""
        recipe_class, for_base = _base_of(options)
        recipe_class.cache(for_base, context)

    def modules(self) -> dict[str, nn.Module]:
        return dict(self.adapters)

    def parameter_groups(self) -> list[dict[str, Any]]:
        rates = {"lora": 1.0, "lora_text": self.options.network.text_rate}
        return [
            {"params": list(module.parameters()), "kind": "adamw", "lr_scale": rates[name], "name": name}
            for name, module in self.adapters.items()
        ]

    def phases(self) -> Sequence[Phase]:
        return self.base.phases()

    def training_set(self) -> tuple[Any, Path] | None:
        return getattr(self.base, "training_set", lambda: None)()

    def fetch(self, indices: list[int], seed: int, step: int) -> Batch:
        return self.base.fetch(indices, seed, step)

    def loss(self, batch: Batch, generator: torch.Generator, step: int, turn: str) -> Loss:
        self._steps = step + 1
        return self.base.loss(batch, generator, step, turn)

    def sample_sheet(self, step: int) -> Any | None:
        sheet = self.base.sample_sheet(step)
        if self.options.memory.low_vram:
            self.base.source.coder.free()
        return sheet

    def describe(self) -> dict[str, Any]:
        from ea_lora.estimate import describe_memory

        known = {
            key: value for key, value in self.base.describe().items() if key in ("start", "largest sample")
        }
        layers = {name: f"{len(module):,} layers" for name, module in self.adapters.items()}
        trained = sum(p.numel() for module in self.adapters.values() for p in module.parameters())
        total = sum(p.numel() for p in base_parameters(self.network))
        return {
            "base": f"{self.options.base.model} through recipe {self.options.base.recipe!r}",
            **known,
            "adapters": layers,
            "trained": f"{trained:,} beside {total:,} frozen",
            **describe_memory(self),
        }

    def save(self, folder: Path) -> None:
        """Writes `folder`/<card.name>.safetensors, in V2's layout, with the metadata that `ea lora info` shows."""
        card, dtype = self.options.card, DTYPES[self.options.card.save_dtype]
        layers = [layer for module in self.adapters.values() for layer in module.to_layers(dtype)]
        folder.mkdir(parents=True, exist_ok=True)
        write_lora(folder / f"{card.name}.safetensors", layers, self._card().to_metadata())

    def _card(self) -> Card:
        table, data = self.options.network, self.options.data
        samples = [bucket for bucket in self.phases()[0].buckets if bucket is not None]
        videos = sum(getattr(bucket, "kind", "image") == "video" for bucket in samples)
        return Card(
            rank=table.rank,
            alpha=table.alpha,
            trigger_words=self.options.card.trigger_words,
            base_model=self.options.base.model,
            base_hash=part_hash(self.folder, "denoiser"),
            title=self.options.card.name,
            training={
                "num_samples": len(samples) - videos,
                "num_videos": videos,
                **({"steps": self._steps} if self._steps else {}),
                "set": Path(str(data.get("path", ""))).name,
                "seed": self.context.seed,
                "motion": table.motion,
                "text": table.text,
            },
        )


def _base_of(options: LoraOptions) -> tuple[Any, Any]:
    """The base's recipe and its validated options. Raises UserError."""
    folder = resolve_folder(options.base.model)
    recipe_class = get_host().get("recipes", options.base.recipe).build()
    geometry = Geometry.from_configs(
        *(read_json(folder, f"{part}/config.json") for part in ("vae", "transformer"))
    )
    tables = options.for_base(str(folder), geometry.size_multiple)
    return recipe_class, validate(recipe_class.options_model, tables, "lora config")
