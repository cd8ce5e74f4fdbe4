"""Jobs as clients see them: in the shapes of OpenAI's API and of the page's."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from ea_runtime.serve.http import shapes
from ea_runtime.serve.jobs import Job, JobStore

#: percent from which on the time so far is a guide to the time left
_GUIDE = 8


def request_view(job: Job) -> shapes.JobRequest:
    """The request of a job by the names that clients use."""
    request = job.request
    settings = request["settings"]
    pictures = {name: f"/api/jobs/{job.id}/{name}" for name in request.get("pictures", ())}
    return shapes.JobRequest(
        prompt=settings["prompt"],
        negative_prompt=settings["negative_prompt"],
        model=request["model"],
        width=settings["width"],
        height=settings["height"],
        num_frames=settings["num_frames"],
        fps=request["fps"],
        seed=settings["seed"],
        steps=settings["num_inference_steps"],
        guidance=settings["guidance_scale"],
        sampler=settings["sampler"],
        loras=[shapes.LoraUse(name=one["name"], scale=one["scale"]) for one in request["loras"]],
        step_cache=settings.get("step_cache"),
        smooth=settings["smooth"],
        image=pictures.get("image"),
        image_end=pictures.get("image_end"),
        strength=settings.get("strength"),
        fit=settings.get("fit"),
        prompts_at=settings.get("prompts_at"),
        window=settings.get("window"),
        loop=settings.get("loop"),
        join=settings.get("join"),
    )


def video_view(job: Job) -> shapes.Video:
    """A job as OpenAI's clients know it."""
    status = "failed" if job.state == "cancelled" else job.state
    error = _error(job)
    settings = job.request["settings"]
    return shapes.Video(
        id=job.id,
        model=job.request["model"],
        status=status,
        progress=job.progress,
        created_at=job.created_at,
        completed_at=job.completed_at,
        prompt=settings["prompt"],
        seconds=f"{settings['num_frames'] / job.request['fps']:g}",
        size=f"{settings['width']}x{settings['height']}",
        error=None if error is None else shapes.VideoError(code=error[0], message=error[1]),
        remixed_from_video_id=job.remixed_from,
    )


def job_views(store: JobStore, jobs: Iterable[Job]) -> list[shapes.JobView]:
    """Jobs as the page knows them. Asks SQLite and the disk: call it from a thread."""
    mean = store.mean_seconds()
    return [_job_view(store, job, mean) for job in jobs]


def job_view(store: JobStore, job: Job) -> shapes.JobView:
    """A job as the page knows it. Asks SQLite and the disk: call it from a thread."""
    return job_views(store, [job])[0]


def file_of(store: JobStore, job: Job, name: str) -> Any:
    """The place of a product ("video", "thumbnail", "spritesheet", "sidecar") of a completed job, or None."""
    files = (job.result or {}).get("files", {})
    return store.state.result(job.id) / files[name] if files.get(name) else None


def _job_view(store: JobStore, job: Job, mean: float | None) -> shapes.JobView:
    error = _error(job) if job.state == "failed" else None
    return shapes.JobView(
        id=job.id,
        state=job.state,
        phase=job.phase,
        done=job.done,
        total=job.total,
        progress=job.progress,
        position=job.position,
        created_at=job.created_at,
        started_at=job.started_at,
        completed_at=job.completed_at,
        seconds_left=_seconds_left(job, mean),
        request=request_view(job),
        error=None if error is None else shapes.JobError(code=error[0], message=error[1]),
        result=_result(store, job),
        remixed_from=job.remixed_from,
        preview=_preview(store, job),
    )


def _error(job: Job) -> tuple[str, str] | None:
    if job.state == "cancelled":
        return "cancelled", "the job was cancelled"
    if job.state == "failed":
        return job.error_code or "failed", job.error_message or "the job failed"
    return None


def _result(store: JobStore, job: Job) -> shapes.JobResult | None:
    if job.state != "completed" or job.result is None:
        return None
    place = file_of(store, job, "video")
    try:
        size = place.stat().st_size if place else 0
    except OSError:
        size = 0
    address = f"/v1/videos/{job.id}/content"
    return shapes.JobResult(
        video=address,
        thumbnail=f"{address}?variant=thumbnail",
        spritesheet=f"{address}?variant=spritesheet",
        recipe=f"/api/jobs/{job.id}/recipe",
        kind=job.request["kind"],
        bytes=size,
        sha256=job.result["sha256"],
        timings=job.result.get("timings", {}),
        notes=job.result.get("notes", []),
    )


def _preview(store: JobStore, job: Job) -> str | None:
    if job.state != "in_progress":
        return None
    try:
        changed = store.state.preview(job.id).stat().st_mtime_ns
    except OSError:
        return None
    return f"/api/jobs/{job.id}/preview?v={changed // 1_000_000}"


def _seconds_left(job: Job, mean: float | None) -> float | None:
    """An estimate: of a job at work by its own pace, otherwise by the last ones' mean."""
    if job.state == "queued" and mean is not None and job.position is not None:
        return round(mean * job.position, 1)
    if job.state != "in_progress" or job.started_at is None:
        return None
    so_far = max(0.0, time.time() - job.started_at)
    if job.progress >= _GUIDE:
        return round(so_far * (100 - job.progress) / job.progress, 1)
    return None if mean is None else round(max(0.0, mean - so_far), 1)
