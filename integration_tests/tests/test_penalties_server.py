"""Penalties with every sampler of whole answers, through every route; who cannot follow them refuses them.

That answers follow the power of the penalised law is shown by `make test-law`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest
from sglang_power.algorithms.penalties import PENALTIES

from integration_tests.helpers.clients import MESSAGES, PROMPT, QUICK, client, events, post
from integration_tests.helpers.contract import CONTRACT, PAIRED
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

A, B = 99, 100
BIAS = {str(A): 64.0, str(B): 60.0}
"""Two tokens far above all others, one of them by a few nats above the other."""

TOKENS = 24
PENALTY = {"frequency_penalty": 2.0}
POWER = {**QUICK, "block_size": 4, "seed": 3}


def asked(custom: Json, **sampling: Any) -> Json:
    """One request of /generate whose answer is of the two tokens."""
    params = {"max_new_tokens": TOKENS, "ignore_eos": True, "logit_bias": BIAS, "custom_params": custom}
    return {"text": PROMPT, "sampling_params": {**params, **sampling}}


def lead(ids: list[int]) -> int:
    """By how many occurrences the first token is ahead of the second."""
    counts = Counter(ids)
    assert counts.keys() <= {A, B}, "the bias is far above all else"
    return counts[A] - counts[B]


@pytest.mark.parametrize("name", sorted(CONTRACT.keys() - PAIRED))
def test_penalties_shape_the_answers_of_every_sampler(pivot_server: Server, name: str) -> None:
    """Without a penalty the first token has nearly all of an answer; with one, both have their turns."""
    custom = {**CONTRACT[name].quick, "seed": 7}
    free = post(pivot_server, "/generate", asked(custom)).json()
    answer = post(pivot_server, "/generate", asked(custom, **PENALTY)).json()
    print(name, lead(free["output_ids"]), lead(answer["output_ids"]))
    assert abs(lead(answer["output_ids"])) <= TOKENS // 3 < abs(lead(free["output_ids"]))
    power = answer["meta_info"]["power"]
    assert (power["sampler"], power["fallback_reason"]) == (name, None)


def test_penalties_through_every_route(pivot_server: Server) -> None:
    told = post(pivot_server, "/generate", asked(POWER, **PENALTY)).json()
    streamed = list(events(pivot_server, "/generate", {**asked(POWER, **PENALTY), "stream": True}))
    more: Json = {"custom_params": POWER, "ignore_eos": True}
    common: Json = {"model": "pivot", "max_tokens": TOKENS, "logit_bias": BIAS, **PENALTY}
    openai = client(pivot_server)
    completion = openai.completions.create(prompt=PROMPT, extra_body=more, **common)
    chat = openai.chat.completions.create(messages=MESSAGES, extra_body=more, **common)
    texts = [streamed[-1]["text"], completion.choices[0].text, chat.choices[0].message.content]
    assert texts == [told["text"]] * 3


@pytest.mark.parametrize("name", ["power", "vote"])
def test_no_penalty_and_neutral_ones_are_the_same(pivot_server: Server, name: str) -> None:
    custom = {**CONTRACT[name].quick, "seed": 5}
    neutral = {"frequency_penalty": 0.0, "presence_penalty": 0, "repetition_penalty": 1.0}
    bodies = [asked(custom, logit_bias=None, **more) for more in ({}, neutral)]
    one, other = (post(pivot_server, "/generate", body).json() for body in bodies)
    assert one["output_ids"] == other["output_ids"]


@pytest.mark.parametrize("field", PENALTIES)
def test_a_penalty_out_of_its_range_is_refused_before_any_token(pivot_server: Server, field: str) -> None:
    """By SGLang's rule and in its words: the children never carry it."""
    for value in (2.5, -2.5):
        answer = post(pivot_server, "/generate", asked(POWER, **{field: value}))
        assert answer.status_code == httpx.codes.BAD_REQUEST, answer.text
        assert field in answer.text


@pytest.mark.parametrize("name", sorted(PAIRED))
def test_two_prompts_refuse_penalties(pivot_server: Server, name: str) -> None:
    answer = post(pivot_server, "/generate", asked(CONTRACT[name].quick, presence_penalty=0.5))
    assert answer.status_code == httpx.codes.BAD_REQUEST
    for named in ("presence_penalty=0.5", "prompt_without"):
        assert named in answer.json()["error"]["message"]
