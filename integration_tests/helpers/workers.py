"""Which of several tokenizer workers answers: the one that took the connection, for as long as it is kept."""

from __future__ import annotations

import collections
import functools
import itertools
from typing import Any

import httpx

from integration_tests.helpers.clients import PROMPT, QUICK, WAIT_S, eventually, together
from integration_tests.server import Server


def on_a_connection_of_its_own(server: Server, seed: int) -> tuple[int, Any]:
    """The tokenizer process behind a new connection, and the power answer that it gives there."""
    params = {"max_new_tokens": 16, "custom_params": {**QUICK, "seed": seed}}
    with httpx.Client(base_url=server.url, verify=False, timeout=WAIT_S) as kept:
        tokenizer, *_ = kept.get("/sglang_power/status").json()["processes"]
        answer = kept.post("/generate", json={"text": PROMPT, "sampling_params": params}).json()
        after, *_ = kept.get("/sglang_power/status").json()["processes"]
    assert tokenizer["pid"] == after["pid"], "one connection, one process"
    return int(tokenizer["pid"]), answer


def answers_of_both_workers(server: Server) -> list[Any]:
    """Power answers with the seeds 0, 1, ..: as many as it takes until both tokenizer workers gave some.

    Which one takes a connection is nobody's choice, and of idle ones the same may take many in a row.
    """
    answers: dict[int, list[Any]] = collections.defaultdict(list)
    seeds = itertools.count()

    def both() -> bool:
        calls = [functools.partial(on_a_connection_of_its_own, server, next(seeds)) for _ in range(8)]
        for process, answer in together(calls):
            answers[process].append(answer)
        return len(answers) == 2

    eventually(both, "both workers took connections")
    return [answer for given in answers.values() for answer in given]
