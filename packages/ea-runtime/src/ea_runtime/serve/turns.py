"""The order of the queue: round-robin between clients, so that nobody waits for another's hundred jobs."""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Waiting(NamedTuple):
    """A queued job. seq: its place by age. is_ahead: it was at work before and goes first."""

    seq: int
    client: str
    is_ahead: bool


def in_order(waiting: Iterable[Waiting], served: Mapping[str, int]) -> list[int]:
    """The seqs of queued jobs in the order in which they will be claimed if nobody adds one.

    First those that were at work before, by age; then always the oldest job of the client that was served the longest
    time ago. served: a number for each client that grows with every claim; clients never served come first, by the
    age of their oldest job.
    """
    jobs = sorted(waiting)
    ahead = [job for job in jobs if job.is_ahead]
    order = [job.seq for job in ahead]
    last = dict(served)
    turn = max(last.values(), default=0)
    for job in ahead:
        turn += 1
        last[job.client] = turn
    own: dict[str, deque[int]] = defaultdict(deque)
    for job in jobs:
        if not job.is_ahead:
            own[job.client].append(job.seq)
    heap = [(last.get(client, 0), seqs[0], client) for client, seqs in own.items()]
    heapq.heapify(heap)
    while heap:
        client = heapq.heappop(heap)[2]
        order.append(own[client].popleft())
        turn += 1
        if own[client]:
            heapq.heappush(heap, (turn, own[client][0], client))
    return order
