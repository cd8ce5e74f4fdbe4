"""`ea train RECIPE CONFIG`: one command for every recipe that is installed; `ea train cache CONFIG` encodes its set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ea_runtime.training.options import RunConfig

app = typer.Typer()

#: In the recipe's place: code the set of a config once, train nothing.
CACHE = "cache"


@app.command()
def train(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="What to train: vae, dit, text, ... ; `cache` encodes a config's set; without one, lists all."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Argument(help="TOML file, see configs/.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override a value: table.key=value. Repeatable.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the newest complete checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show data, steps, parameters and memory; train and write nothing."),
    ] = False,
) -> None:
    """Train a part of a model; the run's folder has config, log, checkpoints and the final model."""
    from ea_runtime.errors import UserError
    from ea_runtime.machine.light_imports import without_collecting
    from ea_runtime.plugins.host import get_host
    from ea_runtime.settings import validate
    from ea_runtime.training.options import read_config
    from ea_runtime.training.recipe import check_task

    host = get_host()
    if recipe is None:
        _list_recipes()
        return
    record = None if recipe == CACHE else _recipe(recipe)
    if config is None:
        raise UserError(f"Missing argument 'CONFIG': `ea train {recipe} CONFIG.toml`; configs/ holds some")
    run = read_config(config, settings)
    if record is None:
        record = _recipe(run.run.recipe)
    elif run.run.recipe != recipe:
        raise UserError(f"`config` {config.name} is for recipe {run.run.recipe!r}, got {recipe!r}")
    with without_collecting():
        recipe_class = record.build()
    check_task(recipe_class, run.run.recipe, run.train.task)
    options = validate(recipe_class.options_model, run.recipe_options, config.name)
    if recipe == CACHE:
        if resume or dry_run:
            raise UserError(
                "`ea train cache` takes no --resume and no --dry-run; what is encoded already is kept"
            )
        _cache(recipe_class, options, run)
        return
    if dry_run:
        _show_plan(recipe_class, options, run, resume)
        return
    words = [*(context.obj or [f"--plugin={path}" for path in host.files])]
    # the same words for the processes that share the batches
    words += ["train", recipe, str(config), *(f"--set={setting}" for setting in settings or [])]
    words += ["--resume"] if resume else []
    _train(recipe_class, options, run, words, resume)


def _recipe(name: str) -> Any:
    """The record of a recipe. Raises UserError with the nearest name, `cache` among them."""
    from ea_runtime.errors import MissingPackageError, UserError, nearest
    from ea_runtime.plugins.host import get_host

    host = get_host()
    try:
        return host.get("recipes", name)
    except MissingPackageError:
        raise
    except UserError as error:
        hint = nearest(name, [CACHE])
        raise UserError(
            f"{error}{hint}" if hint and "did you mean" not in str(error) else str(error)
        ) from None


def _list_recipes() -> None:
    from rich.table import Table

    from ea_runtime.machine.terminal import make_console
    from ea_runtime.plugins.host import get_host

    table = Table(box=None, pad_edge=False)
    for title in ("recipe", "trains", "package"):
        table.add_column(title)
    for name, entry in sorted(get_host().records("recipes").items()):
        table.add_row(name, entry.record.summary, entry.package)
    console = make_console()
    console.print(table, highlight=False, markup=False)
    console.print(
        "\n`ea train RECIPE CONFIG.toml` trains, `ea train cache CONFIG.toml` encodes its set once.",
        markup=False,
    )


def _say(line: str, *, quiet: bool = False) -> None:
    from ea_runtime.machine.terminal import make_console

    make_console(stderr=True, quiet=quiet).print(line, highlight=False, markup=False, soft_wrap=True)


#: Part of a run's products that `auto` lets a reduced format get wrong, and have computed in float32 instead.
MAX_SHARE_WRONG = 1 / 3


def _resolved(
    recipe_class: Any,
    options: Any,
    run: RunConfig,
    device: str,
    resume: bool,
    say: Any,
    *,
    check: bool = True,
) -> RunConfig:
    """The config with the type that it computes in, in place of "auto".

    check: a new run with "auto" goes through its largest step on shapes; if a reduced format is wrong for too much of
    it, the run takes float32.
    """
    import torch

    from ea_runtime.machine.canary import Canary, canary_file
    from ea_runtime.machine.processes import from_first, world
    from ea_runtime.training.run.rehearsal import share_wrong
    from ea_runtime.training.run.run_folder import recorded_dtype
    from ea_runtime.training.update.precision import resolve_dtype

    recorded = recorded_dtype(Path(run.run.out)) if resume else None
    dtype = resolve_dtype(run.train.dtype, device, recorded, say)
    if check and run.train.dtype == "auto" and recorded is None and dtype != "fp32" and world()[0] == 0:
        share = share_wrong(
            recipe_class, options, run.train, device, dtype, say, Canary(torch.device(device), canary_file())
        )
        if share > MAX_SHARE_WRONG:
            say(
                f"`train.dtype` auto: fp32 after all, {dtype} is wrong here for {share:.0%} of the arithmetic"
            )
            dtype = "fp32"
    dtype = from_first(dtype)  # machines may differ; the processes of a run may not
    return run.model_copy(update={"train": run.train.model_copy(update={"dtype": dtype})})


def _show_plan(recipe_class: Any, options: Any, run: RunConfig, resume: bool) -> None:
    from ea_runtime.machine.device import choose_device
    from ea_runtime.machine.terminal import make_console
    from ea_runtime.training.run.dry_run import make_plan, show_plan

    device = str(choose_device(run.train.device))
    run = _resolved(recipe_class, options, run, device, resume, _say, check=False)
    plan = make_plan(recipe_class, options, run.train, run.run.recipe, Path(run.run.out), device)
    console = make_console()
    show_plan(
        plan, console if console.is_terminal else make_console(width=160)
    )  # a file has no edge to wrap at


def _cache(recipe_class: Any, options: Any, run: RunConfig) -> None:
    """Encodes latents and text of the config's set with the recipe's `cache(options, context)`, if it has one."""
    from ea_runtime.machine.device import choose_device
    from ea_runtime.training.recipe import Context

    make = getattr(recipe_class, "cache", None)
    if make is None:
        _say(f"recipe {run.run.recipe!r} reads its data directly; there is nothing to encode ahead")
        return
    device = str(choose_device(run.train.device))
    # an existing run continues in its own type, so its set is encoded in that
    dtype = _resolved(recipe_class, options, run, device, True, _say).train.dtype
    out = Path(run.run.out)
    task = run.train.task
    make(options, Context(seed=run.train.seed, device=device, out=out, say=_say, dtype=dtype, task=task))


def _train(recipe_class: Any, options: Any, run: RunConfig, words: list[str], resume: bool) -> None:
    import torch

    from ea_runtime.machine.device import choose_device
    from ea_runtime.machine.processes import local_device, process_group
    from ea_runtime.training.recipe import Context
    from ea_runtime.training.run.loop import Trainer
    from ea_runtime.training.run.run_folder import RunFolder

    if run.train.threads:
        torch.set_num_threads(run.train.threads)
    device = str(choose_device(run.train.device))
    out = Path(run.run.out)
    with process_group(run.train.processes, words, device) as rank:

        def say(line: str) -> None:
            _say(line, quiet=rank > 0)

        device = local_device(device)
        run = _resolved(recipe_class, options, run, device, resume, say)
        as_run = {
            "run": run.run.model_dump(),
            "train": run.train.model_dump(mode="json"),
            **options.model_dump(mode="json"),
        }
        RunFolder(out, as_run, writes=False).refuse_early(resume)  # before a set is encoded
        torch.manual_seed(run.train.seed)
        context = Context(
            seed=run.train.seed, device=device, out=out, say=say, dtype=run.train.dtype,
            gradient_checkpointing=run.train.gradient_checkpointing, task=run.train.task,
        )  # fmt: skip
        instance = recipe_class(options, context)
        trainable = sum(
            p.numel() for m in instance.modules().values() for p in m.parameters() if p.requires_grad
        )
        judge = None
        if run.train.sample_every and rank == 0:
            from ea_runtime.evaluation.samples import SampleMetrics

            judge = SampleMetrics(say)
        trainer = Trainer(instance, run.train, out, as_run, say, judge)
        num_samples = trainer.order.orders[0].num_samples
        say(
            f"{run.run.recipe}: {trainable / 1e6:.2f} M trainable parameters, {num_samples} samples, {device}"
        )
        try:
            final = trainer.run(resume=resume)
        except KeyboardInterrupt:
            if trainer.saved_step:
                say(f"step {trainer.saved_step} of {run.train.steps} is saved; --resume continues from there")
            raise
        say(f"done: {final}")
