"""`ea train RECIPE CONFIG`: one command for every recipe that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="What to train: a recipe, for example vae, dit or text.")],
    config: Annotated[Path, typer.Argument(help="TOML file, see configs/.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override a value: table.key=value. Repeatable.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest complete checkpoint.")
    ] = False,
) -> None:
    """Trains a part of a model; the run's folder holds config, log, checkpoints and the final model."""
    from rich.console import Console

    from ea_runtime.errors import UserError
    from ea_runtime.plugins import get_host
    from ea_runtime.training.options import read_config, validate

    host = get_host()
    record = host.get("recipes", recipe)
    run = read_config(config, settings)
    if run.run.recipe != recipe:
        raise UserError(f"`config` {config.name} is for recipe {run.run.recipe!r}, got {recipe!r}")

    import torch

    from ea_runtime.device import choose_device
    from ea_runtime.training.loop import Trainer
    from ea_runtime.training.processes import process_group
    from ea_runtime.training.recipe import Context

    recipe_class = record.build()
    options = validate(recipe_class.options_model, run.recipe_options, config.name)
    if run.train.threads:
        torch.set_num_threads(run.train.threads)
    device = str(choose_device(run.train.device))
    # the same words for the processes that share the batches
    words = [f"--plugin={path}" for path in host.files]
    words += ["train", recipe, str(config), *(f"--set={s}" for s in settings or [])]
    words += ["--resume"] if resume else []
    out = Path(run.run.out)
    as_run = {
        "run": run.run.model_dump(),
        "train": run.train.model_dump(mode="json"),
        **options.model_dump(mode="json"),
    }
    with process_group(run.train.processes, words) as rank:
        console = Console(stderr=True, quiet=rank > 0)

        def say(line: str) -> None:
            console.print(line, highlight=False, markup=False, soft_wrap=True)

        torch.manual_seed(run.train.seed)
        context = Context(seed=run.train.seed, device=device, out=out, say=say, dtype=run.train.dtype)
        instance = recipe_class(options, context)
        trainable = sum(
            p.numel() for m in instance.modules().values() for p in m.parameters() if p.requires_grad
        )
        num_samples = len(instance.buckets())
        say(f"{recipe}: {trainable / 1e6:.2f} M trainable parameters, {num_samples} samples, {device}")
        trainer = Trainer(instance, run.train, out, as_run)
        try:
            final = trainer.run(resume=resume)
        except KeyboardInterrupt:
            if trainer.step:
                say(f"step {trainer.step} of {run.train.steps} is saved; --resume goes on from there")
            raise
        say(f"done: {final}")
