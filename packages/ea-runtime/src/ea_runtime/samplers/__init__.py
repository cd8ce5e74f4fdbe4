"""Samplers: one small file each, a `SamplerRecord` whose `build(**scheduler_config)` makes a diffusers
scheduler.

To add one: copy a file, change the class and the citation, and list its RECORD here (or return it from the
`ea_samplers` hook of a plugin).
"""

from __future__ import annotations

from ea_runtime.records import SamplerRecord
from ea_runtime.samplers import ddim, dpmpp, euler, euler_a, pndm, unipc
from ea_runtime.samplers.schedule import V2_SCHEDULE, schedule_of_model

SAMPLERS: tuple[SamplerRecord, ...] = (
    euler.RECORD,
    euler_a.RECORD,
    dpmpp.RECORD,
    pndm.RECORD,
    ddim.RECORD,
    unipc.RECORD,
)

__all__ = ["SAMPLERS", "V2_SCHEDULE", "schedule_of_model"]
