"""The memory that the jobs of `ea generate` take, foretold before torch is imported."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ea_runtime.errors import UserError
from ea_runtime.generation.forecasts import Watch, forecast_request
from ea_runtime.generation.offload_modes import AUTO, check_mode
from ea_runtime.generation.spread import world_size
from ea_runtime.models.layout import resolve_folder
from ea_runtime.planning.parts import NoForecastError
from ea_runtime.planning.room import find_room
from ea_runtime.planning.words import refusal

if TYPE_CHECKING:
    from rich.console import Console

    from ea_runtime.cli.generate.plan import Plan


def watch_jobs(plan: Plan, todo: list[int], device: str | None, console: Console) -> dict[int, Watch]:
    """The forecast of each job, by its number; none for several processes, other engines, and with `--force`.

    A network of an unknown class has none, with a note.

    Raises UserError for a job that does not fit, and for offloading that the device has no use for.
    """
    if plan.is_forced or world_size() > 1 or plan.request.engine != "torch":
        return {}
    if plan.request.offload not in (None, "none", AUTO):
        check_mode(plan.request.offload, find_room(device).kind)
    folder = resolve_folder(plan.request.model)
    found = {}
    for number in todo:
        job = plan.jobs[number]
        try:
            forecast = forecast_request(
                replace(plan.request, **job.settings, device=device),
                folder,
                adapters=job.adapters,
                kind=job.output.kind,
                is_last=len(todo) == 1,
            )
        except NoForecastError as error:
            console.print(f"note: no plan: {error}", style="yellow", markup=False, soft_wrap=True)
            return {}
        except UserError:  # loading refuses it too, and says what to do
            return {}
        if not forecast.fits:
            raise UserError(f"{refusal(forecast)}; --force tries it all the same")
        if forecast.way.why and not found:
            line = f"note: {forecast.way.name}: {forecast.way.why}"
            console.print(line, style="yellow", markup=False, soft_wrap=True)
        found[number] = Watch(forecast)
    return found
