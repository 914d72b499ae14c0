"""Rewards through the real server: an installed one tilts the answers, failures go by their policy.

Statistical claim of the first test: with weight 4 nearly every answer works out both steps of the problem,
with weight -4 nearly none does, so the means of 16 answers are about 2 apart; 1 is asked for. The draws are
seeded.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import PROMPT, events, generate, post, power_of
from integration_tests.helpers.third_party_reward import worked_steps
from integration_tests.server import Server

pytestmark = pytest.mark.server

STEPS: dict[str, Any] = {"reward": "worked_steps", "alpha": 1.0, "block_size": 48, "steps": 30, "seed": 7}


def refused(server: Server, **power: Any) -> httpx.Response:
    """The answer to a request that has to fail."""
    params = {"max_new_tokens": 16, "custom_params": {"sampler": "power", **power}}
    return post(server, "/generate", {"text": PROMPT, "sampling_params": params})


def mean_reward(server: Server, weight: float) -> float:
    answers = generate(server, sampling={"n": 16}, **STEPS, reward_weight=weight)
    return sum(worked_steps(PROMPT, answer["text"]) for answer in answers) / 16


@pytest.mark.long
def test_a_reward_moves_the_answers_its_way(pivot_server: Server) -> None:
    assert mean_reward(pivot_server, 4.0) > mean_reward(pivot_server, -4.0) + 1.0


@pytest.mark.parametrize("weight", [2.0, -2.0])
def test_the_report_tells_value_calls_and_target(pivot_server: Server, weight: float) -> None:
    answer = generate(pivot_server, **STEPS, reward_weight=weight, return_trace=True)
    power = power_of(answer)
    told, trace = power["reward"], power["trace"]
    assert (told["name"], told["weight"], told["failed"], told["reason"]) == ("worked_steps", weight, 0, None)
    assert told["value"] == worked_steps(PROMPT, answer["text"])
    assert 1 <= told["calls"] <= 1 + sum(not step["early_rejected"] for step in trace)
    assert power["log_target"] == pytest.approx(power["log_p"] + weight * told["value"])
    assert power["law"] == "power"
    assert power["params"]["reward"] == "worked_steps"
    assert power["params"]["early_rejection"] is (weight > 0)
    assert {step["log_tilt_current"] / weight for step in trace} <= {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0}


def test_unknown_rewards_and_addresses_are_refused_before_any_token(pivot_server: Server) -> None:
    for name in ("worked_step", "http://127.0.0.1:9/"):
        response = refused(pivot_server, reward=name)
        assert response.status_code == httpx.codes.BAD_REQUEST
        known = "brevity, gone, optional, worked_steps"
        assert f"unknown reward. Rewards of this server: {known}" in response.text
    assert refused(pivot_server, reward_weight=2.0).status_code == httpx.codes.BAD_REQUEST
    base = {"sampler": "power", "reward": "worked_steps"}
    assert refused(pivot_server, sampler="vote", base=base).status_code == httpx.codes.BAD_REQUEST


def test_an_endpoint_that_is_gone_fails_the_request(pivot_server: Server) -> None:
    response = refused(pivot_server, reward="gone", steps=2)
    assert response.status_code == httpx.codes.BAD_GATEWAY
    assert "reward 'gone': its endpoint failed: ConnectError (1 attempt)" in response.text
    params = {"max_new_tokens": 16, "custom_params": {"sampler": "power", "reward": "gone", "steps": 2}}
    last = events(pivot_server, "/generate", {"text": PROMPT, "sampling_params": params, "stream": True})[-1]
    assert last["meta_info"]["finish_reason"]["status_code"] == httpx.codes.BAD_GATEWAY


def test_an_optional_endpoint_that_is_gone_is_done_without_and_told(pivot_server: Server) -> None:
    power = power_of(generate(pivot_server, reward="optional", seed=3))
    told = power["reward"]
    assert (told["calls"], told["failed"], told["value"]) == (1, 1, None)
    assert "ConnectError (2 attempts)" in told["reason"]
    assert told["dropped_at_step"] is not None
    assert power["law"] == "approximate"
    assert power["log_target"] == pytest.approx(4.0 * power["log_p"])
