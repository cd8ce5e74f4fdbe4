"""GET /metrics for Prometheus: jobs, seconds by phase, requests, and what the server itself takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from ea_runtime.serve.crew import Worker
from ea_runtime.serve.http.endpoints import Endpoint
from ea_runtime.serve.http.service import service_of
from ea_runtime.serve.jobs import Job, JobStore

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
_STATES = ("starting", "ready", "busy", "down")
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server. Jobs that ended before it started are in its gauges, not in its seconds."""

    def __init__(self, store: JobStore, workers: Callable[[], Sequence[Worker]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Now(store, workers))
        self._requests = Counter(
            "ea_http_requests",
            "Answers by route, method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._ended = Counter(
            "ea_jobs_ended", "Jobs that ended, by state.", ["state"], registry=self.registry
        )
        self._seconds = Histogram(
            "ea_phase_seconds",
            "Seconds of completed jobs, by phase.",
            ["phase"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._seen: dict[str, None] = {}

    def count_answer(self, route: str, method: str, status: int) -> None:
        """Counts an answer. route: an address as it is declared, so that there are few."""
        known = method if method in ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS") else "other"
        self._requests.labels(route, known, str(status)).inc()

    def count_jobs(self, jobs: list[Job]) -> None:
        """Counts what ended among changed jobs, each once."""
        for job in jobs:
            if job.has_ended and job.id not in self._seen:
                self._seen[job.id] = None
                self._ended.labels(job.state).inc()
                for phase, seconds in ((job.result or {}).get("timings") or {}).items():
                    self._seconds.labels(phase).observe(seconds)
        while len(self._seen) > 10_000:
            self._seen.pop(next(iter(self._seen)))


class _Now(Collector):
    """The figures at the moment of asking."""

    def __init__(self, store: JobStore, workers: Callable[[], Sequence[Worker]]) -> None:
        self._store = store
        self._workers = workers
        self._process = psutil.Process()

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("ea_jobs", "Jobs in the store, by state.", labels=["state"])
        for state, count in self._store.counts().items():
            jobs.add_metric([state], count)
        yield jobs
        workers = GaugeMetricFamily("ea_workers", "Workers, by state.", labels=["state"])
        states = [one.state for one in self._workers()]
        for state in _STATES:
            workers.add_metric([state], states.count(state))
        yield workers
        used = self._process.cpu_times()
        yield CounterMetricFamily(
            "process_cpu_seconds", "CPU seconds of the server process.", value=used.user + used.system
        )
        yield GaugeMetricFamily(
            "process_resident_memory_bytes",
            "Resident memory of the server process.",
            value=self._process.memory_info().rss,
        )

    def describe(self) -> list[Metric]:
        return []  # the store is asked when somebody asks, not when this is registered


async def metrics(request: Request) -> Response:
    """All counters in Prometheus's text format."""
    service = service_of(request)
    body = await service.call(generate_latest, request.app.state.metrics.registry)
    return Response(body, headers={"Content-Type": _TYPE})


ENDPOINTS = (Endpoint("GET", "/metrics", metrics, "Get counters for Prometheus", {200: ("text/plain",)}),)
