"""Forking is the radix cache's work: a child recomputes what the page size makes it recompute, no more.

A child's input is the prompt (P tokens) and the m tokens of the current state that are kept. All of it is
in the cache, since the child that made the state has finished; SGLang matches whole pages of at most
P+m-1 tokens, so ((P+m-1) mod page) + 1 prompt tokens are computed: 1 at page size 1. Only the request that
caches the prompt pays for it, once for all chains. Everything is asserted from the response's counters.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import HTTP
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

HORIZON = 40
STEPS = 12


def fresh_prompt(seed: int) -> str:
    """A long problem that no other test asks, so that no cache holds it: 30 to 60 characters."""
    rng = random.Random(f"forking {seed}")
    return (
        "R" + "".join(f"{rng.randrange(10)}{rng.choice('+-*')}" for _ in range(rng.randrange(14, 29))) + "7:"
    )


def power_body(prompt: str, seed: int, *, n: int = 1, **more: object) -> Json:
    """One request of /generate: a single stage, so that the only extension starts at the prompt."""
    custom = {"sampler": "power", "alpha": 2.0, "block_size": HORIZON, "steps": STEPS, "seed": seed, **more}
    return {"text": prompt, "sampling_params": {"max_new_tokens": HORIZON, "n": n, "custom_params": custom}}


def generate(server: Server, body: Json) -> list[Json]:
    """The answers of one request, one for each chain."""
    response = HTTP.post(server.url + "/generate", json=body)
    assert response.status_code == httpx.codes.OK, response.text
    answers = response.json()
    return answers if isinstance(answers, list) else [answers]


def generate_all(server: Server, bodies: Sequence[Json], at_once: int) -> list[list[Json]]:
    """The answers of several requests, some of them at work at once."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda body: generate(server, body), bodies))


def paid_for_prompt(answers: Sequence[Json]) -> int:
    """Prompt tokens that the caching request computed."""
    meta = answers[0]["meta_info"]
    return int(meta["prompt_tokens"] - meta["cached_tokens"])


def recomputed(answers: Sequence[Json]) -> int:
    """Prompt tokens that the children behind the caching request computed, all chains together."""
    counted = sum(int(answer["meta_info"]["power"]["prefilled_tokens"]) for answer in answers)
    return counted - paid_for_prompt(answers)


def forks(answers: Sequence[Json]) -> int:
    """Children whose trunk was cached."""
    return sum(int(answer["meta_info"]["power"]["children"]) for answer in answers) - 1


@pytest.mark.parametrize(
    ("at_once", "n"),
    [(8, 3), *(pytest.param(*each, marks=pytest.mark.long) for each in [(1, 1), (1, 3), (8, 1)])],
)
def test_a_fork_costs_one_token_at_page_size_one(pivot_server: Server, at_once: int, n: int) -> None:
    bodies = [power_body(fresh_prompt(100 * n + 1000 * at_once + i), i, n=n) for i in range(8)]
    means = []
    for answers in generate_all(pivot_server, bodies, at_once):
        assert paid_for_prompt(answers) > 20, "the prompt was not fresh"
        assert forks(answers) >= n * (1 + STEPS)
        means.append(recomputed(answers) / forks(answers))
    print(f"recomputed tokens per fork: mean {sum(means) / len(means):.3f}, largest {max(means):.3f}")
    assert max(means) <= 1.1


def predicted(prompt_tokens: int, cuts: Sequence[int], page: int) -> int:
    """Prompt tokens that the extension (m = 0) and the proposals at these cuts compute."""
    return sum((prompt_tokens + m - 1) % page + 1 for m in [0, *cuts])


def test_forks_recompute_nothing_but_their_last_token(pivot_server: Server) -> None:
    check_what_forks_recompute(pivot_server, page=1, count=16)


def check_what_forks_recompute(server: Server, *, page: int, count: int) -> None:
    """The counters of some requests, four at a time, against what the page size predicts."""
    bodies = [power_body(fresh_prompt(10_000 * page + i), i, return_trace=True) for i in range(count)]
    spent, per_fork = [], []
    for (answer,) in generate_all(server, bodies, at_once=4):
        power = answer["meta_info"]["power"]
        cuts = [step["cut"] for step in power["trace"]]
        assert power["children"] == 2 + len(cuts) == 2 + STEPS
        assert len(set(cuts)) > 1
        expected = predicted(answer["meta_info"]["prompt_tokens"], cuts, page)
        spent.append((recomputed([answer]), expected))
        per_fork.append(expected / (1 + STEPS))
    print(f"page {page}: (recomputed, predicted) {spent}; per fork {sum(per_fork) / len(per_fork):.2f}")
    assert [found for found, _ in spent] == [expected for _, expected in spent]
    assert max(per_fork) == 1.0 if page == 1 else 4.0 < sum(per_fork) / len(per_fork) < page


def test_the_same_seed_repeats_the_answer_and_another_does_not(pivot_server: Server) -> None:
    """Draws are a function of (seed, position): on an idle server a request can be repeated."""
    prompt = fresh_prompt(7)

    def ids(seed: int) -> list[int]:
        (answer,) = generate(pivot_server, power_body(prompt, seed, return_trace=True))
        assert answer["meta_info"]["power"]["seed"] == seed
        proposals = [step["proposal_ids"] for step in answer["meta_info"]["power"]["trace"]]
        return [*answer["output_ids"], *(token for proposal in proposals for token in proposal)]

    first = {seed: ids(seed) for seed in range(4)}
    assert {seed: ids(seed) for seed in reversed(range(4))} == first
    assert len({tuple(found) for found in first.values()}) == len(first)
