"""Short requests of the OpenAI routes, with a sampler in `metadata` or without one."""

from __future__ import annotations

import json
from typing import Any

import httpx

from integration_tests.helpers.clients import MESSAGES, PROMPT, QUICK, post
from integration_tests.router_tests.cluster import MODEL
from integration_tests.server import Server

Json = dict[str, Any]

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"

SEEDED: Json = {**QUICK, "seed": 7}
"""A short chain that any worker repeats."""


def carried(named: Json, **metadata: str) -> Json:
    """`metadata` that names a sampler."""
    return {"metadata": {"sglang_power": json.dumps(named), **metadata}}


def body_of(path: str, **fields: Any) -> Json:
    """A short request of an OpenAI route."""
    asked = {"messages": MESSAGES} if path == CHAT else {"prompt": PROMPT}
    return {"model": MODEL, **asked, "max_tokens": 24, **fields}


def asked(server: Server, path: str, **fields: Any) -> Json:
    """The answer to such a request, checked for HTTP 200."""
    response = post(server, path, body_of(path, **fields))
    assert response.status_code == httpx.codes.OK, response.text
    answer: Json = response.json()
    return answer


def texts(answer: Json) -> list[str]:
    """The texts of all choices."""
    return [
        choice["message"]["content"] if "message" in choice else choice["text"]
        for choice in answer["choices"]
    ]


def power(answer: Json) -> list[Json]:
    """One report per choice; empty where none says that a sampler ran."""
    found: list[Json] = answer["metadata"].get("power", [])
    return found
