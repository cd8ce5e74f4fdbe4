"""The one training loop: order, optimiser, averages, log, checkpoints that resume to the bit, progress.

A run is a folder: config.json (as run), log.jsonl (a line a step), checkpoint-N/ (a loadable model folder
`model/` with the averaged weights, and the training state), and at the end `final/`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch import Tensor

from ea_runtime.checkpoint import atomic_folder, checkpoints, newest_complete, prune, require_space
from ea_runtime.errors import UserError
from ea_runtime.training.average import WeightAverage
from ea_runtime.training.muon import MuonAdamW
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.order import BatchOrder
from ea_runtime.training.processes import share_weights, sum_over_processes, wait_for_all, world
from ea_runtime.training.progress import TrainingProgress
from ea_runtime.training.recipe import Recipe
from ea_runtime.training.state import load_state, save_state

#: A step whose loss or gradient is not finite is skipped; this many in a row end the run.
MAX_SKIPPED_IN_A_ROW = 20
#: What may change when a run goes on: where and how often it saves and logs, and what it runs on.
MAY_CHANGE = {
    "train.save_every", "train.keep", "train.log_every", "train.threads", "train.device", "run.out"
}  # fmt: skip


class Trainer:
    """Trains one recipe in one folder.

    config: the whole config as run; a run can go on with the same one only (see MAY_CHANGE).
    Raises UserError where the recipe leaves nothing to train.
    """

    def __init__(self, recipe: Recipe, options: TrainOptions, out: Path, config: dict[str, Any]) -> None:
        self.recipe = recipe
        self.options = options
        self.out = out
        self.config = config
        self.modules = recipe.modules()
        share_weights(self.modules.values())
        self.order = BatchOrder(recipe.buckets(), options.batch_size, options.seed)
        self.optimizer = MuonAdamW(
            self._groups(), lr=options.lr, betas=options.betas, eps=options.eps,
            weight_decay=options.weight_decay,
            dtype=torch.bfloat16 if options.dtype == "bf16" else torch.float32,
        )  # fmt: skip
        self.averages = {name: WeightAverage(module, options.ema) for name, module in self.modules.items()}
        self.rank, self.processes = world()
        self.step = 0
        self.skipped = 0
        self._stop = False
        self._figure_names: list[str] | None = None

    def run(self, *, resume: bool) -> Path:
        """Trains to the last step and returns `final/`, the finished model folder. Main thread only.

        resume: go on from the newest complete checkpoint; without one, start.
        SIGTERM and Ctrl-C end the step, save a checkpoint and raise KeyboardInterrupt.
        Raises UserError for a folder that holds another run or a damaged one, for a full disk, and where the
        loss stays infinite or NaN.
        """
        self._open(resume)
        previous = {
            number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            with (
                TrainingProgress(self.options.steps, self.step, show=self.rank == 0) as progress,
                self._log() as log,
            ):
                stop = False
                while self.step < self.options.steps and not stop:
                    line, stop = self._one_step()
                    log.write(_json(line) + "\n")
                    if self.step % self.options.log_every == 0:
                        progress.show(line)
                    if self.step % self.options.save_every == 0 or self.step == self.options.steps or stop:
                        if self.rank == 0:  # the log on disk is never behind a checkpoint
                            os.fsync(log.fileno())
                        self._save()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.step < self.options.steps:
            raise KeyboardInterrupt
        return self._finish()

    def _one_step(self) -> tuple[dict[str, Any], bool]:
        """One step; the line for the log, and whether any process was asked to stop."""
        options = self.options
        started = time.perf_counter()
        indices = self.order.batch(self.step)
        rate = self._rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimizer.zero_grad(set_to_none=False)
        seed = _seed(options.seed, self.step, self.rank)
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed ^ 1)  # what a recipe draws beside the generator, such as dropout
        figures = {"loss": 0.0, "stop": float(self._stop)}
        for part in _split(indices[self.rank :: self.processes], options.accumulate):
            weight = len(part) / len(indices)
            loss, more = self.recipe.loss(part, generator, self.step)
            (loss * weight).backward()
            for key, value in {"loss": float(loss.detach()), **more}.items():
                figures[key] = figures.get(key, 0.0) + value * weight
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients: list[Tensor] = []
        for parameter in parameters:
            # None and zero differ for the optimiser; which it is must not depend on when a run was resumed
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        figures = self._sum(figures, gradients)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, options.clip))
        if math.isfinite(figures["loss"]) and math.isfinite(norm):
            self.optimizer.step()
            for average in self.averages.values():
                average.update()
            self.skipped = 0
        else:
            self.skipped += 1
            if self.skipped >= MAX_SKIPPED_IN_A_ROW:
                raise UserError(
                    f"{self.skipped} steps in a row had a loss or gradient that is not finite; "
                    "lower `train.lr`, or look at the data of the last lines of log.jsonl"
                )
        self.step += 1
        stop = figures.pop("stop") > 0
        line = {
            "step": self.step, **figures, "lr": options.lr * rate, "grad_norm": norm,
            "seconds": time.perf_counter() - started, "samples": len(indices), "skipped": self.skipped > 0,
        }  # fmt: skip
        return line, stop

    def _sum(self, figures: dict[str, float], gradients: list[Tensor]) -> dict[str, float]:
        """Sums gradients and figures over the processes. One with an empty share takes part with zeros."""
        if self.processes == 1:
            return figures
        if self._figure_names is None:
            names: list[Any] = [list(figures)]
            dist.broadcast_object_list(names)  # the first process always has a share
            self._figure_names = list(names[0])
        kept = self._figure_names
        sums = sum_over_processes(gradients, [figures.get(name, 0.0) for name in kept])
        return dict(zip(kept, sums, strict=True))

    def _groups(self) -> list[dict[str, Any]]:
        groups = []
        for group in self.recipe.parameter_groups():
            kind = group.get("kind", "adamw")
            if kind == "muon" and self.options.muon_lr == 0:
                kind = "adamw"
            peak = (self.options.muon_lr if kind == "muon" else self.options.lr) * group.get("lr_scale", 1.0)
            params = [p for p in group["params"] if p.requires_grad]
            if params:
                groups.append({"params": params, "kind": kind, "peak": peak, "lr": peak})
        if not groups:
            raise UserError("the recipe leaves nothing to train; check its `trainable` patterns")
        return groups

    def _rate(self, step: int) -> float:
        options = self.options
        if step < options.warmup:
            return (step + 1) / options.warmup
        part = min(1.0, (step - options.warmup) / max(1, options.steps - options.warmup))
        if options.schedule == "constant":
            return 1.0
        fall = 0.5 * (1 + math.cos(math.pi * part)) if options.schedule == "cosine" else 1 - part
        return options.final_lr + (1 - options.final_lr) * fall

    def _open(self, resume: bool) -> None:
        """Takes up the run in `out`, or starts one there."""
        newest = newest_complete(self.out)
        if newest is not None and not resume:
            raise UserError(
                f"`out` {str(self.out)!r} holds a run at step {newest[0]}; "
                "go on with --resume or choose another"
            )
        damaged = checkpoints(self.out)
        if newest is None and damaged:
            raise UserError(
                f"`out` {str(self.out)!r} holds checkpoints of a run, but each is damaged, "
                f"{damaged[-1][1].name} too; choose another `out`"
            )
        self.out.mkdir(parents=True, exist_ok=True)
        wait_for_all()
        if newest is None:
            if self.rank == 0:
                (self.out / "log.jsonl").unlink(missing_ok=True)
                text = json.dumps(self.config, indent=1) + "\n"
                (self.out / "config.json").write_text(text, encoding="utf-8")
            return
        self._same_config()
        position = load_state(
            newest[1], modules=self.modules, averages=self.averages, optimizer=self.optimizer
        )
        self.step = position["step"]
        self.skipped = position["skipped"]
        if self.rank == 0:
            self._cut_log()

    def _same_config(self) -> None:
        """Raises UserError naming the keys that differ from the run's own config."""
        path = self.out / "config.json"
        try:
            before, now = _flat(json.loads(path.read_text(encoding="utf-8"))), _flat(self.config)
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"{str(path)!r} must be the config of the run that --resume goes on with: {error}"
            ) from error
        keys = sorted(
            k for k in before.keys() | now.keys() if before.get(k) != now.get(k) and k not in MAY_CHANGE
        )
        if keys:
            changes = ", ".join(f"{k} ({before.get(k)!r} -> {now.get(k)!r})" for k in keys)
            raise UserError(
                f"the run in {str(self.out)!r} was made with another config: {changes}; "
                "set these back or choose another `out`"
            )

    def _cut_log(self) -> None:
        """Drops lines past the checkpoint: those steps will be done again."""
        path = self.out / "log.jsonl"
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] <= self.step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                break  # a torn last line of a killed run
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(partial, path)

    def _log(self) -> TextIO:
        path = self.out / "log.jsonl" if self.rank == 0 else Path(os.devnull)
        return path.open("a", buffering=1, encoding="utf-8")  # by lines, so that it can be followed

    def _save(self) -> None:
        """Writes checkpoint-N. Raises UserError before anything is written where the disk is too full."""
        if self.rank > 0:
            wait_for_all()
            return
        size = sum(p.numel() * 4 for module in self.modules.values() for p in module.parameters())
        require_space(self.out, size * 6)  # weights, averages, two moments, the model folder, and some room
        with atomic_folder(self.out / f"checkpoint-{self.step}") as folder:
            save_state(
                folder, modules=self.modules, averages=self.averages, optimizer=self.optimizer,
                position={"step": self.step, "skipped": self.skipped},
            )  # fmt: skip
            self._swap_averages(lambda: self.recipe.save(folder / "model"))
        prune(self.out, self.options.keep)
        wait_for_all()

    def _swap_averages(self, work: Callable[[], None]) -> None:
        with ExitStack() as stack:
            for average in self.averages.values():
                stack.enter_context(average.swapped_in())
            work()

    def _finish(self) -> Path:
        target = self.out / "final"
        if self.rank > 0:
            return target
        for average in self.averages.values():
            average.install()
        self.recipe.finish()
        with atomic_folder(target) as folder:
            self.recipe.save(folder)
        return target

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        self._stop = True


def _json(line: dict[str, Any]) -> str:
    """One line of JSON; NaN and infinity, which JSON has not, become null."""
    lost = {key: None for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)}
    return json.dumps(line | lost)


def _seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for the draws of a step in a process."""
    digest = hashlib.sha256(f"{seed}:{step}:{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _split(indices: list[int], parts: int) -> list[list[int]]:
    size = max(1, -(-len(indices) // parts))
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
