"""The update of one turn: its parameter groups, optimisers, loss scale, gradient clipping and rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Recipe
from ea_runtime.training.update.muon import MuonAdamW
from ea_runtime.training.update.sharded import whole


def rate(options: TrainOptions, step: int) -> float:
    """The fraction of the peak rates for a step (counted from 0): warm-up, then the schedule."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    if options.schedule == "constant":
        return 1.0
    part = min(1.0, (step - options.warmup) / max(1, options.steps - options.warmup))
    fall = 0.5 * (1 + math.cos(math.pi * part)) if options.schedule == "cosine" else 1 - part
    return options.final_lr + (1 - options.final_lr) * fall


def tell_schedule(options: TrainOptions, before: int, step: int) -> str:
    """A line about a run that has other `train.steps` than it began with. step: the number of those done."""
    line = f"`train.steps` {before} -> {options.steps}: "
    if options.schedule == "constant" or step <= options.warmup:
        return line + f"continues as a run of {options.steps} steps would"
    old, new = (rate(options.model_copy(update={"steps": steps}), step) for steps in (before, options.steps))
    return line + (
        f"the {options.schedule} schedule over {options.steps} steps continues from here, at {new:.3g} of the peak "
        f"rate in place of {old:.3g}; one run of {options.steps} steps would differ, unless its schedule were constant"
    )


def make_turns(recipe: Recipe, options: TrainOptions) -> list[TurnOptimizer]:
    """The recipe's turns that train anything. Raises as `check_groups` and `TurnOptimizer` do."""
    groups, names = recipe.parameter_groups(), list(recipe.turns())
    check_groups(groups, names)
    turns = [TurnOptimizer(groups, name, options, first=name == names[0]) for name in names]
    return [turn for turn in turns if turn.parameters]


def check_groups(groups: list[dict[str, Any]], known: Sequence[str]) -> None:
    """Raises UserError if nothing is trained, and ValueError if a recipe's groups do not fit its turns, `known`."""
    seen: dict[int, str] = {}
    for group in groups:
        turn = group.get("turn", known[0])
        if turn not in known:
            raise ValueError(f"`turn` of a parameter group must be one of {', '.join(known)}, got {turn!r}")
        for parameter in group["params"]:
            if seen.setdefault(id(parameter), turn) != turn:
                raise ValueError(f"a parameter is trained in two turns, {seen[id(parameter)]!r} and {turn!r}")
    if not any(parameter.requires_grad for group in groups for parameter in group["params"]):
        raise UserError("the recipe leaves nothing to train; check its `trainable` patterns")


class TurnOptimizer:
    """The groups and optimisers of one turn of a step.

    groups: the recipe's (of all turns). first: True if groups without a turn are this one's. Their `kind` is "muon"
    or "adamw" (the latter meaning `train.optimizer`), `lr_scale` multiplies the rate, `name` is shown.
    Raises UserError, one line: 8-bit Adam without bitsandbytes; Muon, 8-bit Adam or fp16 with sharded weights.
    """

    def __init__(
        self, groups: list[dict[str, Any]], turn: str, options: TrainOptions, *, first: bool
    ) -> None:
        self.turn = turn
        self.clip = options.clip
        self.groups = _choose(groups, turn, options, first)
        self.parameters: list[Tensor] = [p for group in self.groups for p in group["params"]]
        self.optimizers = _build(self.groups, options)
        device = self.parameters[0].device.type if self.parameters else "cpu"
        self.scaler = torch.amp.GradScaler(device, enabled=options.dtype == "fp16")

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def set_rate(self, part: float) -> None:
        """part: fraction of the peak rates."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * part

    def finish_gradients(self) -> float:
        """After the backward passes: undoes the loss scale, clips, and returns the norm before clipping."""
        for parameter in self.parameters:
            # None and zero differ for the optimiser: the choice must not depend on when a run was resumed
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.scaler.is_enabled():
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        return float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)))

    def step(self) -> None:
        """Applies the gradients. They must be finite."""
        for optimizer in self.optimizers:
            optimizer.step()

    def end(self) -> None:
        """After `finish_gradients`, with or without a step: adapts the loss scale."""
        if self.scaler.is_enabled():
            self.scaler.update()

    def lines(self) -> list[str]:
        """One line per group: name, optimiser, number of parameters, peak rate."""
        lines = []
        for group in self.groups:
            count = sum(p.numel() for p in group["params"])
            lines.append(
                f"{group['name']}: {group['shown']}, {count / 1e6:.3f} M parameters, peak rate {group['peak']:.3g}"
            )
        return lines


def _choose(
    groups: list[dict[str, Any]], turn: str, options: TrainOptions, first: bool
) -> list[dict[str, Any]]:
    """The groups of this turn that train anything, with their rates and optimiser."""
    chosen = []
    for number, group in enumerate(groups):
        if group.get("turn", turn if first else None) != turn:
            continue
        is_muon = group.get("kind", "adamw") == "muon" and options.muon_lr > 0
        peak = (options.muon_lr if is_muon else options.lr) * group.get("lr_scale", 1.0)
        params = [p for p in group["params"] if p.requires_grad]
        if params:
            shown = "muon" if is_muon else options.optimizer
            kind = "muon" if is_muon else options.optimizer.removesuffix("8bit")
            name = group.get("name", f"{turn} {number}")
            chosen.append(
                {"params": params, "kind": kind, "peak": peak, "lr": peak, "name": name, "shown": shown}
            )
    return chosen


def _build(groups: list[dict[str, Any]], options: TrainOptions) -> list[torch.optim.Optimizer]:
    if options.parallel == "fsdp":
        refused = "`train.parallel` fsdp shards the weights: "
        if any(group["kind"] == "muon" for group in groups):
            raise UserError(refused + "Muon needs whole matrices; set `train.muon_lr` to 0, or use ddp")
        if options.optimizer == "adamw8bit":
            raise UserError(refused + "8-bit Adam cannot follow; set `train.optimizer` to adamw, or use ddp")
        if options.dtype == "fp16":
            raise UserError(refused + "scaled fp16 cannot follow; set `train.dtype` to bf16, or use ddp")
    if not groups:
        return []
    common: dict[str, Any] = options.model_dump(include={"lr", "betas", "eps", "weight_decay"})
    ours, in_8bit = groups, []
    if options.optimizer == "adamw8bit":
        ours = [group for group in groups if group["kind"] == "muon"]
        in_8bit = [group for group in groups if group["kind"] != "muon"]
    built: list[torch.optim.Optimizer] = []
    if ours:
        dtype = torch.float32 if options.dtype == "fp32" else torch.bfloat16
        built.append(MuonAdamW([_bare(group) for group in ours], dtype=dtype, **common))
    if in_8bit:
        built.append(_adamw8bit()([_bare(group) for group in in_8bit], **common))
    return built


def _bare(group: dict[str, Any]) -> dict[str, Any]:
    return {key: group[key] for key in ("params", "kind", "peak", "lr")}


def _adamw8bit() -> Any:
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        return AdamW8bit
    except ImportError as error:
        raise MissingPackageError(
            "`train.optimizer` is 'adamw8bit', which needs the package bitsandbytes; "
            "`pip install 'ea-runtime[adam8bit]'`, or set it to 'adamw'"
        ) from error


def only_turn_trains(turns: list[TurnOptimizer], chosen: TurnOptimizer) -> None:
    """Turns gradients of the other turns' parameters off, which saves their part of the backward pass."""
    if len(turns) > 1:
        for turn in turns:
            for parameter in turn.parameters:
                parameter.requires_grad_(turn is chosen)


def all_turns_train(turns: list[TurnOptimizer]) -> None:
    """Undoes `only_turn_trains`."""
    for turn in turns:
        for parameter in turn.parameters:
            parameter.requires_grad_(True)
