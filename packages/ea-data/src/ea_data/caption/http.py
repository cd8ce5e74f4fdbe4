"""A small HTTP client for one JSON endpoint: retries, a deadline for each request, a cap on concurrency, a budget.

The openai client lacks the deadline for a whole answer, the cap on its size and the budget; with tenacity the loop
below gets no shorter, as Retry-After decides both the wait and when to give up."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from ea_data.children.child import TransientError
from ea_runtime.errors import UserError

logger = logging.getLogger(__name__)

#: Statuses after which another try may help.
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_MOST_BYTES = 8 << 20  # of an answer
_MOST_SHOWN = 300  # characters of an answer that an error quotes


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """timeout: seconds for one request and its whole answer. retries: tries after the first. backoff: seconds before
    the first retry, doubled each time. longest_wait: seconds that Retry-After may ask for; a longer one gives up.
    concurrency: requests at once. max_requests, max_total_tokens: budget for the client's lifetime, 0: none."""

    timeout: float = 120.0
    retries: int = 5
    backoff: float = 1.0
    longest_wait: float = 60.0
    concurrency: int = 4
    max_requests: int = 0
    max_total_tokens: int = 0


class BudgetError(TransientError):
    """The budget is spent: the remaining clips wait for another run."""


class JsonClient:
    """Posts JSON to one address; may be called from several threads.

    key: sent as a bearer token; no message shows it.
    """

    def __init__(self, url: str, limits: RequestLimits, key: str = "") -> None:
        self.url = url
        self.limits = limits
        self.requests = 0
        self.tokens = 0
        self._wait = time.sleep
        self._lock = threading.Lock()
        self._slots = threading.BoundedSemaphore(limits.concurrency)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # No redirects: the frames and the key go to the server that was named, or nowhere.
        self._client = httpx.Client(headers=headers, timeout=limits.timeout, follow_redirects=False)

    def post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the answer, a JSON object. Its `usage.total_tokens` counts against the budget.

        Raises TransientError if the server stays unreachable or overloaded through all retries, BudgetError (a
        TransientError) if the budget is spent, and UserError if it refuses the request or answers anything else.
        """
        reason = ""
        with self._slots:
            for attempt in range(self.limits.retries + 1):
                self._spend()
                asked: float | None = None
                try:
                    status, headers, text = self._send(body)
                except httpx.TransportError as error:
                    reason = f"{type(error).__name__}: {error}".rstrip(": ")
                else:
                    if status == 200:
                        return self._read(text)
                    reason = f"status {status}: {' '.join(text[:_MOST_SHOWN].split())}"
                    if status not in RETRIED:
                        raise UserError(f"{self.url} refused the request, {reason}{_hint(status)}")
                    asked = retry_after(headers.get("retry-after", ""))
                if asked is not None and asked > self.limits.longest_wait:
                    raise TransientError(
                        f"{self.url} asks for a wait of {asked:.0f} s, {reason}; try again later"
                    )
                if attempt < self.limits.retries:
                    seconds = asked if asked is not None else self._backoff(attempt)
                    logger.debug("%s: %s; next try in %.1f s", self.url, reason, seconds)
                    self._wait(seconds)
            tries = self.limits.retries + 1
            raise TransientError(f"{self.url} gave no answer in {tries} tries, last {reason}")

    def _backoff(self, attempt: int) -> float:
        """Doubles each time, plus up to half at random, so that requests that failed together spread out."""
        seconds = self.limits.backoff * 2**attempt * (1 + random.random() / 2)
        return min(seconds, self.limits.longest_wait)

    def _spend(self) -> None:
        most_requests, most_tokens = self.limits.max_requests, self.limits.max_total_tokens
        with self._lock:
            if most_requests and self.requests >= most_requests:
                raise BudgetError(f"the budget of {most_requests} requests is spent")
            if most_tokens and self.tokens >= most_tokens:
                raise BudgetError(f"the budget of {most_tokens} tokens is spent ({self.tokens} used)")
            self.requests += 1

    def _send(self, body: Mapping[str, Any]) -> tuple[int, httpx.Headers, str]:
        deadline = time.monotonic() + self.limits.timeout
        chunks, size = [], 0
        with self._client.stream("POST", self.url, json=body) as response:
            # httpx's timeout starts again with each chunk; a server that drips would hold us forever
            for chunk in response.iter_bytes():
                size += len(chunk)
                if size > _MOST_BYTES:
                    raise UserError(f"{self.url} sends over {_MOST_BYTES} bytes; is it the right server?")
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"no whole answer in {self.limits.timeout:g} s")
                chunks.append(chunk)
            return response.status_code, response.headers, b"".join(chunks).decode("utf-8", "replace")

    def _read(self, text: str) -> dict[str, Any]:
        answer = None
        with suppress(ValueError):
            answer = json.loads(text)
        if not isinstance(answer, dict):
            shown = " ".join(text[:_MOST_SHOWN].split())
            raise UserError(f"{self.url} does not answer with a JSON object: {shown!r}")
        usage = answer.get("usage")
        used = usage.get("total_tokens") if isinstance(usage, dict) else None
        if isinstance(used, int) and used > 0:
            with self._lock:
                self.tokens += used
        return answer


def retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks for, a number or a date; None if it is empty or unreadable."""
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _hint(status: int) -> str:
    if status in (401, 403):
        return "; check the key in the environment variable named by `api_key_env`"
    if status == 404:
        return "; check `url` (it ends in /v1) and `model`"
    return ""
