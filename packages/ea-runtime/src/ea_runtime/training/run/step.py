"""One step of training: its batch, its turns (gradients, clipping, update), and its line in the log."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ea_runtime.machine.formats import Formats
from ea_runtime.machine.memory import peak_rss
from ea_runtime.machine.processes import gather
from ea_runtime.training.data.order import PhaseOrder
from ea_runtime.training.data.workers import Fetcher
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Batch, Loss, Recipe
from ea_runtime.training.run.budget import ErrorBudget
from ea_runtime.training.run.guard import Guard
from ea_runtime.training.run.loss_bins import loss_by_bin
from ea_runtime.training.run.not_finite import find_first
from ea_runtime.training.update.average import WeightAverage
from ea_runtime.training.update.optimizers import TurnOptimizer, all_turns_train, only_turn_trains, rate
from ea_runtime.training.update.parallel import Strategy


@dataclass(slots=True)
class StepResult:
    """verdict: "ok", "skip" or "spike". line: for the log. stop: True if any process was asked to stop.

    why: what was not finite first, of a step that was skipped and explained.
    """

    verdict: str
    line: dict[str, Any]
    stop: bool
    why: str = ""


@dataclass(slots=True)
class TurnResult:
    """A turn's numbers over the whole batch, of all processes."""

    loss: float
    grad_norm: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    samples: list[float] | None = None
    timesteps: list[int] | None = None
    is_trained: bool = True  # True if its loss had a gradient: a turn may sit steps out


class Stepper:
    """Computes steps. Its random draws are functions of (seed, step, rollbacks) and the sample."""

    def __init__(
        self,
        recipe: Recipe,
        options: TrainOptions,
        parallel: Strategy,
        turns: Sequence[TurnOptimizer],
        averages: dict[str, WeightAverage],
        order: PhaseOrder,
        formats: Formats,
    ) -> None:
        self.recipe = recipe
        self.formats = formats
        self.options = options
        self.parallel = parallel
        self.turns = list(turns)
        self.averages = averages
        self.order = order

    def one_step(
        self,
        step: int,
        rollbacks: int,
        fetcher: Fetcher,
        guard: Guard,
        budget: ErrorBudget,
        *,
        stop: bool,
        explain: bool = False,
    ) -> StepResult:
        """step: counted from 0. explain: a skipped step is done again to find out why.

        Raises UserError beyond the budget of unusable samples.
        """
        started = time.perf_counter()
        draw = self.order.draw(step)
        parts = fetcher.batches(step)
        wait = time.perf_counter() - started
        sizes = [len(part) for part in parts if len(part)]
        facts = gather((sizes, [entry for part in parts for entry in part.bad], stop))
        used = sum(sum(counts) for counts, _, _ in facts)
        bad = [entry for _, entries, _ in facts for entry in entries]
        budget.count(used, bad)
        line: dict[str, Any] = {"loss": math.nan}
        verdict, why = "ok", ""
        if used:
            batches = [part for part in parts if len(part)]
            batches = self.parallel.pad(batches, [len(counts) for counts, _, _ in facts])
            weights = [size / used for size in sizes] + [0.0] * (len(batches) - len(sizes))
            weighted = list(zip(batches, weights, strict=True))
            group = f"{draw.phase}:{draw.bucket}"
            verdict, turn = self._turns(weighted, step, rollbacks, guard, group, line)
            if verdict == "skip" and explain:
                why = self._explain(turn, weighted, step, rollbacks)
            self.parallel.share_buffers()
        line |= {"lr": self.options.lr * rate(self.options, step), "samples": len(draw.indices), "used": used}
        line |= {
            "bad": len(bad),
            "seconds": time.perf_counter() - started,
            "wait": wait,
            "memory": memory_mb(),
        }
        return StepResult(verdict, line, any(asked for _, _, asked in facts), why)

    def _turns(
        self,
        batches: list[tuple[Batch, float]],
        step: int,
        rollbacks: int,
        guard: Guard,
        group: str,
        line: dict[str, Any],
    ) -> tuple[str, int]:
        """Every turn in order, until one is not "ok": the verdict and that turn's number; fills the line.

        batches: with their parts of the whole.
        """
        verdict, number, is_updated = "ok", 0, False
        try:
            for number, turn in enumerate(self.turns):
                only_turn_trains(self.turns, turn)
                turn.set_rate(rate(self.options, step))
                seed = seed_of(self.options.seed, step, rollbacks, number)
                result = self._gradients(turn, batches, step, seed)
                suffix = "" if number == 0 else f"_{turn.turn}"
                line |= {
                    f"loss{suffix}": result.loss,
                    **result.figures,
                    f"grad_norm{suffix}": result.grad_norm,
                }
                if not result.is_trained:
                    continue
                if number == 0 and result.samples is not None and result.timesteps is not None:
                    line |= loss_by_bin(result.samples, result.timesteps)
                if number == 0:
                    seen = result.samples, result.timesteps
                    verdict = guard.check(step, result.loss, result.grad_norm, *seen, group)
                elif not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
                    verdict = guard.check(step, result.loss, result.grad_norm)
                if verdict == "ok":
                    turn.step()
                    is_updated = True
                turn.end()
                if verdict != "ok":
                    break
        finally:
            all_turns_train(self.turns)
        if is_updated:
            for average in self.averages.values():
                average.update()
        return verdict, number

    def _explain(self, number: int, batches: list[tuple[Batch, float]], step: int, rollbacks: int) -> str:
        """The first value that is not finite in a skipped turn, which is done again, by all processes."""
        turn = self.turns[number]
        only_turn_trains(self.turns, turn)
        seed = seed_of(self.options.seed, step, rollbacks, number)
        modules, scale = self.recipe.modules(), turn.scaler.state_dict()
        buffers = [(buffer, buffer.clone()) for module in modules.values() for buffer in module.buffers()]
        try:
            found = gather(find_first(modules, lambda: self._gradients(turn, batches, step, seed).loss))
        finally:
            turn.end()
            turn.scaler.load_state_dict(scale)  # the step was one step, and lowers it once
            turn.zero_grad()
            all_turns_train(self.turns)
            for buffer, before in buffers:
                buffer.copy_(before)
        return next((what for what in found if what is not None), "the loss")

    def _gradients(
        self, turn: TurnOptimizer, batches: list[tuple[Batch, float]], step: int, seed: int
    ) -> TurnResult:
        """The gradients of a turn over the whole batch, the same in every process, clipped; and its numbers."""
        turn.zero_grad()
        share = Share()
        for place, (batch, weight) in enumerate(batches):
            # dropout is drawn per process and part; what a recipe draws, per sample (see draws.py)
            seed_global(seed_of(seed, self.parallel.rank, place))
            generator = torch.Generator().manual_seed(seed)
            with self.formats.watch():
                loss: Loss = self.parallel.run(
                    lambda b=batch, g=generator: self.recipe.loss(b, g, step, turn.turn)
                )
                if loss.total.requires_grad:
                    total = turn.scaler.scale(loss.total * weight)
                    self.parallel.backward(total, turn.turn, is_last=place == len(batches) - 1)
            share.take(loss, weight)
        result = merge(gather(share))
        if result.is_trained:
            result.grad_norm = turn.finish_gradients()
        return result


@dataclass(slots=True)
class Share:
    """One process's share of a turn: sums of figures times their weights, and each sample's loss."""

    loss: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)
    samples: list[float] | None = field(default_factory=list)
    timesteps: list[int] | None = field(default_factory=list)
    is_trained: bool = False

    def take(self, loss: Loss, weight: float) -> None:
        """weight: the part's share of all samples; 0 if it only kept in step."""
        self.is_trained |= loss.total.requires_grad
        if weight == 0:
            return
        self.loss += float(loss.total.detach()) * weight
        for name, value in loss.figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + float(value) * weight
        self.samples = _joined(self.samples, loss.samples)
        self.timesteps = _joined(self.timesteps, loss.timesteps)


def _joined(values: list[Any] | None, more: Tensor | None) -> list[Any] | None:
    return None if values is None or more is None else values + more.detach().cpu().tolist()


def merge(shares: Sequence[Share]) -> TurnResult:
    """Merges the numbers of all processes."""
    result = TurnResult(sum(share.loss for share in shares), is_trained=shares[0].is_trained)
    for share in shares:
        for name, value in share.figures.items():
            result.figures[name] = result.figures.get(name, 0.0) + value
    if all(share.samples is not None for share in shares):
        samples = [value for share in shares for value in share.samples or ()]
        timesteps = [value for share in shares for value in share.timesteps or ()]
        result.samples = samples or None
        result.timesteps = timesteps if samples and len(timesteps) == len(samples) else None
    return result


def seed_of(*numbers: int) -> int:
    """A 63-bit seed from some numbers: the run's seed, a step, rollbacks, a turn."""
    digest = hashlib.sha256(":".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_global(seed: int) -> None:
    """Seeds torch's own generators as torch.manual_seed does, without the stack that it keeps while CUDA is idle."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def memory_mb() -> float:
    """Peak memory so far, in MB: of the GPU if there is one, else of the process."""
    if torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return round(peak_rss() / 1e6, 1)
