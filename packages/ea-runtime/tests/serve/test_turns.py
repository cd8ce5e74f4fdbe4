from __future__ import annotations

import random

from ea_runtime.serve.turns import Waiting, in_order


def queue(*clients: str) -> list[Waiting]:
    return [Waiting(seq, client, False) for seq, client in enumerate(clients, 1)]


def test_clients_take_turns() -> None:
    assert in_order(queue("a", "a", "a", "b", "b", "c"), {}) == [1, 4, 6, 2, 5, 3]


def test_the_client_served_last_waits_for_the_others() -> None:
    assert in_order(queue("a", "b", "a", "b"), {"a": 7, "b": 3}) == [2, 1, 4, 3]


def test_a_new_client_comes_before_all_that_were_served() -> None:
    assert in_order(queue("a", "b", "new"), {"a": 1, "b": 2}) == [3, 1, 2]


def test_what_was_at_work_comes_first_by_age() -> None:
    waiting = [Waiting(5, "a", True), Waiting(1, "b", False), Waiting(3, "a", True), Waiting(2, "a", False)]
    assert in_order(waiting, {}) == [3, 5, 1, 2]


def test_the_order_is_that_of_claims_one_by_one() -> None:
    draw = random.Random(4)
    for _ in range(100):
        waiting = [
            Waiting(seq, draw.choice("abcde"), draw.random() < 0.2) for seq in draw.sample(range(99), 20)
        ]
        served = {client: draw.randrange(50) for client in "abc"}
        whole, left, one_by_one = in_order(waiting, served), list(waiting), []
        while left:
            first = in_order(left, served)[0]
            one = next(job for job in left if job.seq == first)
            one_by_one.append(first)
            left.remove(one)
            served[one.client] = max(served.values(), default=0) + 1
        assert whole == one_by_one
