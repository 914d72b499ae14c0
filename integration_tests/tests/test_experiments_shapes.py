"""Requests for several answers, and of no length, are served behind an experiment as without it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import PROMPT, eventually
from integration_tests.helpers.trials import PLAIN, SHORT, Trials, ask, write_and_wait

pytestmark = pytest.mark.server

Json = dict[str, Any]

UNITS = [f"user {number}" for number in range(12)]
SIGMA: Json = {"name": "sigma", "sampler": {"sampler": "top_n_sigma", "n": 1.0}, "weight": 5000}
CHOSEN: Json = {
    "name": "chosen",
    "sampler": {"sampler": "best_of", "samples": 2, "max_total_tokens": 64},
    "weight": 5000,
}
BEHIND: Json = {"name": "behind", "sampler": {"sampler": "none"}, "weight": 0, "shadow": True}


def outcomes(trials: Trials, kind: str, name: str, count: int) -> set[tuple[str, str]]:
    """Arm and outcome of all lines, once there are so many."""
    eventually(lambda: len(trials.ground.lines(kind, name)) >= count, f"{count} lines of {name}")
    return {(line["arm"], line["outcome"]) for line in trials.ground.lines(kind, name)}


@pytest.mark.parametrize("n", [1, 2])
def test_shadows_of_several_answers_touch_none_of_them(trials: Trials, n: int) -> None:
    """A plain shadow behind a policy and behind plain sampling, whose requests SGLang expands in place."""
    name = f"mirrored{n}"
    shadow = {"tokens_per_hour": 1_000_000}
    write_and_wait(trials, name, arms=[PLAIN, SIGMA, BEHIND], shadow=shadow)
    asked = {**SHORT, "n": n}
    for unit in UNITS:
        response = ask(trials.server, {f"x-{name}": unit}, sampling_params=asked)
        assert response.status_code == httpx.codes.OK, response.text
        answers = response.json() if n > 1 else [response.json()]
        assert [bool(answer["text"]) for answer in answers] == n * [True]
    assert outcomes(trials, "completion", name, len(UNITS)) == {("plain", "ok"), ("sigma", "ok")}
    assert outcomes(trials, "shadow", name, len(UNITS)) == {("behind", "ok")}
    assert all(line["tokens"]["decoded"] >= n for line in trials.ground.lines("shadow", name))


def test_chat_without_max_tokens_is_served_by_an_arm_with_a_cap(trials: Trials) -> None:
    write_and_wait(trials, "open", arms=[PLAIN, CHOSEN])
    body = {"messages": [{"role": "user", "content": PROMPT}], "temperature": 1.0}
    for unit in UNITS:
        response = ask(trials.server, {"x-open": unit}, "/v1/chat/completions", **body)
        assert response.status_code == httpx.codes.OK, response.text
        (power,) = response.json()["metadata"]["power"]
        if power["sampler"] == "best_of":
            assert response.json()["usage"]["completion_tokens"] <= 32, "its share of the cap"
    assert outcomes(trials, "completion", "open", len(UNITS)) == {("plain", "ok"), ("chosen", "ok")}
