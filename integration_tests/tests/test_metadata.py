"""A sampler in `metadata.sglang_power`: every route reads it as it reads `custom_params`. Error rate 0.

What of it arrives through SGLang's router is tested with the router: `make test-router`.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import MESSAGES, PROMPT, QUICK, generate, post
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

SEEDED: Json = {**QUICK, "seed": 7}
LENGTH = 24

ROUTES: dict[str, Json] = {
    "/generate": {"text": PROMPT, "sampling_params": {"max_new_tokens": LENGTH}},
    "/v1/completions": {"model": "pivot", "prompt": PROMPT, "max_tokens": LENGTH},
    "/v1/chat/completions": {"model": "pivot", "messages": MESSAGES, "max_tokens": LENGTH},
    "/v1/responses": {"model": "pivot", "input": PROMPT, "max_output_tokens": LENGTH},
    "/v1/messages": {"model": "pivot", "messages": MESSAGES, "max_tokens": LENGTH},
}
"""The same prompt and length on each route whose body may hold metadata."""

STARTED = ("/v1/responses", "/v1/messages")
"""Whose streams SGLang has begun before it looks at a request: every mistake is an event there."""


def text_of(answer: Json) -> str:
    """The text of an answer in the shape of any of the routes."""
    if "choices" in answer:
        choice = answer["choices"][0]
        found: str = choice["message"]["content"] if "message" in choice else choice["text"]
    elif "output" in answer:
        found = answer["output"][0]["content"][0]["text"]
    else:
        found = answer["content"][0]["text"] if "content" in answer else answer["text"]
    return found


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("value", [json.dumps(SEEDED), SEEDED], ids=["text", "object"])
def test_every_route_reads_it(pivot_server: Server, path: str, value: object) -> None:
    expected = generate(pivot_server, max_new_tokens=LENGTH, seed=7)["text"]
    response = post(pivot_server, path, {**ROUTES[path], "metadata": {"sglang_power": value}})
    assert response.status_code == httpx.codes.OK, response.text
    assert text_of(response.json()) == expected


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("{sampler}", "metadata.sglang_power='{sampler}': not valid JSON"),
        ("[1]", "metadata.sglang_power='[1]': not a JSON object"),
        ('{"sampler": "power", "steps": -1}', "steps=-1"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    pivot_server: Server, path: str, metadata: str, said: str, stream: bool
) -> None:
    body = {**ROUTES[path], "metadata": {"sglang_power": metadata}, "stream": stream}
    response = post(pivot_server, path, body)
    assert said in response.text
    status = httpx.codes.OK if stream and path in STARTED else httpx.codes.BAD_REQUEST
    assert response.status_code == status
