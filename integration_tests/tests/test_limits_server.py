"""Extremes on the real server: every request ends, with numbers or with a 400 by name, and the server lives.

What every parameter of every sampler does at its extremes, on the exact model, is in
plugin/tests/request/test_extremes.py; here are those that SGLang's scheduler meets. Each test asks
for a plain answer afterwards. No timing.
"""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import PROMPT, QUICK, post, raw_generate, scheduled, together
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

GUIDED: Json = {"sampler": "kl_guided", "prompt_without": "R7:"}
VOTE: Json = {"sampler": "vote", "samples": 2}
SAMPLERS: list[Json] = [
    QUICK,
    {"sampler": "cot", "k": 2},
    {"sampler": "branch"},
    VOTE,
    {"sampler": "best_of", "samples": 2, "base": {"sampler": "edt"}},
    {"sampler": "top_n_sigma"},
    GUIDED,
]
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=[one["sampler"] for one in SAMPLERS])

VOCAB = 258


def lives(server: Server) -> None:
    answer = raw_generate(server, sampling_params={"temperature": 0, "max_new_tokens": 4})
    assert len(answer["output_ids"]) == 4


def numbers(value: Any) -> list[float]:
    """Every number in an answer, however deep."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, float) else []


# --- bounds -------------------------------------------------------------------------------------------

RUN: list[Json] = [
    {**QUICK, "alpha": 1000.0},
    {**QUICK, "alpha": 1.0, "proposal_temperature": 1e-6},
    {**QUICK, "proposal_temperature": 1e6},
    {**QUICK, "top_k": 2**31 - 1, "top_p": 5e-324, "min_p": 1.0},
    {**QUICK, "block_size": 2**31 - 1, "steps": 2**31 - 1, "max_total_tokens": 200},
    {**QUICK, "steps": 2**31 - 1, "deadline_ms": 1},
    {**QUICK, "cut": "entropy", "cut_beta": 64.0, "cut_epsilon": 1e-6},
    {**QUICK, "seed": 2**64 - 1, "proposal_policy": {"sampler": "edt", "theta": 1e308, "base": 1e308}},
    {"sampler": "vote", "samples": 2, "weight": "power", "alpha": 1000.0},
    {"sampler": "vote", "samples": 2, "base": {**QUICK, "alpha": 1000.0, "proposal_temperature": 1e6}},
    {"sampler": "best_of", "samples": 2, "base": {"sampler": "dynatemp", "t_max": 1e308}},
    {"sampler": "branch", "refine": {**QUICK, "alpha": 1000.0}, "max_branches": 4},
    {
        **{"sampler": "branch", "threshold": 1e308, "max_branches": 2**31 - 1, "min_gap": 2**31 - 1},
        "lookahead_tokens": 2**31 - 1,
    },
    {"sampler": "cot", "k": 2, "min_first_p": 5e-324},
    {"sampler": "top_n_sigma", "n": 1e308},
    {"sampler": "top_n_sigma", "n": 5e-324},
    {"sampler": "temperature", "value": 1e308},
    {"sampler": "temperature", "value": 5e-324},
    {"sampler": "top_k", "k": 2**31 - 1},
    {"sampler": "min_k", "decay": 1e308},
    {"sampler": "entropix", "entropy_threshold": 1e308, "varentropy_threshold": 0.0, "hot_factor": 1e308},
    {**GUIDED, "sigma": 5e-324},
    {**GUIDED, "sigma": 1e308},
]

REFUSED: list[tuple[Json, str]] = [
    ({**QUICK, "alpha": 1e39}, "alpha"),
    ({**QUICK, "proposal_temperature": 1e-39}, "proposal_temperature"),
    ({**QUICK, "top_k": 2**63}, "top_k"),
    ({**QUICK, "steps": 2**64}, "steps"),
    ({**QUICK, "deadline_ms": 2**63}, "deadline_ms"),
    ({**VOTE, "base": {**QUICK, "alpha": 1e39}}, "base.alpha"),
    ({"sampler": "branch", "refine": {**QUICK, "proposal_temperature": 1e39}}, "refine.proposal_temperature"),
    ({"sampler": "cot", "k": 2**63}, "k"),
    ({"sampler": "temperature", "value": 0}, "value"),
]


@pytest.mark.parametrize("power", RUN, ids=str)
def test_bounds_run_to_an_end(pivot_server: Server, power: Json) -> None:
    params = {"max_new_tokens": 24, "min_new_tokens": 2, "custom_params": {"seed": 5, **power}}
    answer = raw_generate(pivot_server, sampling_params=params, return_logprob=True)
    assert answer["meta_info"]["power"]["sampler"] == power["sampler"]
    assert all(map(math.isfinite, numbers(answer)))
    json.dumps(answer, allow_nan=False)
    lives(pivot_server)


@pytest.mark.parametrize(("power", "field"), REFUSED, ids=str)
def test_what_lies_beyond_is_400_by_name(pivot_server: Server, power: Json, field: str) -> None:
    before = scheduled(pivot_server)
    for stream in (False, True):
        params = {"max_new_tokens": 24, "custom_params": power}
        body = {"text": PROMPT, "sampling_params": params, "stream": stream}
        response = post(pivot_server, "/generate", body)
        assert response.status_code == httpx.codes.BAD_REQUEST, response.text
        assert f"{field}=" in response.text
    assert scheduled(pivot_server) == before
    lives(pivot_server)


# --- ids, prompts and stops ---------------------------------------------------------------------------

PARAMS: list[tuple[Json, str]] = [
    ({"stop_token_ids": [151645]}, "stop_token_ids=151645"),
    ({"stop_token_ids": [-1]}, "stop_token_ids=-1"),
    ({"logit_bias": {str(VOCAB): 5.0}}, f"logit_bias={VOCAB}"),
    ({"stop": ""}, "stop=''"),
    ({"stop": [""]}, "stop=['']"),
    ({"min_new_tokens": -1}, "min_new_tokens=-1"),
]
PROMPTS: list[tuple[Json, str]] = [
    ({"text": ""}, "text=''"),
    ({"text": [PROMPT, ""]}, "text.1=''"),
    ({"input_ids": [105, VOCAB]}, f"input_ids={VOCAB}"),
    ({"input_ids": [[105], [-1]]}, "input_ids.1=-1"),
    ({"input_ids": [[105], []]}, "input_ids.1=[]"),
]


BOTH = (False, True)

STREAMS_AT_ONCE = ("/api/generate", "/v1/responses")
"""Their streams have sent HTTP 200 before SGLang looks at the request."""


def refused(server: Server, path: str, body: Json, message: str, streams: tuple[bool, ...]) -> None:
    for stream in streams:
        response = post(server, path, {**body, "stream": stream})
        assert response.status_code == httpx.codes.BAD_REQUEST, (path, body, response.text[:300])
        assert message in response.text.replace('\\"', '"'), response.text


@every_sampler
def test_ids_prompts_and_stops_are_400_by_name(pivot_server: Server, sampler: Json) -> None:
    before = scheduled(pivot_server)
    for params, message in PARAMS:
        body = {"text": PROMPT, "sampling_params": {"max_new_tokens": 8, "custom_params": sampler, **params}}
        refused(pivot_server, "/generate", body, message, BOTH)
    for prompt, message in PROMPTS:
        body = {**prompt, "sampling_params": {"max_new_tokens": 8, "custom_params": sampler}}
        refused(pivot_server, "/generate", body, message, BOTH)
    assert scheduled(pivot_server) == before
    lives(pivot_server)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/completions", {"model": "pivot", "prompt": [PROMPT, ""]}, "prompt.1=''"),
        ("/v1/completions", {"model": "pivot", "prompt": [105, VOCAB]}, f"prompt={VOCAB}"),
        ("/v1/completions", {"model": "pivot", "prompt": PROMPT, "stop": [""]}, "stop=['']"),
        ("/v1/completions", {"model": "pivot", "prompt": PROMPT, "logit_bias": {"999": 1}}, "logit_bias=999"),
        (
            "/v1/chat/completions",
            {
                **{"model": "pivot", "messages": [{"role": "user", "content": PROMPT}]},
                "stop_token_ids": [151645],
            },
            "stop_token_ids=151645",
        ),
        ("/api/generate", {"model": "pivot", "prompt": PROMPT, "options": {"stop": [""]}}, "stop=['']"),
        ("/v1/responses", {"model": "pivot", "input": PROMPT, "stop": [""]}, "stop=['']"),
    ],
    ids=str,
)
def test_other_routes_say_it_too(pivot_server: Server, path: str, body: Json, message: str) -> None:
    refused(pivot_server, path, {**body, **QUICK}, message, (False,) if path in STREAMS_AT_ONCE else BOTH)
    lives(pivot_server)


def test_a_foreign_stop_token_beside_a_pair_ends_nobody(pivot_server: Server) -> None:
    """SGLang takes such a token in a plain request; a mask of stops in the same batch would index by it."""
    stranger = {"max_new_tokens": 64, "temperature": 1, "ignore_eos": True, "stop_token_ids": [151645, -1]}
    plain = functools.partial(raw_generate, pivot_server, sampling_params=stranger)
    pair = functools.partial(
        raw_generate,
        pivot_server,
        sampling_params={"max_new_tokens": 32, "custom_params": {**GUIDED, "seed": 1}},
    )
    for answer in together([plain, pair, plain, pair, pair, plain]):
        assert answer["output_ids"]
    lives(pivot_server)
