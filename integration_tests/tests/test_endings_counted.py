"""Metrics of chains that end otherwise than by themselves: each is counted once, by what ended it.

Aborts, and clients that leave streams, are part of the contract of samplers of whole answers
(test_contract.py); here are a policy's, and clients that leave without a stream. Rows of a policy end by
themselves within a second, since the context is short; so such a request is repeated until it was interrupted
in time, and that one is judged.
"""

from __future__ import annotations

import functools
import re
import threading
from collections import Counter
from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import (
    HTTP,
    LONG,
    PROMPT,
    QUICK,
    abort,
    active,
    eventually,
    leave,
    post,
    quiet,
    running,
    scheduled,
    standstill,
)
from integration_tests.server import Server
from integration_tests.tests.test_kl_guided_server import GUIDED
from integration_tests.tests.test_policies_interrupted import overtaken
from integration_tests.tests.test_policies_server import SIGMA

pytestmark = pytest.mark.server

ENDLESS: dict[str, dict[str, Any]] = {
    "power": LONG,
    "vote": {"sampler": "vote", "samples": 2, "base": LONG},
    "best_of": {"sampler": "best_of", "samples": 2, "base": LONG},
    "branch": {"sampler": "branch", "refine": LONG},
    "top_n_sigma": SIGMA,
}
"""Sampler -> parameters with which it runs as long as it can."""

EVERY: dict[str, dict[str, Any]] = {**ENDLESS, "cot": {"sampler": "cot", "k": 8}, "kl_guided": GUIDED}
"""The same for those that the contract interrupts."""

FAILING = {"reward": "gone"}
"""Nobody listens there (server.yaml)."""

POLICIES = {"top_n_sigma"}


CHILDREN = {name: 1 if name == "top_n_sigma" else 2 for name in ENDLESS}
"""What a sampler asks of the scheduler before its rows run."""


def ended(server: Server, sampler: str) -> Counter[str]:
    """What ended the answers of a sampler so far, and how often."""
    name, label = ("policy_answers", "finish") if sampler in POLICIES else ("requests", "stopped_by")
    text = HTTP.get(server.url + "/metrics").text
    found: Counter[str] = Counter()
    for labels, count in re.findall(rf"^sglang_power_{name}_total{{(.*)}} (\S+)$", text, re.MULTILINE):
        told = dict(re.findall(r'(\w+)="(.*?)"', labels))
        if told["sampler"] == sampler:
            found[told[label]] += int(float(count))
    return found


def body_of(sampler: str, **fields: Any) -> dict[str, Any]:
    params = {"max_new_tokens": 96, "ignore_eos": True, "custom_params": EVERY[sampler]}
    if sampler in SHORT:
        params["max_new_tokens"] = 200
    return {"text": PROMPT, "sampling_params": params, **fields}


SHORT = POLICIES
"""Without a stream SGLang looks for a client every four seconds, and these are shorter."""


@pytest.mark.parametrize(
    ("sampler", "stream"),
    [(name, name in SHORT) for name in ENDLESS],
)
def test_a_client_that_leaves_is_counted(pivot_server: Server, sampler: str, stream: bool) -> None:
    body = body_of(sampler, stream=stream)

    def attempt(_: int) -> Counter[str]:
        ready, before, asked = threading.Event(), ended(pivot_server, sampler), scheduled(pivot_server)
        with running(functools.partial(leave, pivot_server, "/generate", body, ready)):
            eventually(lambda: scheduled(pivot_server) >= asked + CHILDREN[sampler], "it runs")
            ready.set()
        eventually(lambda: ended(pivot_server, sampler) != before, "its end is counted")
        quiet(pivot_server)
        return ended(pivot_server, sampler) - before

    assert overtaken(attempt, lambda counted: "disconnect" in counted) == {"disconnect": 1}


@pytest.mark.parametrize("sampler", EVERY)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_its_children_are_long_ends_them(
    pivot_server: Server, sampler: str, n: int, stream: bool
) -> None:
    """No child ever ends here, and SGLang looks for no client meanwhile."""
    body, before = body_of(sampler, stream=stream), ended(pivot_server, sampler)
    body["sampling_params"]["n"] = n
    ready = threading.Event()
    with standstill(pivot_server):
        with running(functools.partial(leave, pivot_server, "/generate", body, ready)):
            eventually(lambda: active(pivot_server) == 1, "it is there")
            ready.set()
        eventually(lambda: active(pivot_server) == 0, "it has ended")
    quiet(pivot_server)
    assert ended(pivot_server, sampler) - before == {"disconnect": n}


@pytest.mark.parametrize("sampler", POLICIES)
def test_an_abort_is_counted(pivot_server: Server, sampler: str) -> None:
    def attempt(number: int) -> Counter[str]:
        rid, before, asked = (
            f"counted-{sampler}-{number}",
            ended(pivot_server, sampler),
            scheduled(pivot_server),
        )
        with running(functools.partial(post, pivot_server, "/generate", body_of(sampler, rid=rid))) as call:
            eventually(lambda: scheduled(pivot_server) >= asked + CHILDREN[sampler], "it runs")
            abort(pivot_server, rid=rid)
            assert call.result().status_code == httpx.codes.OK
        quiet(pivot_server)
        return ended(pivot_server, sampler) - before

    assert overtaken(attempt, lambda counted: "abort" in counted) == {"abort": 1}


@pytest.mark.parametrize(
    ("sampler", "params", "status", "ending"),
    [
        ("power", {**QUICK, **FAILING, "reward_weight": 1.0}, httpx.codes.BAD_GATEWAY, "error"),
        ("best_of", {"sampler": "best_of", "score": "reward", **FAILING}, httpx.codes.BAD_GATEWAY, "error"),
        ("power", {**LONG, "deadline_ms": 1}, httpx.codes.OK, "deadline_ms"),
        ("vote", {"sampler": "vote", "base": LONG, "deadline_ms": 1}, httpx.codes.OK, "deadline_ms"),
    ],
)
def test_errors_and_deadlines_are_counted(
    pivot_server: Server, sampler: str, params: dict[str, Any], status: int, ending: str
) -> None:
    before = ended(pivot_server, sampler)
    body = body_of(sampler)
    body["sampling_params"]["custom_params"] = params
    body["sampling_params"]["n"] = 2
    assert post(pivot_server, "/generate", body).status_code == status
    assert ended(pivot_server, sampler) - before == {ending: 2}


def test_one_of_a_batch_that_fails_ends_the_others_by_an_error(pivot_server: Server) -> None:
    """Nobody left: the other prompt's chain is cancelled because its sibling's reward does not answer."""
    before = ended(pivot_server, "power")
    failing = {**QUICK, **FAILING, "reward_weight": 1.0}
    params = [
        {"max_new_tokens": 96, "ignore_eos": True, "custom_params": custom} for custom in (failing, LONG)
    ]
    body = {"text": [PROMPT, PROMPT], "sampling_params": params}
    assert post(pivot_server, "/generate", body).status_code == httpx.codes.BAD_GATEWAY
    quiet(pivot_server)
    assert ended(pivot_server, "power") - before == {"error": 2}


def test_tokens_of_a_client_that_leaves_are_counted(pivot_server: Server) -> None:
    """Six children of the chain are at their end before the client leaves."""

    def tokens() -> float:
        text = HTTP.get(pivot_server.url + "/metrics").text
        found = re.findall(r'^sglang_power_tokens_total{kind="decoded",sampler="power"} (\S+)$', text, re.M)
        return float(found[0]) if found else 0.0

    ready, before, asked = threading.Event(), tokens(), scheduled(pivot_server)
    lost = ended(pivot_server, "power")["disconnect"]
    body = body_of("power", stream=True)
    with running(functools.partial(leave, pivot_server, "/generate", body, ready)):
        eventually(lambda: scheduled(pivot_server) >= asked + 8, "children run")
        ready.set()
    eventually(lambda: ended(pivot_server, "power")["disconnect"] == lost + 1, "its end is counted")
    assert tokens() - before >= 6
