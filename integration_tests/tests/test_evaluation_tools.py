"""Seeds of evaluation tools: one for all requests makes repeats copies; how to have them drawn anew.

The bodies are those of lm-eval 0.4.13 (local-completions, local-chat-completions): `"seed": 1234` in each,
and whatever `--gen_kwargs` holds after it.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import MESSAGES, PROMPT, QUICK, post
from integration_tests.server import Server

pytestmark = pytest.mark.server

TOOLS_SEED = 1234
POWER = {**QUICK, "on_temperature": "ignore"}
VOTE = {"sampler": "vote", "samples": 4, "answer": "text"}
SIGMA = {"sampler": "top_n_sigma", "n": 1.5}


def ask(server: Server, chat: bool, **gen_kwargs: Any) -> tuple[str, int]:
    """One request of the tool: its text and the seed that ran."""
    body: dict[str, Any] = {"messages": MESSAGES} if chat else {"prompt": PROMPT}
    body |= {"model": "pivot", "max_tokens": 24, "temperature": 0, "stop": ["\n"], "seed": TOOLS_SEED}
    response = post(server, f"/v1/{'chat/' if chat else ''}completions", body | gen_kwargs)
    assert response.status_code == httpx.codes.OK, response.text
    (choice,), (power,) = response.json()["choices"], response.json()["metadata"]["power"]
    return choice["message"]["content"] if chat else choice["text"], power["seed"]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("custom", [POWER, VOTE, SIGMA], ids=lambda custom: str(custom["sampler"]))
def test_the_tools_seed_makes_repeats_copies(
    pivot_server: Server, custom: dict[str, Any], chat: bool
) -> None:
    first, second = (ask(pivot_server, chat, custom_params=custom, temperature=1.0) for _ in range(2))
    assert first == second
    assert first[1] == TOOLS_SEED


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("custom", [POWER, VOTE, SIGMA], ids=lambda custom: str(custom["sampler"]))
def test_a_seed_of_null_draws_one_for_each_request(
    pivot_server: Server, custom: dict[str, Any], chat: bool
) -> None:
    """`--gen_kwargs '{"seed": null, ...}'`; random seeds have 63 bits."""
    seeds = {ask(pivot_server, chat, custom_params=custom, seed=None, temperature=1.0)[1] for _ in range(4)}
    assert len(seeds) == 4
    assert TOOLS_SEED not in seeds


def test_temperature_zero_of_the_tool_is_ignored_where_the_request_says_so(pivot_server: Server) -> None:
    _, seed = ask(pivot_server, chat=True, custom_params=POWER)
    assert seed == TOOLS_SEED


def test_the_samplers_own_seed_counts_more_than_the_bodys(pivot_server: Server) -> None:
    assert ask(pivot_server, chat=True, custom_params={**POWER, "seed": 7})[1] == 7


def test_repeats_within_one_request_differ(pivot_server: Server) -> None:
    """`n` choices have seeds of their own, derived from the one of the request: the tool's may stay."""
    body = {"prompt": PROMPT, "model": "pivot", "max_tokens": 48, "n": 8, "seed": TOOLS_SEED}
    response = post(pivot_server, "/v1/completions", {**body, "custom_params": {**SIGMA, "n": 3.0}})
    texts = {choice["text"] for choice in response.json()["choices"]}
    assert len(texts) > 1
