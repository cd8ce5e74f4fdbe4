"""`ea train ... --dry-run`: the plan and the memory of a run, without training and without its weights.

The recipe is made on torch's meta device, where tensors have shapes and no values. Memory is counted there: exactly for
what stays from step to step; for activations by computing one batch of each phase's largest bucket on the meta device
and adding up what autograd keeps for the backward pass (under autocast counted as float32, which is more). Not counted:
temporary memory within an operation, the allocator's waste, the libraries.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ea_runtime.errors import UserError
from ea_runtime.models.memory.kept import kept_for_backward
from ea_runtime.training.data.dataset import Bucket, bucket_name
from ea_runtime.training.data.order import BatchOrder, PhaseOrder
from ea_runtime.training.options import TrainOptions
from ea_runtime.training.recipe import Context, Phase, Recipe
from ea_runtime.training.run.validation import split_phases
from ea_runtime.training.update.optimizers import TurnOptimizer, make_turns

#: Bytes that an optimiser keeps per parameter.
_MOMENTS = {"muon": 4, "adamw8bit": 2}
_BUCKETS_SHOWN = 12


@dataclass(slots=True)
class RunPlan:
    """sections: title -> rows (what, how much), in the order in which they are shown."""

    sections: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, section: str, what: str, value: object) -> None:
        self.sections.setdefault(section, []).append((what, str(value)))


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within the block new tensors are on the meta device; the global random state does not change."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


def recipe_of_shapes(
    recipe_class: Any, options: Any, train: TrainOptions, out: Path, dtype: str | None = None
) -> Recipe:
    """The recipe as it is made for a dry run; to be called within `shapes_only`. dtype: None as `train` says."""
    dtype, checkpointing = dtype or train.dtype, train.gradient_checkpointing
    context = Context(
        train.seed, "meta", out, lambda line: None, dtype, checkpointing, dry_run=True, task=train.task
    )
    return recipe_class(options, context)


def make_plan(
    recipe_class: Any, options: Any, train: TrainOptions, name: str, out: Path, device: str
) -> RunPlan:
    """The plan of a run. Raises UserError as the run itself would at its start; writes nothing.

    recipe_class, options: as for the run. name: the recipe's. device: where the run would compute.
    """
    with shapes_only():
        recipe = recipe_of_shapes(recipe_class, options, train, out)
        told = dict(recipe.describe())
    plan = RunPlan()
    phases, held = split_phases(recipe.phases(), train)
    order = PhaseOrder(phases, train.batch_size, train.seed)
    _add_run(plan, train, name, out, device)
    _add_data(plan, order, train)
    if train.validation is not None:
        plan.add("Data", "held out", f"{len(held)} samples, validated every {train.validation.every} steps")
    # the loss scale of fp16 needs a real device, and does not matter here
    turns = make_turns(recipe, train.model_copy(update={"dtype": "fp32"}))
    _add_parameters(plan, recipe, turns)
    _add_memory(plan, recipe, turns, order, train, told.pop("memory", None))
    for what, value in told.items():
        for line, text in _flat(what, value):
            plan.add("Recipe", line, text)
    return plan


def show_plan(plan: RunPlan, console: Console) -> None:
    """Prints the plan as one table, in lines that a script can read."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for number, (title, rows) in enumerate(plan.sections.items()):
        if number:
            table.add_row("", "")
        table.add_row(title, "", style="bold cyan")
        for what, value in rows:
            table.add_row(f"  {what}", value)
    console.print(table, highlight=False, markup=False)


def _add_run(plan: RunPlan, train: TrainOptions, name: str, out: Path, device: str) -> None:
    plan.add("Run", "recipe", name)
    state = "there is something already" if out.exists() else "new"
    plan.add("Run", "writes to", f"{out} ({state}; this plan writes nothing)")
    shared = f", {train.processes} processes ({train.parallel})" if train.processes > 1 else ""
    plan.add("Run", "computes", f"{train.dtype} on {device}{shared}, {train.workers} workers read ahead")
    plan.add("Run", "steps", f"{train.steps:,}")
    batch = f"{train.batch_size} samples"
    if train.processes > 1 or train.accumulate > 1:
        micro = micro_batch(train, train.batch_size)
        batch += f" = {train.processes} processes x {train.accumulate} micro-batches of {micro}"
    plan.add("Run", "global batch", batch)
    plan.add(
        "Run",
        "rate",
        f"warm-up {train.warmup} steps, then {train.schedule} to {train.final_lr:g} of the peak",
    )
    samples = f", samples/ every {train.sample_every}" if train.sample_every else ""
    plan.add("Run", "saves", f"every {train.save_every} steps, keeps {train.keep}{samples}")


def _add_data(plan: RunPlan, order: PhaseOrder, train: TrainOptions) -> None:
    for number, (phase, batches) in enumerate(zip(order.phases, order.orders, strict=True)):
        title = "Data" if len(order.orders) == 1 else f"Data, phase {number + 1}"

        def add(what: str, value: str, title: str = title) -> None:
            plan.add(title, what, value)

        length = _end(order, number, train) - phase.start
        counts = Counter(key for key in phase.buckets if key is not None)
        kinds = Counter({"videos": 0, "pictures": 0})
        for key, count in counts.items():
            kinds["videos" if _is_video(key) else "pictures"] += count
        if len(order.orders) > 1:
            add("steps", f"{phase.start:,} to {phase.start + length:,}")
        left_out = len(phase.buckets) - batches.num_samples
        add("samples", f"{batches.num_samples:,}" + f", {left_out:,} left out" * (left_out > 0))
        if any(isinstance(key, Bucket) for key in counts):
            add("pictures, videos", f"{kinds['pictures']:,}, {kinds['videos']:,}")
        epoch = batches.batches_per_epoch
        add("epochs", f"{length / epoch:.2f} ({epoch:,} steps each)")
        shown = counts.most_common(_BUCKETS_SHOWN)
        for key, count in shown:
            add(f"bucket {bucket_name(key)}", f"{count:,} samples")
        if len(counts) > len(shown):
            rest = counts.total() - sum(count for _, count in shown)
            add(f"{len(counts) - len(shown)} more buckets", f"{rest:,} samples")
        small = sum(count < batches.batch_size for count in counts.values())
        if small:
            add("small buckets", f"{small} never fill a batch of {batches.batch_size}; theirs are smaller")


def _add_parameters(plan: RunPlan, recipe: Recipe, turns: list[TurnOptimizer]) -> None:
    trained = sum(p.numel() for turn in turns for p in turn.parameters)
    total = sum(p.numel() for module in recipe.modules().values() for p in module.parameters())
    plan.add("Parameters", "trained", f"{trained:,} of {total:,} ({trained / max(1, total):.1%})")
    for turn in turns:
        for line in turn.lines():
            what, _, value = line.partition(": ")
            plan.add("Parameters", what if len(turns) == 1 else f"{turn.turn}: {what}", value)


def _add_memory(
    plan: RunPlan,
    recipe: Recipe,
    turns: list[TurnOptimizer],
    order: PhaseOrder,
    train: TrainOptions,
    own: Any,
) -> None:
    """own: the recipe's own figures, if it has some."""
    parts = resident_bytes(recipe, turns, train)
    own = own if isinstance(own, Mapping) else {}
    activations: dict[str, int | str] = {}
    for number, phase in enumerate(order.phases):
        label = "activations" if len(order.phases) == 1 else f"activations, phase {number + 1}"
        batches = order.orders[number]
        micro = micro_batch(train, phase.batch_size or train.batch_size)
        step = _end(order, number, train) - 1
        activations[label] = activation_bytes(recipe, phase, batches, step, micro)
        one = next((value for key, value in own.items() if key.startswith("activations")), None)
        if isinstance(activations[label], str) and one is not None:
            activations[label] = int(one) * micro
    if own.get("computing copy"):
        parts["copy to compute with"] = int(own["computing copy"])
    for what, size in {**parts, **activations}.items():
        plan.add("Memory of a process", what, size if isinstance(size, str) else _size(size))
    counted = [size for size in activations.values() if isinstance(size, int)]
    total = sum(parts.values()) + max(counted, default=0)
    plan.add("Memory of a process", "together", f"{_size(total)}, and what single operations need")
    disk = parts["weights"] + parts["averages"] + parts["optimiser"] + parts["averages"]
    plan.add("Memory of a process", "a checkpoint on disk", f"about {_size(disk)}, {train.keep} are kept")


def resident_bytes(recipe: Recipe, turns: list[TurnOptimizer], train: TrainOptions) -> dict[str, int]:
    """Bytes that stay from step to step, by part; weights, gradients and averages are float32."""
    modules = recipe.modules()
    averaged = {name: modules[name] for name in recipe.averaged()}
    helpers = [m for m in vars(recipe).values() if isinstance(m, nn.Module) and m not in modules.values()]
    optimiser = 0
    for turn in turns:
        for group in turn.groups:
            kind = group["kind"] if group["kind"] == "muon" else train.optimizer
            optimiser += sum(p.numel() for p in group["params"]) * _MOMENTS.get(kind, 8)
    shards = train.processes if train.parallel == "fsdp" else 1
    parts = {
        "weights": _bytes_of(modules.values()),
        "frozen helpers": _bytes_of(helpers, without=modules.values()),
        "gradients": sum(p.numel() for turn in turns for p in turn.parameters) * 4,
        "optimiser": optimiser,
        "averages": sum(
            p.numel() * p.element_size() for m in averaged.values() for p in m.parameters() if p.requires_grad
        ),
    }
    return {name: size if name == "frozen helpers" else -(-size // shards) for name, size in parts.items()}


def largest_batch(phase: Phase, count: int) -> tuple[Hashable, list[int]]:
    """The largest bucket of a phase, and up to `count` samples of it."""
    largest = max({key for key in phase.buckets if key is not None}, key=_weight)
    return largest, [index for index, key in enumerate(phase.buckets) if key == largest][:count]


def activation_bytes(recipe: Recipe, phase: Phase, order: BatchOrder, step: int, count: int) -> int | str:
    """Bytes that autograd keeps of a micro-batch of `count` samples of the phase's largest bucket, each storage once.

    The largest of the turns counts. A string says, for people, why it is unknown.
    """
    largest, members = largest_batch(phase, count)
    sizes = []
    try:
        with NoValues():
            batch = recipe.fetch(members, 0, step)
        if not len(batch):
            return f"not counted: none of {len(members)} files of bucket {bucket_name(largest)} can be used"
        for turn in recipe.turns():
            with torch.random.fork_rng(devices=[]), NoValues(), kept_for_backward() as kept:
                loss = recipe.loss(batch, torch.Generator().manual_seed(0), step, turn)
            for parameter in (p for module in recipe.modules().values() for p in module.parameters()):
                kept.pop(parameter.untyped_storage()._cdata, None)
            size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
            sizes.append(size if loss.total.requires_grad else 0)
    except UserError:
        raise
    except Exception as error:  # a loss may be undefined without values: the plan comes without it
        return f"not counted ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
    return max(sizes) * count // len(batch)


class NoValues(TorchDispatchMode):
    """Lets a loss mix tensors with and without values; values that do not exist read as ones."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            first = args[0]
            if func is torch.ops.aten._local_scalar_dense.default:
                return torch.ones((), dtype=first.dtype).item()
            device = kwargs.get("device")
            if func is torch.ops.aten._to_copy.default and device is not None and device.type != "meta":
                return torch.ones(first.shape, dtype=kwargs.get("dtype") or first.dtype, device=device)
            args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta") if t.ndim else t, (args, kwargs))
        return func(*args, **kwargs)


def _end(order: PhaseOrder, number: int, train: TrainOptions) -> int:
    later = [phase.start for phase in order.phases[number + 1 :]]
    return max(order.phases[number].start + 1, min(later[0] if later else train.steps, train.steps))


def micro_batch(train: TrainOptions, batch_size: int) -> int:
    """Samples that a process computes at a time."""
    return math.ceil(math.ceil(batch_size / train.processes) / train.accumulate)


def _is_video(key: Hashable) -> bool:
    return isinstance(key, Bucket) and key.kind == "video"


def _weight(key: Hashable) -> float:
    """Pixels of a bucket, or the product of a key's numbers."""
    if isinstance(key, Bucket):
        return key.num_frames * key.height * key.width
    return math.prod(n for n in key if isinstance(n, (int, float))) if isinstance(key, tuple) else 1.0


def _bytes_of(modules: Any, without: Any = ()) -> int:
    """Bytes of their tensors, each once; without: modules that are counted elsewhere (a LoRA in its base)."""

    def tensors(these: Any) -> dict[int, Tensor]:
        return {id(t): t for module in these for t in (*module.parameters(), *module.buffers())}

    counted = tensors(without)
    return sum(t.numel() * t.element_size() for key, t in tensors(modules).items() if key not in counted)


def _size(size: int) -> str:
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**power:
            return f"{size / 10**power:.2f} {unit}"
    return f"{size} bytes"


def _flat(what: str, value: Any) -> Iterator[tuple[str, str]]:
    """A recipe's description as rows: a table's or list's entries one below the other."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{what}: {key}", inner)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _flat(what if number == 0 else "", inner)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield what, f"{value:,}"
    else:
        yield what, str(value)
