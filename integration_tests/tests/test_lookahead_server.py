"""`lookahead` through the real server: what it reports and streams, budgets, bad input. No statistics."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import PROMPT, events, post, power_of, raw_generate, scheduled
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

SMALL: Json = {
    **{"sampler": "lookahead", "candidates": 3, "rollouts": 2, "block_size": 4, "rollout_tokens": 6},
    **{"proposal_temperature": 1.0, "seed": 3},
}
FIELDS = {
    *{"sampler", "params", "seed", "decoded_tokens", "prefilled_tokens", "wasted_tokens", "depth"},
    *{"children", "law", "fallback_reason", "log_p", "log_target", "stopped_by", "weight_version", "version"},
    *{"blocks", "candidates", "rollouts", "ess", "jackknife_clips"},
}


def ask(server: Server, **lookahead: Any) -> Any:
    params = {"max_new_tokens": 48, "custom_params": {**SMALL, **lookahead}}
    return raw_generate(server, PROMPT, sampling_params=params)


def test_what_it_reports(pivot_server: Server) -> None:
    answer = ask(pivot_server)
    power = power_of(answer)
    assert power.keys() == FIELDS
    assert (power["law"], power["stopped_by"]) == ("approximate", "completed")
    assert len(power["ess"]) == power["blocks"] >= 1
    assert power["candidates"] == 3 * power["blocks"]
    assert power["rollouts"] <= 6 * power["blocks"]
    assert power["decoded_tokens"] <= power["blocks"] * 3 * (4 + 2 * 6)
    told = {name: value for name, value in power["params"].items() if value is not None}
    for name in ("max_new_tokens", "neutralised"):
        del told[name]
    again = ask(pivot_server, **told)
    assert power_of(again)["params"] == power["params"]


def test_a_stream_has_the_blocks_that_were_chosen(pivot_server: Server) -> None:
    sampling = {"max_new_tokens": 48, "custom_params": SMALL}
    body: Json = {"text": PROMPT, "stream": True, "sampling_params": sampling}
    told = events(pivot_server, "/generate", body)
    texts = [event["text"] for event in told]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert any(texts[:-1])
    assert power_of(told[-1])["blocks"] > 1


def test_a_budget_that_holds_no_block_leaves_a_draw_of_the_proposal(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, max_total_tokens=48))
    assert (power["stopped_by"], power["blocks"], power["rollouts"]) == ("max_total_tokens", 0, 0)
    assert power["decoded_tokens"] <= 48


BAD: list[tuple[Json, Json, str]] = [
    ({"rollouts": 30}, {}, "rollouts=30: 90 calls at once, above this server's limit of 64"),
    ({"candidates": 1}, {}, "rollouts=2: not used with candidates=1"),
    ({"lookahead_tokens": 3}, {}, "lookahead_tokens=3: unknown parameter"),
    ({}, {"temperature": 0.5}, "temperature=0.5"),
]


@pytest.mark.parametrize(("lookahead", "sampling", "message"), BAD, ids=str)
def test_bad_input_is_a_400_before_any_token(
    pivot_server: Server, lookahead: Json, sampling: Json, message: str
) -> None:
    before = scheduled(pivot_server)
    params = {"max_new_tokens": 48, "custom_params": {**SMALL, **lookahead}, **sampling}
    response = post(pivot_server, "/generate", {"text": PROMPT, "sampling_params": params})
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    assert message in response.json()["error"]["message"], response.text
    assert scheduled(pivot_server) == before
