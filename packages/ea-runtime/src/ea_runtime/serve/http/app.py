"""The app: every endpoint behind the guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import State
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from ea_runtime.serve.http import (
    about,
    easyanimate,
    events,
    jobs_api,
    metrics,
    openai_images,
    openai_models,
    openai_videos,
    openapi,
    page,
    pictures,
    plans,
    uploads,
)
from ea_runtime.serve.http.endpoints import Endpoint, routes
from ea_runtime.serve.http.guard import Guard
from ea_runtime.serve.http.hub import Hub
from ea_runtime.serve.http.service import Service

#: all addresses that the OpenAPI document lists
ENDPOINTS: tuple[Endpoint, ...] = (
    *openai_videos.ENDPOINTS,
    *openai_images.ENDPOINTS,
    *openai_models.ENDPOINTS,
    *jobs_api.ENDPOINTS,
    *plans.ENDPOINTS,
    *uploads.ENDPOINTS,
    *events.ENDPOINTS,
    *about.ENDPOINTS,
    *metrics.ENDPOINTS,
    *openapi.ENDPOINTS,
    *easyanimate.ENDPOINTS,
)


class App:
    """Starlette's router and what its handlers share (`request.app.state`).

    Not Starlette's own application: its outermost layer answers faults itself, in another shape.
    """

    def __init__(self, service: Service) -> None:
        self.state = State()
        self.state.service = service
        self.state.metrics = metrics.Metrics(service.store, service.workers)
        self.state.hub = self.hub = Hub(service, self.state.metrics.count_jobs)
        self.state.page = page.read_page()
        self.state.uploads = uploads.UploadReader(service.state.uploads)
        self.state.pictures = pictures.PictureReader(service.state.uploads)
        self.state.choices = easyanimate.Choices()
        self.state.openapi = openapi.document(ENDPOINTS, has_token=service.access.token is not None)
        self._router = Router(
            routes([*ENDPOINTS, *page.PAGE_ENDPOINTS]), redirect_slashes=False, lifespan=self._lifespan
        )
        self._guard = Guard(self._route, service.access, self.state.metrics.count_answer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._guard(scope, receive, send)

    def stop(self) -> None:
        """Ends streams of events and whatever else waits for a job. Call it in the event loop."""
        self.state.service.stopping.set()
        self.hub.stop()

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self._router(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        async with self.hub.running():
            yield
