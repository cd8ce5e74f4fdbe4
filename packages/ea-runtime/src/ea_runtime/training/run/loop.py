"""The training loop. step.py computes a step; here is everything around it: resume, saving, rollbacks, the end.

A run is a folder: config.toml (as run), log.jsonl (one line per step), run.html (a page of it), checkpoint-N/ (a
loadable model folder `model/` with the averaged weights, and the training state), samples/, and at the end `final/`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ea_runtime.errors import UserError, writing
from ea_runtime.files.atomic import atomic_folder, require_space
from ea_runtime.machine.canary import Canary, canary_file
from ea_runtime.machine.formats import Formats
from ea_runtime.machine.processes import from_first, wait_for_all
from ea_runtime.training.data.order import PhaseOrder
from ea_runtime.training.data.workers import Fetcher, FetchJob
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Recipe
from ea_runtime.training.run.budget import ErrorBudget
from ea_runtime.training.run.checkpoints import checkpoints, is_complete, prune, remove_checkpoint
from ea_runtime.training.run.guard import Guard
from ea_runtime.training.run.inspection import Inspector, Look, SampleJudge
from ea_runtime.training.run.progress import TrainingProgress
from ea_runtime.training.run.run_folder import RunFolder, RunLog
from ea_runtime.training.run.same_set import check_set
from ea_runtime.training.run.state import load_state, save_state
from ea_runtime.training.run.step import Stepper, seed_of
from ea_runtime.training.run.validation import Validator, split_phases
from ea_runtime.training.run.watchers import Watchers
from ea_runtime.training.update.average import WeightAverage
from ea_runtime.training.update.optimizers import make_turns, tell_schedule
from ea_runtime.training.update.parallel import choose_parallel
from ea_runtime.training.update.precision import DTYPES

#: Times that a run goes back to a good checkpoint after a spike.
MAX_ROLLBACKS = 3


class Trainer:
    """Trains one recipe in one folder.

    config: the whole config as run; a run can only resume with the same one (see run_folder.MAY_CHANGE).
    say: shows one line to the user. judge: measures the videos that the recipe draws every `sample_every` steps.
    Raises UserError if the recipe leaves nothing to train, or the options exclude each other.
    """

    def __init__(
        self,
        recipe: Recipe,
        options: TrainOptions,
        out: Path,
        config: dict[str, Any],
        say: Callable[[str], None] = lambda line: None,
        judge: SampleJudge | None = None,
    ) -> None:
        if options.dtype == "auto":
            raise ValueError(
                "`options.dtype` must be resolved (ea_runtime.training.update.precision), got 'auto'"
            )
        self.recipe = recipe
        self.options = options
        self.out = out
        self.say = say
        self.modules = recipe.modules()
        phases, held = split_phases(recipe.phases(), options)
        self.order = PhaseOrder(phases, options.batch_size, options.seed)
        self.parallel = choose_parallel(options.parallel, self.modules, len(recipe.turns()))
        self.turns = make_turns(recipe, options)  # after the weights may have been sharded
        self.parallel.prepare(self.turns)
        self.averages = {name: WeightAverage(self.modules[name], options.ema) for name in recipe.averaged()}
        self.rank, self.processes = self.parallel.rank, self.parallel.size
        self.folder = RunFolder(out, config, writes=self.rank == 0)
        self.guard = Guard(options.guard)
        quarantine = out / "quarantine.jsonl" if self.rank == 0 else None
        self.budget = ErrorBudget(options.bad_share, quarantine, self.order.num_samples, say)
        device = self.turns[0].parameters[0].device
        self.formats = Formats(device, DTYPES[options.dtype], say, Canary(device, canary_file()))
        self.stepper = Stepper(
            recipe, options, self.parallel, self.turns, self.averages, self.order, self.formats
        )
        self.validator = (
            Validator(recipe, options, recipe.phases(), held, self.parallel.run)
            if options.validation
            else None
        )
        self.inspector = Inspector(
            recipe, options, self.parallel, self.averages, self.formats, self.validator, judge
        )
        self.step = 0
        self.skipped = 0  # in a row, up to now
        self.rollbacks = 0
        self.saved_step: int | None = None
        self._save_is_due = False
        self._stop = False
        self.watchers: Watchers | None = None
        self._given_up = ""  # why the run ends, after too many steps that were not finite

    def group_lines(self) -> list[str]:
        """One line per parameter group: name, optimiser, size, peak rate."""
        return [line for turn in self.turns for line in turn.lines()]

    def run(self, *, resume: bool) -> Path:
        """Trains to the last step and returns `final/`, the finished model folder. Main thread only.

        resume: continue from the newest complete checkpoint; without one, start.
        SIGTERM and Ctrl-C end the step, save a checkpoint (unless the state is suspect) and raise KeyboardInterrupt.
        Raises UserError for a folder that holds another run or a damaged one, for a full disk, for too many unusable
        files, and if the loss stays infinite or spikes again and again.
        """
        previous = {
            number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            self._open(resume)
            self._loop()
        except (UserError, KeyboardInterrupt) as error:
            self._end("stopped", str(error))
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.step < self.options.steps:
            self._end("stopped", f"at step {self.step}; --resume continues")
            raise KeyboardInterrupt
        final = self._finish()
        self._end("finished")
        return final

    def _loop(self) -> None:
        options = self.options
        with ExitStack() as stack:
            # before anything that starts a thread: workers are forked
            fetcher = Fetcher(self.recipe.fetch, self._jobs_of, options.workers, options.steps)
            stack.callback(fetcher.close)
            shown = self.rank == 0
            self.watchers = Watchers(options, self.out, self.folder.config, self.step, is_on=shown)
            stack.callback(self.watchers.close)
            progress = stack.enter_context(TrainingProgress(options.steps, self.step, show=self.rank == 0))
            log = stack.enter_context(self.folder.open_log())
            stop = False
            while self.step < options.steps and not stop:
                verdict, line, stop = self._one_step(fetcher)
                is_last = self.step == options.steps
                goes_back = verdict == "spike" or (is_last and self.guard.is_rising)
                found = Look() if goes_back or self._given_up else self.inspector.look(self.step)
                self._record(line | found.figures, found.sheet, log, self.watchers)
                if self._given_up:
                    raise UserError(self._given_up)
                if goes_back:
                    log.close()
                    self._roll_back()
                    fetcher.restart()
                    log = stack.enter_context(self.folder.open_log())
                    continue
                progress.take(line)
                if self.step % options.log_every == 0:
                    progress.show(line)
                self._save_is_due |= stop or self.step % options.save_every == 0 or is_last
                # a suspect state is never saved as good; at the end a skipped step leaves the last good one
                if self._save_is_due and (self.guard.is_clean or is_last):
                    if self.rank == 0:  # the log on disk is never behind a checkpoint
                        with self._writing():
                            log.sync()
                    self._save()
            if stop and self._save_is_due:
                self.say(f"the state at step {self.step} is suspect and was not saved")

    def _record(
        self, line: dict[str, Any], sheet: np.ndarray | None, log: RunLog, watchers: Watchers
    ) -> None:
        """Writes a step's line, and samples/step-N.png if there is a sheet."""
        with self._writing():
            if sheet is not None:
                from ea_runtime.video.sheets import write_sheet

                write_sheet(self.out / "samples" / f"step-{self.step}.png", sheet)
            log.line(line)
            watchers.line(line)
            if sheet is not None:
                watchers.sheet(self.step, sheet)

    def _one_step(self, fetcher: Fetcher) -> tuple[str, dict[str, Any], bool]:
        """One step: the guard's verdict, the line for the log, and True if any process was asked to stop."""
        limit = self.options.guard.skips
        # the first of a row, and the last one allowed
        explain = self.skipped in (0, limit - 1)
        result = self.stepper.one_step(
            self.step, self.rollbacks, fetcher, self.guard, self.budget, stop=self._stop, explain=explain
        )
        self.skipped = self.skipped + 1 if result.verdict == "skip" else 0
        self.step += 1
        if result.why:
            said = f"{result.why} is not finite in {self.options.dtype}"
            if self.options.dtype == "fp16":  # a scale that starts too high is found in this way
                said += f", the loss scale falls to {self.turns[0].scaler.get_scale():g}"
            if self.skipped >= limit:
                steps = f"{limit} steps in a row were skipped, the last one is {self.step}"
                self._given_up = f"{steps}: {said}; {self._remedy()}"
            else:
                self.say(f"step {self.step} is skipped: {said}")
        line = {"step": self.step, **result.line}
        line |= {"skipped": result.verdict == "skip", "rollbacks": self.rollbacks}
        return result.verdict, line, result.stop

    def _remedy(self) -> str:
        """The advice for gradients that stay infinite."""
        data = "look at the data of the last lines of log.jsonl"
        if self.options.dtype == "fp32":
            return f"lower `train.lr`, or {data}"
        return f"set `train.dtype` to fp32 in a new run; if that does not help, lower `train.lr` or {data}"

    def _jobs_of(self, step: int) -> list[FetchJob]:
        """This process's fetches for a step: its share of the batch, in `accumulate` parts."""
        share = self.order.draw(step).indices[self.rank :: self.processes]
        seed = seed_of(self.options.seed, step, self.rollbacks)
        size = max(1, -(-len(share) // self.options.accumulate))
        return [FetchJob(share[at : at + size], seed, step) for at in range(0, len(share), size)]

    def _open(self, resume: bool) -> None:
        """Resumes the run in the folder, or starts one there."""
        newest = self.folder.start(resume)
        wait_for_all()
        for line in (*self.group_lines(), *self.order.lines()):
            self.say(line)
        if newest is None:
            with self._writing():
                self.folder.begin()
                check_set(self.recipe, self.out, self.say, is_new=True)
                if self.rank == 0:
                    self.budget.start()
            self._save()  # the state that a spike before the first checkpoint goes back to
            return
        with self._writing():
            check_set(self.recipe, self.out, self.say, is_new=False)
        self._load(newest[1])
        before = self.folder.steps_before()
        if before is not None and before != self.options.steps:
            self.say(tell_schedule(self.options, before, self.step))
        wait_for_all()
        with self._writing():
            self.folder.continue_config()
            self.folder.cut_log(self.step)

    def _load(self, checkpoint: Path) -> None:
        position = load_state(checkpoint, modules=self.modules, averages=self.averages, turns=self.turns)
        self.step = self.saved_step = position["step"]
        self.skipped = position["skipped"]
        self.rollbacks = position["rollbacks"]
        self.guard.load_state_dict(position["guard"])
        self.budget.load_state_dict(position["budget"])
        self._save_is_due = False

    def _roll_back(self) -> None:
        """Back to the newest checkpoint from before what is suspected. Raises UserError after too many times."""
        since = self.guard.suspect_since
        rollbacks = self.rollbacks + 1
        if rollbacks > MAX_ROLLBACKS:
            raise UserError(
                f"the loss spiked again at step {self.step}, after {MAX_ROLLBACKS} rollbacks; lower `train.lr` or "
                f"look at log-rollback-*.jsonl; checkpoint-{self.saved_step} is the last good state"
            )
        good = [
            (step, path)
            for step, path in checkpoints(self.out)
            if step < self.step and (since is None or step <= since) and is_complete(path)
        ]
        chosen = from_first(good[-1] if good else None)
        if chosen is None:
            raise UserError(
                f"the loss spiked at step {self.step}, and no checkpoint from before is left; raise `train.keep`"
            )
        spiked = self.step
        self._load(chosen[1])
        self.rollbacks = rollbacks
        self.folder.cut_log(self.step, keep_as=f"log-rollback-{rollbacks}.jsonl")
        wait_for_all()
        if self.rank == 0:  # later ones are of the abandoned state
            for step, path in checkpoints(self.out):
                if step > self.step:
                    remove_checkpoint(path)
        wait_for_all()
        self.say(f"the loss spiked at step {spiked}; back to checkpoint-{self.step} (rollback {rollbacks})")

    def _save(self) -> None:
        """Writes checkpoint-N. Raises UserError, before anything is written, if the disk is too full."""
        self._save_is_due = False
        position = {"step": self.step, "skipped": self.skipped, "rollbacks": self.rollbacks}
        position |= {"guard": self.guard.state_dict(), "budget": self.budget.state_dict()}
        parts = {"modules": self.modules, "averages": self.averages, "turns": self.turns}
        if self.rank == 0:
            size = sum(p.numel() * 4 for module in self.modules.values() for p in module.parameters())
            # weights, averages, two moments, the model folder, and some room
            require_space(self.out, size * 6)
            with self._writing(), atomic_folder(self.out / f"checkpoint-{self.step}") as folder:
                save_state(folder, **parts, position=position)
                self._save_model(folder / "model")
            prune(self.out, self.options.keep)
        elif self.parallel.is_sharded:
            save_state(None, **parts, position=position)
            self._save_model(None)
        wait_for_all()
        self.saved_step = self.step

    def _save_model(self, folder: Path | None) -> None:
        with ExitStack() as stack:
            self._swap_averages_in(stack)
            stack.enter_context(self.parallel.whole())
            if folder is not None:
                self.recipe.save(folder)

    def _swap_averages_in(self, stack: ExitStack) -> None:
        for average in self.averages.values():
            stack.enter_context(average.swapped_in())

    def _end(self, state: str, note: str = "") -> None:
        if self.watchers is not None:
            self.watchers.end(state, note)

    def _finish(self) -> Path:
        """Installs the averages, lets the recipe finish, and writes `final/`."""
        target = self.out / "final"
        for average in self.averages.values():
            average.install()
        if self.parallel.is_sharded:
            self.parallel.run(self.recipe.finish)
        elif self.rank == 0:
            self.recipe.finish()
        with self.parallel.whole():
            if self.rank == 0:
                with self._writing(), atomic_folder(target) as folder:
                    self.recipe.save(folder)
        return target

    def _writing(self) -> AbstractContextManager[None]:
        """Within the block a full disk is a UserError that reports what is saved."""
        saved = f"step {self.saved_step} of {self.options.steps}" if self.saved_step else "nothing yet"
        return writing(self.out, f"saved is {saved}: make room there and continue with --resume")

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        self._stop = True
