"""The contract of samplers of whole answers: every sampler that is registered, on one server.

Nothing here is statistical: seeds repeat, and what is interrupted is asked again until it was in time.
"""

from __future__ import annotations

import pytest
from sglang_power.policies import policies
from sglang_power.samplers.registry import served

from integration_tests.helpers.clients import HTTP
from integration_tests.helpers.contract import (
    CHAT,
    CHAT_STREAM,
    CHECKS,
    CONTRACT,
    GENERATE,
    GENERATE_STREAM,
    Door,
)
from integration_tests.server import Server

pytestmark = pytest.mark.server

CASES: list[tuple[str, Door]] = [
    *[("answer", door) for door in (GENERATE, CHAT_STREAM)],
    *[(check, GENERATE) for check in ("n", "refusal", "max_total_tokens", "deadline", "abort")],
    ("early abort", CHAT),
    ("leaving", GENERATE_STREAM),
]
"""`make test-contract` runs every check through every route."""


def test_every_sampler_of_whole_answers_has_a_row(pivot_server: Server) -> None:
    """Those of other distributions that the server knows too, and policies that such a sampler serves."""
    told = HTTP.get(pivot_server.url + "/server_info").json()["sglang_power"]
    own = set(told["samplers"]) - set(told["policies"])
    shown = [kind(**example) for kind in policies().values() for example in kind.examples]
    whole = {policy.name() for policy in shown if served(policy) is not None}
    assert own | whole | {"entropix"} == set(CONTRACT), "write its row: integration_tests/helpers/contract.py"


@pytest.mark.parametrize("sampler", CONTRACT)
@pytest.mark.parametrize(("check", "door"), CASES, ids=[f"{check}-{door}" for check, door in CASES])
def test_the_contract(pivot_server: Server, sampler: str, check: str, door: Door) -> None:
    CHECKS[check](pivot_server, CONTRACT[sampler], door)
