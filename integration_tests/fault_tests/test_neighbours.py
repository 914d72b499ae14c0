"""What others do to a server: rewards that hang or talk nonsense, endless patterns, clients that take it all.

`make test-faults`.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import httpx
import pytest

from integration_tests.fault_tests.conftest import KEY_HEADER, TOKENS_PER_MINUTE
from integration_tests.helpers.clients import (
    PROMPT,
    QUICK,
    eventually,
    metric,
    power_of,
    raw_generate,
)
from integration_tests.helpers.contract import (
    CHAT,
    CHAT_STREAM,
    COMPLETIONS,
    DOORS,
    GENERATE,
    GENERATE_STREAM,
)
from integration_tests.helpers.faults import MISBEHAVIOURS, ask, clients
from integration_tests.server import Server

pytestmark = pytest.mark.server

SCORED: dict[str, Any] = {"sampler": "best_of", "samples": 2, "score": "reward"}
TILTED: dict[str, Any] = {**QUICK, "reward_weight": 1.0}


@pytest.mark.parametrize("sampler", [SCORED, TILTED], ids=["best_of", "power"])
@pytest.mark.parametrize("name", MISBEHAVIOURS)
def test_a_reward_that_gives_no_score_is_named_or_done_without(
    name: str, sampler: dict[str, Any], fault_server: Server
) -> None:
    failed = ask(fault_server, "/generate", GENERATE.body({**sampler, "reward": name}, 24))
    assert failed.status == httpx.codes.BAD_GATEWAY, failed
    assert f"reward '{name}'" in failed.text
    assert "127.0.0.1" not in failed.text, "nobody learns where it is"
    without = ask(fault_server, "/generate", GENERATE.body({**sampler, "reward": f"{name}_optional"}, 24))
    assert without.status == httpx.codes.OK, without
    report = power_of(json.loads(without.text))
    assert report["law"] in ("approximate", "selection")
    assert "reward" in report


def test_control_a_reward_that_is_well_scores(fault_server: Server) -> None:
    seen = ask(fault_server, "/generate", GENERATE.body({**SCORED, "reward": "well"}, 24))
    report = power_of(json.loads(seen.text))
    assert report["reward"]["calls"] >= 1


CATASTROPHES = ["(a+)+$", "((?:.+)+)+@", "(?:[^A]+)+B", "(.|[^x])*?y$", "(?:(?:.*)*)*!"]


@pytest.mark.parametrize("pattern", CATASTROPHES)
def test_a_pattern_without_end_holds_up_nobody(pattern: str, fault_server: Server) -> None:
    """Its own request ends, with answers or without; meanwhile others are answered."""
    hostile = {"sampler": "vote", "samples": 8, "answer": "regex", "answer_regex": pattern}
    asked = partial(ask, fault_server, "/generate", GENERATE.body(hostile, 96, ignore_eos=True))
    with clients([asked, asked]) as ended:
        for _ in range(5):
            raw_generate(fault_server, sampling_params={"max_new_tokens": 2})
        seen = ended()
    assert {each.status for each in seen} <= {200, 400}, seen


# --- tokens of a key ---------------------------------------------------------------------------------

SPENDING: dict[str, Any] = {"sampler": "vote", "samples": 16, "stopping": "never"}


def spent(server: Server, key: str) -> None:
    """Have a key use all that it has."""
    for _ in range(50):
        seen = ask(
            server, "/generate", GENERATE.body(SPENDING, 96, n=4, ignore_eos=True), **{KEY_HEADER: key}
        )
        if seen.status == httpx.codes.TOO_MANY_REQUESTS:
            return
        assert seen.status == httpx.codes.OK, seen
    pytest.fail(f"{TOKENS_PER_MINUTE} tokens were not used up")


def test_a_key_that_has_used_its_tokens_is_refused_and_others_are_not(fault_server: Server) -> None:
    before = metric(fault_server, "sglang_power_key_refusals_total")
    spent(fault_server, "greedy")
    for door in DOORS:
        seen = ask(
            fault_server, door.path, door.body(SPENDING, 96, n=4, ignore_eos=True), **{KEY_HEADER: "greedy"}
        )
        if seen.status == httpx.codes.OK:  # a stream has said so before anybody could look
            assert door in (GENERATE_STREAM,), (door, seen)
            assert '"status_code": 429' in seen.text
        else:
            assert seen.status == httpx.codes.TOO_MANY_REQUESTS, (door, seen)
        assert "tokens per minute" in seen.text
        assert "greedy" not in seen.text
    for key in ({KEY_HEADER: "modest"}, {}):
        for door in (GENERATE, COMPLETIONS, CHAT, CHAT_STREAM):
            assert ask(fault_server, door.path, door.body(QUICK, 16), **key).status == httpx.codes.OK
    plain = {"text": PROMPT, "sampling_params": {"max_new_tokens": 4}}
    assert ask(fault_server, "/generate", plain, **{KEY_HEADER: "greedy"}).status == httpx.codes.OK
    assert metric(fault_server, "sglang_power_key_refusals_total") >= before + len(DOORS)


def test_a_key_is_served_again_when_its_tokens_have_flowed_back(fault_server: Server) -> None:
    spent(fault_server, "patient")

    def served() -> bool:
        body = GENERATE.body(QUICK, 16)
        return ask(fault_server, "/generate", body, **{KEY_HEADER: "patient"}).status == httpx.codes.OK

    eventually(served, "tokens flow back")
