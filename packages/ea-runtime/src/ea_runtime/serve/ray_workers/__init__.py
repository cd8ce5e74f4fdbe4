"""Workers as Ray actors, a GPU each; the jobs stay in SQLite on the head, results and saved states travel to it.

    crew = RayWorkers(store, Settings(), address="auto")     # as a Supervisor: start, workers, drain

`manager.py` runs in the server, `head.py` as an actor next to it, `actor.py` wherever there is a GPU; `link.py` is how
the last two meet. Every node must have the packages, and the folders of models and LoRAs under the same paths.
"""

from __future__ import annotations

from ea_runtime.serve.ray_workers.manager import RayWorkers

__all__ = ["RayWorkers"]
