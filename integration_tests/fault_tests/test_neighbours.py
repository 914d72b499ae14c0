"""What others do to a server: rewards that hang or talk nonsense, patterns without end.

`make test-faults`.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import (
    QUICK,
    power_of,
    raw_generate,
)
from integration_tests.helpers.contract import (
    GENERATE,
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
