"""Samplers and sampling fields on SGLang's other routes, on a real server: read or refused, never ignored.

Most of these answers have no room for `meta_info.power`, so counters and seeds tell what ran.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import MESSAGES, PROMPT, QUICK, generate, metric, post
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]
Text = Callable[[Any], str]

SEEDED: Json = {**QUICK, "seed": 21}
TOKENS = 48


def in_generate(top: Json, **sampling: Any) -> tuple[str, Json, Text]:
    body = {"text": PROMPT, "sampling_params": {"max_new_tokens": TOKENS, **sampling}, **top}
    return "/generate", body, lambda answer: str(answer["text"])


def in_vertex(top: Json, **sampling: Any) -> tuple[str, Json, Text]:
    parameters = {"sampling_params": {"max_new_tokens": TOKENS, **sampling}}
    body = {"instances": [{"text": PROMPT}], "parameters": parameters, **top}
    return "/vertex_generate", body, lambda answer: str(answer["predictions"][0]["text"])


def in_responses(top: Json, **sampling: Any) -> tuple[str, Json, Text]:
    # SGLang takes two tokens off; `text` is a setting of this API, and no prompt.
    asked = {"input": PROMPT, "text": {"format": {"type": "text"}}, "max_output_tokens": TOKENS + 2}
    body = {"model": "pivot", "store": False, **asked, **sampling, **top}
    return "/v1/responses", body, lambda answer: str(answer["output"][0]["content"][0]["text"])


def in_messages(top: Json, **sampling: Any) -> tuple[str, Json, Text]:
    body = {"model": "pivot", "messages": MESSAGES, "max_tokens": TOKENS, **sampling, **top}
    return "/v1/messages", body, lambda answer: str(answer["content"][0]["text"])


def in_ollama(top: Json, **sampling: Any) -> tuple[str, Json, Text]:
    options = {"num_predict": TOKENS, **sampling}
    body = {"model": "pivot", "prompt": PROMPT, "stream": False, "options": options, **top}
    return "/api/generate", body, lambda answer: str(answer["response"])


def in_ollama_chat(top: Json, **sampling: Any) -> tuple[str, Json, Text]:
    options = {"num_predict": TOKENS, **sampling}
    body = {"model": "pivot", "messages": MESSAGES, "stream": False, "options": options, **top}
    return "/api/chat", body, lambda answer: str(answer["message"]["content"])


ROUTES = [in_generate, in_vertex, in_responses, in_messages, in_ollama, in_ollama_chat]


def chains(server: Server) -> float:
    """Chains that ended."""
    return metric(server, "sglang_power_requests_total", sampler="power")


@pytest.mark.parametrize("top", [SEEDED, {"custom_params": SEEDED}, {"sglang_power": SEEDED}])
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_runs_the_sampler_that_is_named(pivot_server: Server, route: Any, top: Json) -> None:
    """The same chain as by /generate."""
    expected = generate(pivot_server, **SEEDED)["text"]
    path, body, text = route(top)
    before = chains(pivot_server)
    response = post(pivot_server, path, body)
    assert response.status_code == httpx.codes.OK, response.text
    assert chains(pivot_server) == before + 1
    assert text(response.json()) == expected


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("field", [{"temperature": 0.7}, {"temperature": 0}, {"frequency_penalty": 3.0}])
def test_every_route_refuses_what_the_sampler_does_not_take(
    pivot_server: Server, route: Any, field: Json
) -> None:
    if route is in_messages and "temperature" not in field:
        field = {"temperature": 0.5}  # Anthropic's API has no penalties
    path, body, _ = route({"custom_params": QUICK}, **field)
    response = post(pivot_server, path, body)
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    assert next(iter(field)) in response.text


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_makes_an_alpha_of_a_temperature(pivot_server: Server, route: Any) -> None:
    asked = {**QUICK, "on_temperature": "alpha", "seed": 21}
    expected = generate(pivot_server, **{**QUICK, "alpha": 2.0, "seed": 21})["text"]
    path, body, text = route({"custom_params": asked}, temperature=0.5)
    response = post(pivot_server, path, body)
    assert response.status_code == httpx.codes.OK, response.text
    assert text(response.json()) == expected


def test_a_generation_config_is_nobodys_word(default_server: Server) -> None:
    """This model's names a temperature, top_p, top_k and a penalty; the client names `text`."""
    path, body, _ = in_responses({"custom_params": QUICK, "model": "defaulted"})
    before = chains(default_server)
    response = post(default_server, path, body)
    assert response.status_code == httpx.codes.OK, response.text
    assert chains(default_server) == before + 1


@pytest.mark.parametrize("route", [in_generate, in_vertex, in_responses, in_messages])
def test_custom_params_of_nobody_change_nothing(pivot_server: Server, route: Any) -> None:
    path, body, _ = route({"custom_params": {"sampler": None, "mine": 1}})
    before = chains(pivot_server)
    assert post(pivot_server, path, body).status_code == httpx.codes.OK
    assert chains(pivot_server) == before


def test_parameters_without_a_sampler_are_refused_by_name(pivot_server: Server) -> None:
    params = {"max_new_tokens": 8, "custom_params": {"alpha": 2.0}}
    for stream in (False, True):
        body = {"text": PROMPT, "sampling_params": params, "stream": stream}
        response = post(pivot_server, "/generate", body)
        assert response.status_code == httpx.codes.BAD_REQUEST
        assert "custom_params.alpha=2.0" in response.text


def test_a_null_sampler_is_an_absent_one(pivot_server: Server) -> None:
    for nulls in ({"custom_params": {"sampler": None, "preset": None}}, {"sampler": None, "alpha": None}):
        params = {"max_new_tokens": 8, **nulls}
        response = post(pivot_server, "/generate", {"text": PROMPT, "sampling_params": params, **nulls})
        assert response.status_code == httpx.codes.OK, response.text
        assert "power" not in response.json()["meta_info"]
