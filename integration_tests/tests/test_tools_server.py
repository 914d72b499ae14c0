"""Calls of tools in answers of samplers: SGLang's parsers read them off as off its own answers.

A grammar makes the pivot model, which knows no tools, write calls in the form of the server's parser.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import EOS, MESSAGES, QUICK, client, events, post, reports
from integration_tests.helpers.contract import CONTRACT, PAIRED
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

TOKENS = 126
"""Room for text and two calls, within the server's limit on chains."""

POWER = {**QUICK, "seed": 3}


def tool(name: str) -> Json:
    """A tool with one argument."""
    parameters = {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("f"), tool("g")]
CALLS = [r'\{"name": "f", "arguments": \{"n": [1-3]\}\}', r'\{"name": "g", "arguments": \{\}\}']
BOTH = "a[bc] " + r"\n".join(rf"<tool_call>\n{call}\n</tool_call>" for call in CALLS)
"""Text and two calls, as `--tool-call-parser qwen25` reads them."""


TERSE = {**{str(2 + ord(blank)): -100 for blank in " \n\t\r"}, str(2 + ord("]")): 50, str(EOS): 50}
"""No blanks where JSON leaves the choice, and an end as soon as there may be one."""


def asked(custom: Json, **fields: Any) -> Json:
    """One chat."""
    common = {"model": "pivot", "messages": MESSAGES, "max_tokens": TOKENS, "tools": TOOLS, "regex": BOTH}
    return {**common, "custom_params": custom, **fields}


def called(message: Json) -> list[tuple[str, Json]]:
    """Name and arguments of every call."""
    functions = [call["function"] for call in message["tool_calls"]]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


def streamed(server: Server, body: Json) -> Json:
    """A message put together from a stream, with how it ended."""
    message: Json = {"content": "", "tool_calls": [], "finish": None, "reports": None}
    for chunk in events(server, "/v1/chat/completions", {**body, "stream": True}):
        message["reports"] = (chunk.get("metadata") or {}).get("power", message["reports"])
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["finish"] = choice["finish_reason"] or message["finish"]
            for call in delta.get("tool_calls") or []:
                function = call["function"]
                if function.get("name"):
                    message["tool_calls"].append({"function": {"name": function["name"], "arguments": ""}})
                message["tool_calls"][call["index"]]["function"]["arguments"] += function["arguments"] or ""
    return message


@pytest.mark.parametrize(
    "name",
    [
        name if name == "smc" else pytest.param(name, marks=pytest.mark.long)
        for name in sorted(CONTRACT.keys() - PAIRED)
    ],
)
def test_calls_of_tools_in_the_answers_of_every_sampler(pivot_server: Server, name: str) -> None:
    """In a stream they are the same, which SGLang's parsers read off pieces only."""
    body = asked({**CONTRACT[name].quick, "seed": 3})
    (choice,) = post(pivot_server, "/v1/chat/completions", body).json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"].strip() in ("ab", "ac")
    assert [function for function, _ in called(choice["message"])] == ["f", "g"]
    told = streamed(pivot_server, body)
    assert told["finish"] == "tool_calls"
    assert told["content"].strip() == choice["message"]["content"].strip()
    assert called(told) == called(choice["message"])
    assert [report["sampler"] for report in told["reports"]] == [name]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "g"}}])
def test_calls_that_a_client_requires(pivot_server: Server, choice: Any) -> None:
    """What SGLang makes of it is a grammar, as of every other constraint."""
    body = asked(POWER, tool_choice=choice, regex=None, logit_bias=TERSE)
    told = post(pivot_server, "/v1/chat/completions", body).json()
    (answer,) = told["choices"]
    assert answer["finish_reason"] == "tool_calls"
    names = {name for name, _ in called(answer["message"])}
    assert names, "SGLang's grammar of a named tool has the others, too (qwen25, 0.5.23)"
    assert names <= {"f", "g"}
    assert told["metadata"]["power"][0]["sampler"] == "power"
    assert called(streamed(pivot_server, body)) == called(answer["message"])


def test_tools_that_nobody_may_call_change_nothing(pivot_server: Server) -> None:
    openai, extra = client(pivot_server), {"custom_params": POWER, "regex": "a[bc]{3}"}
    common: Json = {"model": "pivot", "messages": MESSAGES, "max_tokens": 8, "extra_body": extra}
    nobody: Json = {"tools": TOOLS, "tool_choice": "none"}
    none, without = (openai.chat.completions.create(**common, **more) for more in (nobody, {}))
    assert none.choices[0].message.content == without.choices[0].message.content
    assert reports(none)[0]["sampler"] == "power"


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_a_route_that_would_lose_calls_refuses_tools(pivot_server: Server, path: str) -> None:
    flat = [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}]
    anthropic = [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]
    own: Json = {"input": "R7+3:", "max_output_tokens": 8, "tools": flat}
    if path == "/v1/messages":
        own = {"messages": [{"role": "user", "content": "R7+3:"}], "max_tokens": 8, "tools": anthropic}
    answer = post(pivot_server, path, {"model": "pivot", **POWER, **own})
    assert answer.status_code == httpx.codes.BAD_REQUEST, answer.text
    assert "tools=" in answer.text
